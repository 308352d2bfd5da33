"""Refuse what cannot be read to its end in place of a file: pipes wait for a writer, and devices have no end."""

import os
import stat

KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a pipe (FIFO)",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}
SAVE_IMAGE = "save the image to a file first"


def check_regular(path: str | os.PathLike[str], remedy: str = SAVE_IMAGE) -> None:
    """Check that a path leads to a regular file.

    Args:
        path: as it was given; links are followed.
        remedy: what the error advises.

    Raises:
        OSError: nothing is there, or it is not a regular file.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 (a path as it was given, NUL and all)
    except ValueError as error:
        raise OSError(f"{os.fspath(path)!r} is not a path: {error}") from error
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{os.fspath(path)} {irregular(mode, remedy)}")
    if not stat.S_ISREG(mode):
        raise OSError(f"{os.fspath(path)} {irregular(mode, remedy)}")


def irregular(mode: int, remedy: str = SAVE_IMAGE) -> str:
    """Return what to say of a path with this mode, which is not a regular file."""
    kind = next((word for is_kind, word in KINDS.items() if is_kind(mode)), "something else")
    return f"is {kind}, expected a regular file; {remedy}"

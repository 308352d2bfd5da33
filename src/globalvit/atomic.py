"""Writing files so that a reader sees the old content or the new one, never a part of either."""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Names of temporary files, and of folders that `temporary_folder` names.
_TEMPORARY = re.compile(r"\.(.+-)?[0-9a-f]{12}(\.\w+)?")


@contextmanager
def replace_with(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced to disk and renamed to `path`, else removed.

    Raises:
        OSError: the disk is full or the folder cannot be written; `path` then keeps its content.
    """
    target = Path(path)
    temporary = _temporary(target)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(temporary)):
            # Libraries and the system name the temporary file, or none at all.
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise
    sync(target.parent)


def temporary_folder(parent: Path) -> Path:
    """Make a new hidden folder in `parent`, which `remove_leftovers` knows."""
    folder = parent / f".new-{secrets.token_hex(6)}"
    folder.mkdir()
    return folder


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes have left in a folder and below.

    Only for a folder that no other process writes to.
    """
    for base, folders, files in os.walk(folder):
        for name in filter(_TEMPORARY.fullmatch, files):
            Path(base, name).unlink(missing_ok=True)
        for name in filter(_TEMPORARY.fullmatch, folders):
            shutil.rmtree(Path(base, name), ignore_errors=True)


def _temporary(target: Path) -> Path:
    """Create a new file beside `target`, and its folder if there is none.

    Raises:
        OSError: that is not possible; the text names `target`.
    """
    # The suffix is kept because image writers and plotters choose the format by it. Names may be as long as the file
    # system allows, so the temporary one does not contain the target's.
    path = target.with_name(f".{secrets.token_hex(6)}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(
            f"{target} cannot be written: {target.parent} is not a folder; choose another path"
        ) from error
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(target)) from error
    return path


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with replace_with(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    r"""Write `text` to `path` atomically, as UTF-8.

    Bytes of file names that are not UTF-8, which Python reads as lone surrogates, are written as `\udce9`: in JSON
    these escapes read back as the same name.
    """
    write_bytes(path, text.encode(errors="backslashreplace"))


def sync(path: Path) -> None:
    """Force a file to disk, or a folder if the system can: so that a renamed file never outlives its content."""
    if path.is_dir():
        # Windows and some network file systems cannot sync folders.
        with suppress(OSError):
            _sync(path, os.O_RDONLY)
    else:
        # Windows syncs only files that are open for writing.
        _sync(path, os.O_RDWR)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

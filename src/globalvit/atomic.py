"""Writing files so that a reader sees the old content or the new one, never a part of either."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replace_with(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced to disk and renamed to `path`, else removed.

    Raises:
        OSError: the disk is full or the folder cannot be written; `path` is then what it was.
    """
    target = Path(path)
    temporary = _temporary(target)
    try:
        yield temporary
        sync(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(target.parent)


def _temporary(target: Path) -> Path:
    """A new file beside `target`, whose folder is made if need be.

    Raises:
        OSError: that cannot be done; the text names `target`.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # The suffix is kept: image writers and plotters choose the format by it.
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(
            f"{target} cannot be written: what should be its folder is a file; give another place"
        ) from error
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(target)) from error
    os.close(handle)
    return Path(name)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with replace_with(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    write_bytes(path, text.encode())


def sync(path: Path) -> None:
    """Force a file or a folder to disk, so that a rename never outlives what it names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    # The mask can only be read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask

"""Temporary folder of the page, locked while it runs, and removed at the next start if the page was killed."""

import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from filelock import FileLock, Timeout

from globalvit import locks

logger = logging.getLogger(__name__)
PREFIX, LOCK = "globalvit-demo-", ".page.lock"


@contextmanager
def own_folder() -> Iterator[Path]:
    """Create a temporary folder that is removed with the process, and remove those of killed pages."""
    started = psutil.Process().create_time()
    parent = Path(tempfile.gettempdir())
    removed = sum(_remove(folder, started) for folder in sorted(parent.glob(f"{PREFIX}*")))
    if removed:
        logger.info("removed temporary folders of killed pages in %s: %d folder(s)", parent, removed)
    with TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name:
        lock = FileLock(Path(name) / LOCK)
        locks.acquire(lock, 0)
        try:
            yield Path(name)
        finally:
            lock.release()


def _remove(folder: Path, started: float) -> bool:
    """Remove a page's folder if it is this user's, older than this process, and not locked by a page."""
    lock = FileLock(folder / LOCK)
    try:
        about = folder.lstat()
        is_own = stat.S_ISDIR(about.st_mode) and (not hasattr(os, "getuid") or about.st_uid == os.getuid())
        # A newer folder may belong to a page that has not locked it yet.
        if not is_own or (folder / LOCK).lstat().st_ctime >= started:
            return False
        lock.acquire(timeout=0)
    except (Timeout, OSError, NotImplementedError):
        return False
    try:
        for path in folder.iterdir():
            if path.name != LOCK:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() and not path.is_symlink() else path.unlink()
        # A training process that outlived its page may still write: the next start removes the rest.
        is_empty = [path.name for path in folder.iterdir()] in ([LOCK], [])
    except OSError:
        is_empty = False
    finally:
        lock.release()
    if is_empty:
        with suppress(OSError):
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()
    return is_empty

"""One process per run folder: a lock that the system releases when its process ends, and a note of who holds it."""

import json
import logging
import os
import shutil
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from globalvit import atomic, locks

logger = logging.getLogger(__name__)

LOCK_FILE, OWNER_FILE = ".run.lock", ".run.owner.json"
# Seconds between two attempts to get the lock.
POLL = 0.1


class Owner:
    """Holds the lock of a run folder while entered; only the main process of a run takes it.

    Args:
        timeout: seconds to wait for a lock that another process holds.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.folder: Path | None = None
        self._lock: FileLock | None = None
        self._is_new = False

    def __enter__(self) -> "Owner":
        return self

    def __exit__(self, *reason: object) -> None:
        if self._lock is None or self.folder is None:
            return
        (self.folder / OWNER_FILE).unlink(missing_ok=True)
        with suppress(OSError):
            # A run that ended before its first checkpoint leaves nothing behind: it can be started again, not resumed.
            if self._is_new and not any(self.folder.glob("checkpoints/step-*")):
                shutil.rmtree(self.folder)
                logger.info("no checkpoint was saved, so run folder %s was removed", self.folder)
            elif [path.name for path in self.folder.iterdir()] == [LOCK_FILE]:
                (self.folder / LOCK_FILE).unlink()
                self.folder.rmdir()
        self._lock.release()
        self._lock = self.folder = None

    def take(self, folder: Path, *, is_new: bool = False) -> None:
        """Lock an existing run folder, and remove temporary files that runs which died have left in it.

        A folder that is new, made for this run, is removed at the end if it has no checkpoint by then.

        Raises:
            OSError: another process trains there and goes on to; the text names its host and number.
        """
        folder = folder.resolve()
        if self.folder == folder:
            return
        assert self.folder is None, "a run has one folder"
        lock = FileLock(folder / LOCK_FILE, poll_interval=POLL)
        try:
            locks.acquire(lock, 0)
        except Timeout:
            self._wait(lock, folder)
        self.folder, self._lock, self._is_new = folder, lock, is_new
        former = _read_owner(folder)
        if former:
            logger.info("the last process that trained in %s did not exit cleanly: %s", folder, _in_words(former))
        atomic.remove_leftovers(folder)
        note = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        atomic.write_text(folder / OWNER_FILE, json.dumps(note) + "\n")

    def _wait(self, lock: FileLock, folder: Path) -> None:
        if self.timeout:
            logger.info(
                "run folder %s is in use by %s; waiting up to %g s",
                folder,
                _in_words(_read_owner(folder)),
                self.timeout,
            )
        try:
            locks.acquire(lock, self.timeout)
        except Timeout as error:
            raise OSError(
                f"run folder {folder} is in use by {_in_words(_read_owner(folder))}; waited {self.timeout:g} s: wait "
                f"for that run to end, stop it, or raise --lock-timeout"
            ) from error


def _read_owner(folder: Path) -> dict[str, Any]:
    """What the process that holds or held the lock wrote of itself; empty if that is not known."""
    try:
        note = json.loads((folder / OWNER_FILE).read_text(encoding="utf-8"))
        return {"host": str(note["host"]), "pid": int(note["pid"]), "since": str(note["since"])}
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return {}


def _in_words(owner: dict[str, Any]) -> str:
    if not owner:
        return "another process"
    is_gone = owner["host"] == socket.gethostname() and not psutil.pid_exists(owner["pid"])
    return f"process {owner['pid']} on {owner['host']}, since {owner['since']}{' (it has ended)' if is_gone else ''}"

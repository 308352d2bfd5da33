"""LMDB databases: how they are opened, read and written; the only file that knows the library.

All readers of a process share one environment for each database. It is opened at the first read, and closed before the
process forks, so that no process ever uses the environment of another; the next read opens it again. Reading takes no
lock: any number of processes may read, and the disk may be read-only.

The system's read-ahead stays on. An image spans many pages, and without read-ahead a disk is asked for one page at a
time: random reads of 110 kB that nothing had cached ran at 330 a second without it, and at 2,600 with it.
"""

import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from globalvit.data.common.folders import DATABASE
from globalvit.data.storage.lmdb_check import Content, check_file

try:
    import lmdb
except ImportError as error:
    raise ImportError("LMDB databases need the package lmdb: pip install 'globalvit[data]'") from error

LOCK = "lock.mdb"  # made by LMDB beside the data when it writes
LONGEST_KEY = 511
# A new database begins with two pages of its own; a shorter file was never written to.
SMALLEST = 2 * mmap.PAGESIZE
MEBIBYTE = 2**20
# Room that a database opened for writing has beyond its content, until it asks for more.
ROOM = 64 * MEBIBYTE

_shared: dict[str, lmdb.Environment] = {}
# What a check found, by database, with the size and times of the file at that time.
_checked: dict[str, tuple[tuple[int, int, int], Content]] = {}
_lock = Lock()


class HalfBuilt(ValueError):  # noqa: N818 (it says what is there)
    """A database whose build was never finished."""


def located(root: Path) -> str:
    """How readers call a database: one process must not open it twice, by whatever path."""
    return str(root.resolve())


def value(root: str, key: bytes) -> bytes | None:
    """What a database holds under a key.

    Raises:
        HalfBuilt: nothing was ever written to the database.
        OSError: the database cannot be read.
    """
    with _environment(root) as environment, environment.begin() as transaction:
        return transaction.get(key)


def keys(root: str) -> list[bytes]:
    """All keys of a database, sorted; raises what `value` raises."""
    with _environment(root) as environment, environment.begin() as transaction, transaction.cursor() as cursor:
        return list(cursor.iternext(keys=True, values=False))


def forget(root: str) -> None:
    """Close what readers of a database share; the next read opens what lies there by then."""
    with _lock:
        environment = _shared.pop(root, None)
        if environment:
            environment.close()


def check(root: str) -> Content:
    """Check a database's structure, once as long as its file stays the same; return what it holds.

    Raises:
        HalfBuilt: nothing was ever written to it.
        DamagedDatabase: following what the file says would end the process.
        OSError: it cannot be read.
    """
    file = Path(root, DATABASE)
    state = file.stat() if file.exists() else None
    if state is None or state.st_size < SMALLEST:
        raise HalfBuilt(f"{root} is half built; finish it by `globalvit data lmdb build SRC DST`")
    signature = state.st_size, state.st_mtime_ns, state.st_ctime_ns
    if _checked.get(root, (None,))[0] != signature:
        _checked[root] = signature, check_file(file)
    return _checked[root][1]


@contextmanager
def only_now(root: Path) -> Iterator[str]:
    """Read a database as it is now, and leave it closed; yields what readers call it, after a check of its structure.

    Raises:
        HalfBuilt, DamagedDatabase, OSError: as `check` does.
    """
    path = located(root)
    forget(path)
    check(path)
    try:
        yield path
    finally:
        forget(path)


class Database:
    """A database opened for writing, by one process at a time; its map grows as it fills.

    Raises:
        DamagedDatabase: writing to it would end the process, or damage it further.
        OSError: it cannot be opened.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        file = root / DATABASE
        size = file.stat().st_size if file.exists() else 0
        if size < SMALLEST:
            # A process that was killed just now may leave one page of two, which LMDB takes for a foreign file.
            file.unlink(missing_ok=True)
        else:
            check_file(file, for_writing=True)
        forget(located(root))
        with self._explained():
            self._environment = lmdb.open(str(root), map_size=_whole_mebibytes(size + ROOM))

    def value(self, key: bytes) -> bytes | None:
        """What the database holds under a key."""
        with self._explained(), self._environment.begin() as transaction:
            return transaction.get(key)

    def keys(self, prefix: bytes) -> list[bytes]:
        """All keys that begin with `prefix`, sorted."""
        found: list[bytes] = []
        with self._explained(), self._environment.begin() as transaction, transaction.cursor() as cursor:
            if cursor.set_range(prefix):
                for key in cursor.iternext(keys=True, values=False):
                    if not key.startswith(prefix):
                        break
                    found.append(key)
        return found

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever written."""
        with self._explained():
            return not self._environment.stat()["entries"]

    def write(self, items: Iterable[tuple[bytes, bytes]], removed: Iterable[bytes] = ()) -> None:
        """Remove keys, then put items: all of it or, whenever the process or the machine stops, nothing.

        Raises:
            OSError: the disk is full, or cannot be written.
        """
        items, removed = list(items), list(removed)
        with self._explained():
            while not self._written(items, removed):
                self._grow(sum(len(data) for _, data in items))

    def close(self) -> None:
        """Force everything to disk and close the database."""
        with self._explained():
            self._environment.sync(True)
            needed = _needed(self._environment)
            self._environment.close()
        file = self.root / DATABASE
        if file.stat().st_size < needed:
            # Freed pages at the end need not have been written; readers take a short file for a damaged one.
            os.truncate(file, needed)

    def _written(self, items: list[tuple[bytes, bytes]], removed: list[bytes]) -> bool:
        try:
            with self._environment.begin(write=True) as transaction:
                for key in removed:
                    transaction.delete(key)
                for key, data in items:
                    transaction.put(key, data)
        except lmdb.MapFullError:
            return False
        return True

    def _grow(self, wanted: int) -> None:
        size = self._environment.info()["map_size"]
        self._environment.set_mapsize(_whole_mebibytes(size + size // 2 + 2 * wanted))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except lmdb.Error as error:
            raise OSError(
                f"cannot write the database {self.root}: {error}; when that is fixed, the same command goes on with "
                "what is done"
            ) from error


@contextmanager
def _environment(root: str) -> Iterator[lmdb.Environment]:
    with _lock:
        try:
            yield _shared.get(root) or _open(root)
        except lmdb.Error as error:
            raise OSError(
                f"cannot read the database {root}: {error}; copy it again, or build it again by `globalvit data lmdb "
                "build`"
            ) from error


def _open(root: str) -> lmdb.Environment:
    file = Path(root, DATABASE)
    size = file.stat().st_size if file.exists() else 0
    if size < SMALLEST:
        raise HalfBuilt(f"{root} is half built; finish it by `globalvit data lmdb build SRC DST`")
    environment = lmdb.open(root, readonly=True, lock=False, create=False)
    needed = _needed(environment)
    if size < needed:
        environment.close()
        # Reading beyond the end would kill the process by a signal.
        raise OSError(f"{file} is cut short: it has {size} bytes of {needed}; copy it or build it again")
    _shared[root] = environment
    return environment


def _needed(environment: lmdb.Environment) -> int:
    """Bytes of the file that hold pages of the database."""
    return (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]


def _whole_mebibytes(size: int) -> int:
    return -(-size // MEBIBYTE) * MEBIBYTE


def _close_before_fork() -> None:
    # Held until the fork is done, so that no thread opens one in between.
    _lock.acquire()
    while _shared:
        _shared.popitem()[1].close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_close_before_fork, after_in_parent=_lock.release, after_in_child=_lock.release)

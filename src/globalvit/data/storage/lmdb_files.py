"""Files as they are packed: their bytes and the record of them, several being read at a time."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from globalvit.data.storage.lmdb_index import Record, checksum

READERS = 8
# Files that are read ahead for each reader.
AHEAD = 4


def read_ahead(paths: Iterable[str], readers: int) -> Iterator[tuple[bytes, Record]]:
    """Bytes and record of each file, in order.

    Raises:
        OSError: a file cannot be read.
    """
    # Threads do: reading and BLAKE2b leave the interpreter to others.
    waiting: deque[Future[tuple[bytes, Record]]] = deque()
    with ThreadPoolExecutor(readers) as pool:
        for path in paths:
            waiting.append(pool.submit(_read, path))
            if len(waiting) > readers * AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def has_changed(path: str, record: Record) -> bool:
    """Whether a file has another size or time than when it was packed."""
    state = os.stat(path)  # noqa: PTH116 (a million)
    return (state.st_size, state.st_mtime_ns) != (record.size, record.modified)


def _read(path: str) -> tuple[bytes, Record]:
    with open(path, "rb") as file:  # noqa: PTH123 (a million)
        # Looked up before reading: a file that changes meanwhile looks new to the next build.
        modified = os.fstat(file.fileno()).st_mtime_ns
        data = file.read()
    return data, Record(len(data), modified, checksum(data))

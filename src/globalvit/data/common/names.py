"""A compact list of texts for the file names of large sets.

A Python list of a million strings is copied into every worker, page by page, as reference counts change. One
block of bytes is shared between forked processes and quickly sent to spawned ones.
"""

import os
from collections.abc import Iterable, Iterator

import numpy as np


class Names:
    """Texts by position; file names of any bytes come back as they were."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._bytes = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"name {index} of {len(self)}")
        return os.fsdecode(self._bytes[self._ends[index] : self._ends[index + 1]])

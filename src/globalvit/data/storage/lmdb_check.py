"""Checks the structure of an LMDB file, so that the C library, which trusts it, never aborts or reads beyond its end.

LMDB follows page numbers and sizes as the file has them; damaged ones end the process by an assertion or a signal. So
before it opens a database, everything that it follows when it reads is checked here: both meta pages, and each branch
and leaf page of the tree. Pages of values are not read: what matters is that they lie within the file. A database of a
million images has some 20,000 pages to check, which takes seconds.

The format is that of LMDB 0.9 on little-endian 64-bit machines. A page begins with its number (8 bytes), padding (2),
flags (2), and the ends of its list of nodes (2) and of its free space (2), or, where a value begins, its number of
pages (4).
"""

import operator
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

MAGIC, VERSION = 0xBEEFC0DE, 1
BRANCH, LEAF, OVERFLOW, META = 0x01, 0x02, 0x04, 0x08
# In pages that were written and not flushed with the flag taken off.
DIRTY = 0x10
# Elsewhere pages are laid out differently.
CAN_CHECK = sys.maxsize > 2**32 and sys.byteorder == "little"
BIG = 0x01  # of a node whose value has pages of its own
EMPTY = 2**64 - 1
HEAD, NODE_HEAD = 16, 8
PAGE_SIZES = tuple(2**power for power in range(9, 17))
DEEPEST = 32
LONGEST_KEY = 511
INTEGER_KEYS = 0x08
_PAGE = struct.Struct("=QHHHH")
_META = struct.Struct("=IIQQ" + 2 * "IHHQQQQQ" + "QQ")


class DamagedDatabase(OSError):  # noqa: N818 (it says what is there)
    """A database whose file is not what was written."""


class Tree(NamedTuple):
    """What a meta page says of one of its two trees."""

    pad: int
    flags: int
    depth: int
    branches: int
    leaves: int
    overflows: int
    entries: int
    root: int


class Meta(NamedTuple):
    """What a meta page says."""

    free: Tree
    main: Tree
    last: int
    transaction: int


class Nodes(NamedTuple):
    """The nodes of a page: keys, where in the page their values begin, the values' lengths, and which have own pages.

    Of a branch page, `begins` has the numbers of the pages that it leads to.
    """

    keys: list[bytes]
    begins: list[int]
    sizes: list[int]
    is_big: list[bool]


@dataclass(slots=True)
class Counts:
    """How many pages and entries a tree has."""

    branches: int = 0
    leaves: int = 0
    overflows: int = 0
    entries: int = 0

    def __str__(self) -> str:
        return f"{self.branches}, {self.leaves} and {self.overflows} pages with {self.entries} entries"


@dataclass(slots=True)
class Content:
    """What a check found: how many images there are, and a sum over their keys, whatever their order."""

    images: int = 0
    digest: int = 0

    def add(self, key: bytes) -> None:
        """Count a key."""
        self.images += 1
        self.digest = (self.digest + hash(key)) % 2**64


def check_file(file: Path, *, for_writing: bool = False) -> Content:
    """Check the structure of a database's file.

    Args:
        file: `data.mdb`.
        for_writing: also check what only writing follows: the list of free pages and the heads of values.

    Raises:
        DamagedDatabase: the text says which page, and what is wrong with it.
        OSError: it cannot be read.
    """
    if not CAN_CHECK:
        return Content()
    with file.open("rb", buffering=0) as stream:
        return _Check(file, stream, for_writing).run()


class _Check:
    """One check of one file."""

    def __init__(self, file: Path, stream: BinaryIO, for_writing: bool) -> None:
        self.file, self.stream, self.for_writing = file, stream, for_writing
        self.size = file.stat().st_size
        self.page_size = 0
        self.meta = self._meta()
        self.seen: set[int] = set()

    def run(self) -> Content:
        """Walk the trees."""
        needed = (self.meta.last + 1) * self.page_size
        if self.size < needed:
            raise DamagedDatabase(
                f"{self.file} is cut short: it has {self.size} bytes of {needed}; copy it or build it again"
            )
        content = Content()
        for key, _ in self._walk(self.meta.main, "images", is_free=False):
            if not key.startswith(b"/"):
                content.add(key)
        if self.for_writing:
            for key, value in self._walk(self.meta.free, "free pages", is_free=True):
                self._check_free(key, value)
        return content

    def damaged(self, what: str) -> DamagedDatabase:
        """The error for what was found."""
        return DamagedDatabase(
            f"{self.file} is damaged: {what}; copy it again, or build it again with `globalvit data lmdb build`"
        )

    def _meta(self) -> Meta:
        """The meta page that LMDB would take; both are checked."""
        first = self._read_meta(0, at=0)
        self.page_size = first.free.pad
        second = self._read_meta(1, at=self.page_size)
        return second if second.transaction > first.transaction else first

    def _read_meta(self, number: int, at: int) -> Meta:
        data = self._read(at, HEAD + _META.size)
        _, _, flags, _, _ = _PAGE.unpack_from(data)
        magic, version, _, _, *values = _META.unpack_from(data, HEAD)
        if not flags & META or magic != MAGIC:
            raise self.damaged(f"meta page {number} is not one of LMDB")
        if version != VERSION:
            raise self.damaged(f"meta page {number} has version {version}, expected {VERSION}")
        meta = Meta(Tree(*values[:8]), Tree(*values[8:16]), *values[16:])
        if meta.free.pad not in PAGE_SIZES or (self.page_size and meta.free.pad != self.page_size):
            raise self.damaged(f"meta page {number} says pages of {meta.free.pad} bytes")
        if meta.main.flags or meta.free.flags != INTEGER_KEYS or meta.main.pad:
            raise self.damaged(f"meta page {number} says flags that these databases do not have")
        if not 1 <= meta.last < 2**48:
            raise self.damaged(f"meta page {number} says that the last page is {meta.last}")
        return meta

    def _walk(self, tree: Tree, name: str, *, is_free: bool) -> Iterator[tuple[bytes, bytes]]:
        """Check all pages of a tree; yield its keys in order and, of the free pages, the values."""
        counts = Counts()
        if tree.root == EMPTY:
            if tree.entries or tree.depth:
                raise self.damaged(f"the tree of {name} is empty and should have {tree.entries} entries")
            return
        if not 1 <= tree.depth <= DEEPEST:
            raise self.damaged(f"the tree of {name} is {tree.depth} pages deep")
        for number, low, high in self._leaves(tree, counts, is_free):
            page = self._page(number, LEAF)
            nodes = self._nodes(number, page, is_leaf=True)
            self._check_order(number, [low, *nodes.keys, high], is_free)
            counts.entries += len(nodes.keys)
            for key, begin, length, is_big in zip(*nodes, strict=True):
                value = self._big_value(number, page, begin, length, counts, is_free) if is_big else b""
                yield key, value if is_big or not is_free else page[begin : begin + length]
        said = Counts(tree.branches, tree.leaves, tree.overflows, tree.entries)
        if counts != said:
            raise self.damaged(f"the tree of {name} has {counts}, expected {said}")

    def _leaves(self, tree: Tree, counts: "Counts", is_free: bool) -> Iterator[tuple[int, bytes | None, bytes | None]]:
        """Yield the number of each leaf page, and the keys between which its keys have to lie."""
        waiting: list[tuple[int, int, bytes | None, bytes | None]] = [(tree.root, tree.depth, None, None)]
        while waiting:
            number, levels, low, high = waiting.pop()
            if number in self.seen:
                raise self.damaged(f"page {number} is used twice")
            self.seen.add(number)
            if levels == 1:
                counts.leaves += 1
                yield number, low, high
                continue
            counts.branches += 1
            nodes = self._nodes(number, self._page(number, BRANCH), is_leaf=False)
            if len(nodes.keys) < 2:
                raise self.damaged(f"page {number} leads to one page")
            # The first key of a branch page is never looked at.
            keys = [low, *nodes.keys[1:], high]
            self._check_order(number, keys, is_free)
            ends = zip(nodes.begins, keys, keys[1:], strict=False)
            waiting += reversed([(child, levels - 1, *between) for child, *between in ends])

    def _page(self, number: int, kind: int) -> bytes:
        """A branch or leaf page whose head is right."""
        if not 2 <= number <= self.meta.last:
            raise self.damaged(f"it leads to page {number} of {self.meta.last}")
        page = self._read(number * self.page_size, self.page_size)
        own, _, flags, lower, upper = _PAGE.unpack_from(page)
        if own != number or flags & ~DIRTY != kind:
            raise self.damaged(f"page {number} is not a {'leaf' if kind == LEAF else 'branch'} page")
        if not HEAD < lower <= upper <= self.page_size or lower % 2 or upper % 2:
            raise self.damaged(f"the head of page {number} is wrong")
        return page

    def _nodes(self, number: int, page: bytes, *, is_leaf: bool) -> "Nodes":
        _, _, _, lower, upper = _PAGE.unpack_from(page)
        words = np.frombuffer(page, np.uint16)
        at = words[HEAD // 2 : lower // 2].astype(np.int64)
        if (at % 2).any() or at.min() < upper or at.max() > self.page_size - NODE_HEAD:
            raise self.damaged(f"page {number} has nodes outside itself")
        low, high, flags, key_sizes = (words[at // 2 + part].astype(np.int64) for part in range(4))
        starts, sizes = at + NODE_HEAD, low + (high << 16)
        begins = starts + key_sizes
        is_big = (flags == BIG) & is_leaf
        ends = begins + np.where(is_big, 8, sizes) if is_leaf else begins
        if is_leaf and ((flags != 0) & ~is_big).any():
            raise self.damaged(f"page {number} has nodes of an unknown kind")
        if ends.max() > self.page_size or key_sizes.max() > LONGEST_KEY or key_sizes[0 if is_leaf else 1 :].min() < 1:
            raise self.damaged(f"page {number} has nodes of a wrong size")
        keys = [page[start:end] for start, end in zip(starts.tolist(), begins.tolist(), strict=True)]
        places = begins if is_leaf else sizes + (flags << 32)
        return Nodes(keys, places.tolist(), sizes.tolist(), is_big.tolist())

    def _check_order(self, number: int, keys: list[bytes | None], is_free: bool) -> None:
        """Check that keys ascend; None at either end means unbounded, and the first key may equal the second."""
        inner: list[Any] = keys[1:-1]
        if is_free:
            inner = [int.from_bytes(key, sys.byteorder) for key in inner]
        if not all(map(operator.lt, inner, inner[1:])):
            raise self.damaged(f"the keys on page {number} are out of order")
        ends: list[Any] = keys[:: len(keys) - 1]
        if is_free:
            ends = [key if key is None else int.from_bytes(key, sys.byteorder) for key in ends]
        low, high = ends
        if inner and ((low is not None and inner[0] < low) or (high is not None and inner[-1] >= high)):
            raise self.damaged(f"page {number} holds keys that belong elsewhere")

    def _big_value(self, number: int, page: bytes, at: int, length: int, counts: "Counts", is_wanted: bool) -> bytes:
        """Check a value that has pages of its own; it is read only where `is_wanted`."""
        first = int.from_bytes(page[at : at + 8], sys.byteorder)
        pages = -(-(HEAD + length) // self.page_size)
        counts.overflows += pages
        if not 2 <= first <= self.meta.last - pages + 1:
            raise self.damaged(f"page {number} has a value beyond the end of the file")
        if self.for_writing:
            head = self._read(first * self.page_size, HEAD)
            own, _, flags, _, _ = _PAGE.unpack(head)
            if own != first or flags & ~DIRTY != OVERFLOW or int.from_bytes(head[12:], sys.byteorder) != pages:
                raise self.damaged(f"page {first} does not begin a value")
        return self._read(first * self.page_size + HEAD, length) if is_wanted else b""

    def _check_free(self, key: bytes, value: bytes) -> None:
        """Check a list of free pages: how many there are, then their numbers, the largest first."""
        numbers = np.frombuffer(value[: len(value) // 8 * 8], np.uint64)
        is_whole = len(key) == 8 and len(value) % 8 == 0 and len(numbers) > 0 and numbers[0] == len(numbers) - 1
        listed = numbers[1:]
        if not is_whole or (listed[1:] >= listed[:-1]).any() or (listed < 2).any() or (listed > self.meta.last).any():
            raise self.damaged("its list of free pages is wrong")
        if not self.seen.isdisjoint(listed.tolist()):
            raise self.damaged("pages in use are listed as free")

    def _read(self, at: int, size: int) -> bytes:
        self.stream.seek(at)
        data = self.stream.read(size)
        if len(data) < size:
            raise self.damaged(f"it ends at byte {at + len(data)}")
        return data

"""Compares databases with the image folder they were built from, byte for byte."""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from globalvit.data.storage.lmdb import keys, only_now, value
from globalvit.data.storage.lmdb_files import READERS, read_ahead
from globalvit.data.storage.lmdb_index import NAMES, RECORDS, Record, read_header, unpack
from globalvit.data.storage.lmdb_splits import WHOLE, Listing, MaskFiles, find_databases, find_splits, open_listing


@dataclass(slots=True)
class Comparison:
    """What was found; files are named as in the image folder.

    Attributes:
        equal: images whose bytes are the same.
        missing: images that only the folder has.
        extra: images that only the database has.
        differing: images of other bytes.
        index: images of which the database's own index says something else than it holds.
    """

    equal: int = 0
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    index: list[str] = field(default_factory=list)

    @property
    def is_equal(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.missing or self.extra or self.differing or self.index)


def verify(
    dst: Path,
    src: Path,
    *,
    splits: Sequence[str] | None = None,
    readers: int = READERS,
    on_start: Callable[[int], None] = lambda _: None,
    on_image: Callable[[], None] = lambda: None,
) -> Comparison:
    """Compare names and bytes of all images, and the index with what it stands for.

    Args:
        dst: the folder of the databases.
        src: the image folder.
        splits: the splits to compare; None takes all that either has.
        readers: files read at a time.
        on_start: called with the number of images to compare before the first is read.
        on_image: called after each image.

    Raises:
        FileNotFoundError, NotADirectoryError: the folder does not exist.
        ValueError: no databases, half-built ones, those of the old published form, or splits on one side only.
        OSError: a file or a database cannot be read.
    """
    there, wanted = find_databases(dst), find_splits(src, splits)
    if (WHOLE in there) != (WHOLE in wanted):
        whole, parted = (dst, src) if WHOLE in there else (src, dst)
        raise ValueError(f"{parted} has splits and {whole} has none; give the two that belong together")
    compared = sorted({*wanted, *(there if splits is None else ())})
    with ExitStack() as stack:
        databases = {name: _Content(dst / name, stack) for name in there if name in compared}
        listings = {name: open_listing(src, name) for name in wanted}
        on_start(sum(len(listing.keys) for listing in listings.values()))
        found = Comparison()
        for name in compared:
            _compare(databases.get(name), listings.get(name), name, found, readers, on_image)
    return found


class _Content:
    """What a database holds, and what its index says."""

    def __init__(self, root: Path, stack: ExitStack) -> None:
        self.path = stack.enter_context(only_now(root))
        if read_header(root) is None:
            raise ValueError(
                f"{root} has the old published form, whose JPEGs were encoded again; only what `globalvit data lmdb "
                "build` made can be compared"
            )
        self.keys = {key for key in keys(self.path) if not key.startswith(b"/")}
        self.records = unpack(value(self.path, NAMES) or b"", value(self.path, RECORDS) or b"", root)


def _compare(
    content: _Content | None,
    listing: Listing | MaskFiles | None,
    split: str,
    found: Comparison,
    readers: int,
    on_image: Callable[[], None],
) -> None:
    """Add what one split shows to `found`; the database or the folder may be missing."""
    there: set[bytes] = content.keys if content else set()
    wanted = listing.keys if listing else []
    found.missing += _named(split, (key for key in wanted if key not in there))
    found.extra += _named(split, there.difference(wanted))
    if content is None:
        return
    found.index += _named(split, content.records.keys() ^ there)
    if listing is None:
        return
    common = [key for key in wanted if key in there]
    for key, (data, record) in zip(common, read_ahead(map(listing.path, common), readers), strict=True):
        is_same = value(content.path, key) == data
        found.equal += is_same
        found.differing += [] if is_same else _named(split, [key])
        found.index += _named(split, [key]) if is_same and _contradicts(content.records.get(key), record) else []
        on_image()


def _contradicts(noted: Record | None, record: Record) -> bool:
    return noted is not None and (noted.size, noted.checksum) != (record.size, record.checksum)


def _named(split: str, keys: Iterable[bytes]) -> list[str]:
    return [str(Path(split, os.fsdecode(key))) for key in sorted(keys)]

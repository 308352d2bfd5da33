"""Packs image folders into LMDB databases, which can be stopped at any moment and gone on with.

Folders of images and label maps are packed alike, as twice as many files.

Images are written in batches, each in one transaction together with the record of what it holds. The last transaction
writes the index and marks the database complete. So a build that was killed has whole batches and knows them; the next
one reads only files that are new or have another size or time than recorded. All databases are begun before the first
is finished: a set of splits is complete when each of them is.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from globalvit import locks
from globalvit.data.storage.lmdb import MEBIBYTE, Database
from globalvit.data.storage.lmdb_files import READERS, has_changed, read_ahead
from globalvit.data.storage.lmdb_index import (
    DONE,
    HEADER,
    NAMES,
    RECORDS,
    Header,
    Record,
    pack_keys,
    pack_records,
    unpack,
)
from globalvit.data.storage.lmdb_splits import Listing, MaskFiles, check_target, find_splits, open_listing

# Images and bytes of one transaction: what is lost at most when a build is killed.
BATCH_IMAGES, BATCH_BYTES = 1000, 64 * MEBIBYTE
# Key, bytes and record of an image.
Image = tuple[bytes, bytes, Record]


@dataclass(frozen=True, slots=True)
class Packed:
    """What became of one split: images and bytes in all, and files written, left as they were, and removed.

    Label maps count as files, not as images.
    """

    split: str
    classes: int
    images: int
    total_bytes: int
    written: int
    kept: int
    removed: int


def build(
    src: Path,
    dst: Path,
    *,
    splits: Sequence[str] | None = None,
    readers: int = READERS,
    on_start: Callable[[int], None] = lambda _: None,
    on_image: Callable[[], None] = lambda: None,
) -> list[Packed]:
    """Pack an image folder, or bring its databases up to date.

    Each split becomes the database DST/SPLIT; a folder without splits becomes the database DST. Nobody may read a
    database while it is brought up to date.

    Args:
        src: the image folder.
        dst: the folder for the databases.
        splits: the splits to pack; None takes all.
        readers: files read at a time.
        on_start: called with the number of images to write before the first is read.
        on_image: called after each image.

    Raises:
        FileNotFoundError, NotADirectoryError: the folder does not exist.
        ValueError: the folder is not as training wants it, a path is too long, or `dst` holds something else.
        OSError: a file cannot be read or the databases cannot be written; the next build goes on.
    """
    names = find_splits(src, splits)
    check_target(src, dst, names)
    listings = {name: open_listing(src, name) for name in names}
    with _only_builder(dst), ExitStack() as stack:
        packers = {name: _Packer(stack.enter_context(_opened(dst / name)), listings[name]) for name in names}
        for name, packer in packers.items():
            packer.begin(src, name)
        on_start(sum(len(packer.due) for packer in packers.values()))
        for packer in packers.values():
            packer.pack(readers, on_image)
        return [packer.summary(name) for name, packer in packers.items()]


class _Packer:
    """Brings the database of one split to what its listing says.

    Attributes:
        due: keys of the images to write.
    """

    def __init__(self, database: Database, listing: Listing | MaskFiles) -> None:
        self.database, self.listing = database, listing
        self.is_complete = self._is_complete()
        self.notes = database.keys(DONE)
        self.known = self._known()
        self.due = [key for key in listing.keys if self._is_due(key)]
        self.gone = self.known.keys() - set(listing.keys)

    def begin(self, src: Path, split: str) -> None:
        """Mark the database as half built, unless there is nothing to do."""
        if self.due or self.gone or not self.is_complete:
            self.is_complete = False
            header = Header(form=self.listing.form, is_complete=False, source=str(src.absolute()), split=split)
            self.database.write([(HEADER, header.to_bytes())])

    def pack(self, readers: int, on_image: Callable[[], None]) -> None:
        """Write what is due, then the index."""
        for number, batch in enumerate(_in_batches(self._read(readers)), self._next_batch()):
            self._write(number, batch)
            for _ in batch:
                on_image()
        if not self.is_complete:
            self._finish()

    def summary(self, split: str) -> Packed:
        """What became of the split."""
        total_bytes = sum(self.known[key].size for key in self.listing.keys)
        files, written = len(self.listing.keys), len(self.due)
        counts = (self.listing.images, total_bytes, written, files - written, len(self.gone))
        return Packed(split, len(self.listing.classes), *counts)

    def _is_complete(self) -> bool:
        data = self.database.value(HEADER)
        if data is None:
            if not self.database.is_empty:
                raise ValueError(f"{self.database.root} is a database of another kind; give a new or an empty folder")
            return False
        header = Header.from_bytes(data, self.database.root)
        if header.form != self.listing.form:
            raise ValueError(
                f"{self.database.root} holds images {'with' if header.has_masks else 'without'} label maps, "
                "but the folder to pack differs in this; give a new or an empty folder"
            )
        there, wanted = ((one.classes, one.colors, one.void) for one in (header, self.listing))
        return header.is_complete and there == wanted

    def _known(self) -> dict[bytes, Record]:
        """The images that are in the database already; later notes count."""
        known: dict[bytes, Record] = {}
        batches = {key.rpartition(b"/")[0] for key in self.notes}
        for names, records in [(NAMES, RECORDS), *((one + b"/names", one + b"/records") for one in sorted(batches))]:
            values = self.database.value(names), self.database.value(records)
            known |= unpack(values[0] or b"", values[1] or b"", self.database.root)
        return known

    def _is_due(self, key: bytes) -> bool:
        record = self.known.get(key)
        return record is None or has_changed(self.listing.path(key), record)

    def _next_batch(self) -> int:
        numbers = (key.split(b"/")[2] for key in self.notes)
        return 1 + max((int(number) for number in numbers if number.isdigit()), default=0)

    def _read(self, readers: int) -> Iterator[Image]:
        files = read_ahead(map(self.listing.path, self.due), readers)
        return ((key, data, record) for key, (data, record) in zip(self.due, files, strict=True))

    def _write(self, number: int, batch: Sequence[Image]) -> None:
        """One transaction: images, and the note of what they are."""
        records = {key: record for key, _, record in batch}
        place = b"%b%08d" % (DONE, number)
        notes = _note(place + b"/names", place + b"/records", records)
        self.database.write([*((key, data) for key, data, _ in batch), *notes])
        self.known |= records
        self.notes += [key for key, _ in notes]

    def _finish(self) -> None:
        """One transaction: drop what is gone and the notes of batches, write the index, mark it complete."""
        records = {key: self.known[key] for key in self.listing.keys}
        header = Header(
            form=self.listing.form,
            is_complete=True,
            classes=self.listing.classes,
            counts=self.listing.counts,
            colors=self.listing.colors,
            void=self.listing.void,
            total_bytes=sum(record.size for record in records.values()),
        )
        index = _note(NAMES, RECORDS, records)
        self.database.write([*index, (HEADER, header.to_bytes())], [*self.gone, *self.notes])


def _note(names: bytes, records: bytes, of: dict[bytes, Record]) -> list[tuple[bytes, bytes]]:
    return [(names, pack_keys(of)), (records, pack_records(of.values()))]


def _in_batches(images: Iterable[Image]) -> Iterator[list[Image]]:
    batch: list[Image] = []
    size = 0
    for image in images:
        batch.append(image)
        size += len(image[1])
        if len(batch) == BATCH_IMAGES or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@contextmanager
def _opened(root: Path) -> Iterator[Database]:
    with closing(Database(root)) as database:
        yield database


@contextmanager
def _only_builder(dst: Path) -> Iterator[None]:
    """Keep other builds away from `dst`; the system ends this when the process dies.

    Raises:
        OSError: another build is at work there.
    """
    dst.mkdir(parents=True, exist_ok=True)
    lock = FileLock(dst / ".build.lock")
    try:
        locks.acquire(lock, 0)
    except Timeout as error:
        raise OSError(f"another build is at work in {dst}; wait for it, or stop it") from error
    try:
        yield
    finally:
        lock.release()

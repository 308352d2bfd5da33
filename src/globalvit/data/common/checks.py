"""Check a data folder: unreadable images, empty classes, splits of other classes, images in two places.

Every image is read whole, as training reads it. Needs no torch, so it starts at once.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from globalvit.data.common.folders import listed
from globalvit.data.common.orientation import Sight, questions
from globalvit.data.common.splits import NoSplitError, choose_split, role_of
from globalvit.regular import check_regular

if TYPE_CHECKING:
    from globalvit.data.storage.tar_index import Span

# Below this many images, starting processes takes longer than reading.
FEWEST_FOR_PROCESSES = 200
IMAGES_AT_ONCE = 16
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Image:
    """Where an image lies: in a file, under a key of a database, in a shard, or where a reader finds it."""

    split: str
    class_name: str
    path: str
    database: str = ""
    key: bytes = b""
    span: "Span | None" = None
    reader: Callable[[], bytes] | None = None

    def data(self) -> bytes:
        """The file's bytes; raises OSError."""
        if self.reader:
            return self.reader()
        if self.span:
            from globalvit.data.storage.tar_index import read_span

            return read_span(self.span, self.path)
        if not self.database:
            check_regular(self.path)
            return Path(self.path).read_bytes()
        from globalvit.data.storage.lmdb import value

        return value(self.database, self.key) or b""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that spoils training or its score, or only a note, and the files it is about."""

    kind: str
    text: str
    files: tuple[str, ...] = ()


@dataclass(slots=True)
class Split:
    """What one split holds."""

    name: str
    classes: int
    images: int
    other_files: int
    unreadable: int = 0


@dataclass(slots=True)
class Report:
    """What was found; `repeated` counts images that lie more than once in one class, which is not a problem.

    Attributes:
        splits: what they hold.
        problems: what spoils training or its score.
        notes: what may be meant.
        repeated: images that lie more than once in one class.
    """

    splits: list[Split] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)
    repeated: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def chosen_splits(names: Sequence[str], split: str | None, data_dir: Path, report: Report) -> list[str]:
    """The splits to look over; several that may be meant by one name are a problem.

    Raises:
        NoSplitError: the split asked for does not exist.
    """
    if split is not None:
        chosen = choose_split(split, names, data_dir, exact=True)
        if chosen is None:
            raise NoSplitError(f"no split {split!r} in {data_dir}; it holds {listed(names) or 'none'}")
        return [chosen]
    roles = [role_of(name) for name in names]
    validation = [name for name, role in zip(names, roles, strict=True) if role == "val"]
    if len(validation) > 1:
        text = f"{listed(validation)} may both be meant; training refuses them: choose one with --val-split"
        report.problems.append(Problem("validation splits", text))
    if "train" in roles and not validation:
        text = "no split is called val, valid or validation: training holds out a tenth of train (--val-fraction)"
        report.notes.append(Problem("validation split", text))
    return list(names)


def in_processes(read: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """What `read` gives for each item, in order; few items are read in this process.

    Raises:
        OSError: a reading process died.
    """
    if not workers or len(items) < FEWEST_FOR_PROCESSES:
        yield from map(read, items)
        return
    # Forked processes could inherit a lock that a progress bar's thread holds.
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        try:
            yield from pool.map(read, items, chunksize=IMAGES_AT_ONCE)
        except BrokenProcessPool as error:
            raise OSError("a reading process died, most often for want of memory; lower --workers") from error


def fingerprint(data: bytes) -> bytes:
    """Return a digest of some bytes."""
    return blake2b(data, digest_size=16).digest()


def find_leaks(places: Iterable[Sequence[Image]], report: Report) -> None:
    """Images in several splits; `places` are where each content lies."""
    for same in places:
        held = sorted({image.split for image in same})
        if len(held) > 1:
            paths = tuple(image.path for image in same)
            report.problems.append(Problem("leak", f"the same image is in {' and '.join(held)}", paths))
        else:
            report.repeated += len(same) - 1


def frame_problems(sights: Sequence[Sight], what: str) -> Iterator[Problem]:
    """Name the images of which it is not clear which frame their annotations are for, as `questions` does."""
    for kind, text, images in questions(sights, what):
        yield Problem(kind, text, images)


def default_workers() -> int:
    """One process for each processor this process may use, at most 8."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)

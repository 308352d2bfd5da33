"""Check a data folder: unreadable images, empty classes, splits of other classes, images in two places.

Every image is read whole, as training reads it. Needs no torch, so it starts at once.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from globalvit.data.class_folders import (
    BUILT_IN,
    alike,
    listed,
    match_classes,
    missing_classes,
    question_folders,
    scan_classes,
    similar_folders,
    split_folders,
)
from globalvit.data.frames import Sight, questions
from globalvit.data.image_folder import is_database, other_level
from globalvit.data.imagenet import is_devkit
from globalvit.data.images import OversizedImage, UnreadableImage, read_image
from globalvit.data.splits import NoSplitError, choose_split, role_of
from globalvit.data.walk import Found
from globalvit.regular import check_regular

# Below this many images, starting processes takes longer than reading.
FEWEST_FOR_PROCESSES = 200
IMAGES_AT_ONCE = 16
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Image:
    """Where an image lies: in a file, or under a key of a database."""

    split: str
    class_name: str
    path: str
    database: str = ""
    key: bytes = b""

    def data(self) -> bytes:
        """The file's bytes; raises OSError."""
        if not self.database:
            check_regular(self.path)
            return Path(self.path).read_bytes()
        from globalvit.data.lmdb import value

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
    """What was found; `repeated` counts images that lie more than once in one class, which is no problem.

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


def check_folder(
    data_dir: Path,
    *,
    split: str | None = None,
    nested: bool = False,
    workers: int = 0,
    on_start: Callable[[int], None] = lambda _: None,
    on_image: Callable[[], None] = lambda: None,
) -> Report:
    """Look over all splits of a data folder.

    Args:
        data_dir: a folder with a folder for each split.
        split: the only one to look over.
        nested: as in `ImageFolder`.
        workers: processes that read; 0 reads in this one.
        on_start: called with the number of images before the first is read.
        on_image: called after each image.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder, or no such split.
        ValueError: it holds no splits, or the built-in set was named.
        OSError: a reading process died.
    """
    if str(data_dir) in BUILT_IN and not data_dir.exists():
        raise ValueError(f"the built-in {data_dir} need no check; give a folder with a folder for each split")
    report = Report()
    folders, hint = split_folders(data_dir), other_level(data_dir)
    names = chosen_splits(folders, split, data_dir, report)
    if not names or (hint and split is None):
        raise ValueError(f"{data_dir} holds no splits; expected {data_dir}/train/CLASS/IMAGE.jpg{hint}")
    images: list[Image] = []
    classes: dict[str, list[str]] = {}
    for name in names:
        classes[name], found = _look_into(data_dir / name, report, nested=nested)
        images += found
    _compare(classes, report)
    on_start(len(images))
    places = _read_all(images, workers, report, on_image)
    _find_doubles(places.values(), report)
    return report


def chosen_splits(names: Sequence[str], split: str | None, data_dir: Path, report: Report) -> list[str]:
    """The splits to look over; several that may be meant by one name are a problem.

    Raises:
        NoSplitError: there is no split of the name asked for.
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


def _look_into(root: Path, report: Report, *, nested: bool) -> tuple[list[str], list[Image]]:
    """Classes and images of one split; classes without images are left out."""
    try:
        if is_database(root):
            return _look_into_database(root, report)
        if is_devkit(root):
            return _look_into_devkit(root, report)
        found = scan_classes(root, nested=nested)
    except (ValueError, PermissionError, FileNotFoundError) as error:
        problem = Problem("database" if is_database(root) else "no classes", str(error))
        (report.notes if role_of(root.name) is None else report.problems).append(problem)
        return [], []
    filled = {name: inside for name, inside in found.items() if inside.images}
    images = [Image(root.name, name, str(root / path)) for name, inside in filled.items() for path in inside.images]
    report.splits.append(Split(root.name, len(found), len(images), sum(inside.others for inside in found.values())))
    folders = [(path, inside) for inside in found.values() for path in inside.unreadable]
    report.problems += [Problem("unreadable folder", f"{path} cannot be read", (path,)) for path, _ in folders]
    cycles = [path for inside in found.values() for path in inside.cycles]
    report.notes += [Problem("link", f"{path} leads back to a folder above it", (path,)) for path in cycles]
    pipes = [path for inside in found.values() for path in inside.irregular]
    report.notes += [Problem("not a file", f"{path} is a pipe, socket or device", (path,)) for path in pipes]
    is_training = role_of(root.name) == "train"
    empty = [Problem("empty class", f"no images in {root / name}") for name in found if name not in filled]
    (report.problems if is_training else report.notes).extend(empty)
    if is_training:
        report.notes += _questions(filled, root)
    return list(filled), images


def _questions(found: Mapping[str, Found], root: Path) -> Iterator[Problem]:
    """What looks odd about the classes of the training split."""
    yield Problem("classes", f"{root.name} has {len(found)}: {listed(list(found))}")
    question = question_folders(found, root)
    if question:
        yield Problem("nested classes", question)
    for twins in similar_folders(found):
        yield Problem("similar classes", alike(twins))
    if len(found) == 1:
        yield Problem("single class", f"{root.name} has only the class {listed(list(found))}; a classifier needs two")


def _compare(classes: Mapping[str, Sequence[str]], report: Report) -> None:
    """Compare every split's classes with those of the training split, or of the first."""
    filled = {name: found for name, found in classes.items() if found}
    first = next((name for name in filled if role_of(name) == "train"), next(iter(filled), None))
    for name, found in filled.items():
        if first is None or name == first:
            continue
        try:
            label_of = match_classes(found, filled[first], name, is_quiet=True)
        except ValueError as error:
            report.problems.append(Problem("other classes", str(error)))
            continue
        missing = missing_classes(filled[first], label_of.values(), name)
        if missing:
            report.notes.append(Problem("missing classes", missing))


def _look_into_devkit(root: Path, report: Report) -> tuple[list[str], list[Image]]:
    from globalvit.data.imagenet_devkit import open_devkit

    source = open_devkit(root)
    images = [Image(root.name, source.classes[source.label(at)], source.name(at)) for at in range(len(source))]
    names = sorted({image.class_name for image in images})
    report.splits.append(Split(root.name, len(names), len(images), 0))
    return names, images


def _look_into_database(root: Path, report: Report) -> tuple[list[str], list[Image]]:
    from globalvit.data.lmdb_source import open_database

    source = open_database(root)
    report.splits.append(Split(root.name, len(source.classes), len(source), 0))
    images = [
        Image(root.name, source.classes[source.label(index)], source.name(index), source.path, source.key(index))
        for index in range(len(source))
    ]
    return list(source.classes), images


def _read_all(
    images: Sequence[Image], workers: int, report: Report, on_image: Callable[[], None]
) -> dict[bytes, list[Image]]:
    """Read every image; returns where each content lies."""
    places: dict[bytes, list[Image]] = defaultdict(list)
    splits = {split.name: split for split in report.splits}
    results = in_processes(_read_one, images, workers)
    for image, (problem, digest) in zip(images, results, strict=True):
        on_image()
        if problem:
            report.problems.append(problem)
            splits[image.split].unreadable += 1
        else:
            places[digest].append(image)
    return places


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


def _read_one(image: Image) -> tuple[Problem | None, bytes]:
    """Read one image; returns what is wrong with it, and a fingerprint of its bytes."""
    try:
        data = image.data()
        read_image(data, image.path)
    except OversizedImage as error:
        return Problem("oversized", str(error), (image.path,)), b""
    except (UnreadableImage, OSError) as error:
        return Problem("unreadable", str(error), (image.path,)), b""
    return None, fingerprint(data)


def fingerprint(data: bytes) -> bytes:
    """The same for the same bytes only."""
    return blake2b(data, digest_size=16).digest()


def _find_doubles(places: Iterable[Sequence[Image]], report: Report) -> None:
    """Images in several splits make a score too good; images in several classes have a wrong label somewhere."""
    for same in places:
        paths = tuple(image.path for image in same)
        splits = sorted({image.split for image in same})
        classes = sorted({image.class_name for image in same})
        if len(splits) > 1:
            report.problems.append(Problem("leak", f"the same image is in {' and '.join(splits)}", paths))
        if len(classes) > 1:
            report.problems.append(Problem("two labels", f"the same image is in class {listed(classes)}", paths))
        if len(splits) == len(classes) == 1:
            report.repeated += len(same) - 1


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
    """Name the images of which it is not clear which frame their annotations are for, as `frames.questions` does."""
    for kind, text, images in questions(sights, what):
        yield Problem(kind, text, images)


def default_workers() -> int:
    """One process for each processor this process may use, at most 8."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)

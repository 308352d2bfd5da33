"""Looks over images and label maps: what cannot be read, what does not fit together, classes that never occur.

Every file is read whole, as training reads it. Needs no torch, so it starts at once.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from globalvit.data.check import Image, Problem, Report, Split, find_leaks, fingerprint, frame_problems, in_processes
from globalvit.data.class_table import resolve_classes
from globalvit.data.frames import Sight, is_ambiguous
from globalvit.data.image_folder import is_database, listed, split_folders
from globalvit.data.images import OversizedImage, UnreadableImage, WrongLabels, look
from globalvit.data.label_images import IGNORE, LabelReader, WrongSize, look_at_pair, read_labeled
from globalvit.data.mask_folder import (
    SPLIT_NAMES,
    Folders,
    MaskListing,
    find_folders,
    find_splits,
    label_file,
    reader_of,
)

# Errors of a sample → the kind of problem they are; the first that fits counts.
KINDS = {
    OversizedImage: "oversized",
    WrongSize: "other size",
    WrongLabels: "wrong labels",
    UnreadableImage: "unreadable",
    OSError: "unreadable",
}


@dataclass(frozen=True, slots=True)
class Pair:
    """An image, its label map, and what reads the latter."""

    image: Image
    labels: Image
    reader: LabelReader


@dataclass(frozen=True, slots=True)
class Finding:
    """What reading a pair showed.

    Attributes:
        problem: what is wrong.
        digest: a fingerprint of the image.
        labels: which of them occur.
        sight: what the image shows of the frame that labels are for.
    """

    problem: Problem | None
    digest: bytes = b""
    labels: frozenset[int] = frozenset()
    sight: Sight | None = None


def is_mask_set(data_dir: Path) -> bool:
    """Whether a folder holds images and label maps, in folders or in databases.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
    """
    return bool(find_splits(data_dir) or _databases(data_dir))


def check_masks(
    data_dir: Path,
    *,
    num_classes: int | None = None,
    reduce_zero_label: bool = False,
    class_file: str | None = None,
    workers: int = 0,
    on_start: Callable[[int], None] = lambda _: None,
    on_image: Callable[[], None] = lambda: None,
) -> Report:
    """Look over all splits of a set for segmentation.

    Args:
        data_dir: its folder.
        num_classes: as `open_masks` takes it.
        reduce_zero_label: likewise.
        class_file: likewise.
        workers: processes that read; 0 reads in this one.
        on_start: called with the number of images before the first is read.
        on_image: called after each image.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
        ValueError: it holds no splits, or its classes are not known.
        OSError: a reading process died.
    """
    report = Report()
    options: dict[str, Any] = {"num_classes": num_classes, "class_file": class_file}
    pairs: list[Pair] = []
    classes: tuple[str, ...] = ()
    for split in find_splits(data_dir):
        table = resolve_classes(data_dir, **options)
        classes = table.names
        pairs += _look_into(find_folders(data_dir, split), split, reader_of(table, reduce_zero_label), report)
    for root in _databases(data_dir):
        classes, found = _look_into_database(root, report, **options, reduce_zero_label=reduce_zero_label)
        pairs += found
    if not report.splits:
        raise ValueError(
            f"{data_dir} holds no splits; expected {data_dir}/images/train and {data_dir}/annotations/train"
        )
    on_start(len(pairs))
    seen = _read_all(pairs, workers, report, on_image)
    report.problems += _unused_classes(seen, classes, report)
    return report


def _look_into(folders: Folders, split: str, reader: LabelReader, report: Report) -> list[Pair]:
    """The pairs of one split; what lacks its counterpart is a problem."""
    listing = MaskListing(folders)
    images, labels = folders
    report.splits.append(Split(split, reader.total, len(listing.images), listing.other_files))
    if not listing.images:
        report.problems.append(Problem("no images", f"no images in {images}"))
    for kind, names, root in (
        ("no labels", listing.without, images),
        ("no image", listing.unused, labels),
        ("shared labels", listing.doubled, labels),
    ):
        report.problems += [Problem(kind, str(root / name), (str(root / name),)) for name in names]
    without = set(listing.without)
    return [
        Pair(Image(split, "", str(images / name)), Image(split, "", str(labels / label_file(name))), reader)
        for name in listing.images
        if name not in without
    ]


def _look_into_database(root: Path, report: Report, **options: Any) -> tuple[tuple[str, ...], list[Pair]]:
    """Classes and pairs of one database."""
    from globalvit.data.lmdb_masks import open_mask_database

    source = open_mask_database(root, **options)
    report.splits.append(Split(root.name, len(source.classes), len(source), 0))
    pairs = [
        Pair(
            Image(root.name, "", source.name(index), source.path, source.key(index)),
            Image(root.name, "", source.label_name(index), source.path, source.label_key(index)),
            source.reader,
        )
        for index in range(len(source))
    ]
    return source.classes, pairs


def _databases(data_dir: Path) -> list[Path]:
    """Databases of images and label maps."""
    roots = [data_dir / name for name in split_folders(data_dir) if is_database(data_dir / name)]
    if not roots:
        return []
    from globalvit.data.lmdb_masks import holds_masks

    return [root for root in roots if holds_masks(root)]


def _read_all(pairs: Sequence[Pair], workers: int, report: Report, on_image: Callable[[], None]) -> dict[str, set[int]]:
    """Read every pair; returns the labels that occur in each split."""
    splits = {split.name: split for split in report.splits}
    places: dict[bytes, list[Image]] = defaultdict(list)
    seen: dict[str, set[int]] = {name: set() for name in splits}
    sights: dict[str, list[Sight]] = defaultdict(list)
    for pair, finding in zip(pairs, in_processes(_read_one, pairs, workers), strict=True):
        on_image()
        if finding.problem:
            report.problems.append(finding.problem)
            splits[pair.image.split].unreadable += finding.problem.kind == KINDS[UnreadableImage]
        else:
            places[finding.digest].append(pair.image)
            seen[pair.image.split] |= finding.labels
            if finding.sight is not None:
                sights[pair.image.split].append(finding.sight)
    find_leaks(places.values(), report)
    for split, found in sights.items():
        report.problems += frame_problems(found, f"the label maps of {split}")
    return seen


def _read_one(pair: Pair) -> Finding:
    image, labels = pair.image, pair.labels
    try:
        data, label_data = image.data(), labels.data()
        _, labels_HW = read_labeled(data, label_data, pair.reader, image.path, labels.path)
    except tuple(KINDS) as error:
        kind = next(kind for of, kind in KINDS.items() if isinstance(error, of))
        return Finding(Problem(kind, str(error), (image.path, labels.path)))
    present = np.flatnonzero(np.bincount(labels_HW.ravel(), minlength=IGNORE + 1)[:IGNORE])
    orientation, stored = look(data)
    sight = None
    if orientation != 1:
        sight = Sight(image.path, look_at_pair(data, label_data), is_ambiguous(orientation, stored))
    return Finding(None, fingerprint(data), frozenset(present.tolist()), sight)


def _unused_classes(seen: Mapping[str, set[int]], classes: Sequence[str], report: Report) -> Iterator[Problem]:
    """Classes of which training, or the first split, shows no pixel: nothing is learned of them."""
    first = next((name for name in SPLIT_NAMES["train"] if name in seen), report.splits[0].name)
    unused = [name for label, name in enumerate(classes) if label not in seen[first]]
    if unused:
        yield Problem("unused class", f"{first} has no pixel of {listed(unused)}")

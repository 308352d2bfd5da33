"""Check images and label maps: what cannot be read, what does not fit together, classes that never occur.

Every file is read whole, as training reads it. Needs no torch, so it starts at once.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from globalvit.data.common.checks import (
    Image,
    Problem,
    Report,
    Split,
    chosen_splits,
    find_leaks,
    fingerprint,
    frame_problems,
    in_processes,
)
from globalvit.data.common.folders import is_database, listed, split_folders
from globalvit.data.common.images import OversizedImage, UnreadableImage, WrongLabels
from globalvit.data.common.orientation import Sight
from globalvit.data.common.splits import role_of
from globalvit.data.segmentation.class_masks import open_class_masks
from globalvit.data.segmentation.class_table import reader_of, resolve_classes
from globalvit.data.segmentation.dataset import Folders, MaskListing, find_folders, find_splits, may_hold_maps
from globalvit.data.segmentation.label_images import IGNORE, LabelReader, Reads, WrongSize, read_labeled, sight_of_pair
from globalvit.data.segmentation.registry import MasksByClass, find_format
from globalvit.data.segmentation.survey import look_over, settle_reader
from globalvit.data.storage.shard_masks import holds_masks, open_shard_masks
from globalvit.data.storage.tar_files import shard_splits

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
    reader: Reads


@dataclass(frozen=True, slots=True)
class Finding:
    """What reading a pair showed.

    Attributes:
        problem: what is wrong.
        digest: a fingerprint of the image.
        labels: which of them occur.
        ignored: pixels that are ignored.
        pixels: all pixels.
        sight: what the image shows of the frame that labels are for.
    """

    problem: Problem | None
    digest: bytes = b""
    labels: frozenset[int] = frozenset()
    ignored: int = 0
    pixels: int = 0
    sight: Sight | None = None


@dataclass(slots=True)
class Tally:
    """What the label maps of one split hold.

    Attributes:
        maps: label maps read.
        labels: labels that occur.
        ignored: pixels that are ignored.
        pixels: all pixels.
        blank: label maps in which every pixel is ignored.
        two: label maps that hold only class 0 and pixels to ignore.
        both: label maps that hold class 1 and pixels to ignore.
        sights: what the images that EXIF turns show of the frame that labels are for.
    """

    maps: int = 0
    labels: set[int] = field(default_factory=set)
    ignored: int = 0
    pixels: int = 0
    blank: int = 0
    two: int = 0
    both: int = 0
    sights: list[Sight] = field(default_factory=list)

    def add(self, finding: Finding) -> None:
        """Count a label map."""
        self.labels |= finding.labels
        if finding.sight is not None:
            self.sights.append(finding.sight)
        if not finding.pixels:
            return
        self.maps += 1
        self.ignored += finding.ignored
        self.pixels += finding.pixels
        self.blank += finding.ignored == finding.pixels
        self.two += finding.labels == {0} and finding.ignored > 0
        self.both += 1 in finding.labels and finding.ignored > 0


def is_mask_set(data_dir: Path) -> bool:
    """Whether a folder holds images and label maps, in folders, databases or shards.

    Raises:
        FileNotFoundError, NotADirectoryError: the folder does not exist.
    """
    folders = (find_folders(data_dir, name, exact=True) for name in find_splits(data_dir))
    return any(may_hold_maps(found.labels) for found in folders) or bool(_databases(data_dir) or _shards(data_dir))


def check_masks(
    data_dir: Path,
    *,
    num_classes: int | None = None,
    reduce_zero_label: bool = False,
    class_file: str | None = None,
    ignore_label: int | None = None,
    form: str | None = None,
    split: str | None = None,
    workers: int = 0,
    on_start: Callable[[int], None] = lambda _: None,
    on_image: Callable[[], None] = lambda: None,
) -> Report:
    """Look over all splits of a set for segmentation.

    Args:
        data_dir: its folder.
        num_classes: as `open_masks` takes it.
        reduce_zero_label: as `open_masks` takes it.
        class_file: as `open_masks` takes it.
        ignore_label: as `open_masks` takes it.
        form: name of the format; None finds it.
        split: the only one to look over.
        workers: processes that read; 0 reads in this one.
        on_start: called with the number of images before the first is read.
        on_image: called after each image.

    Raises:
        FileNotFoundError, NotADirectoryError: the folder does not exist.
        ValueError: it holds no splits, or its classes are not known.
        OSError: a reading process died.
    """
    report = Report()
    options: dict[str, Any] = {"num_classes": num_classes, "class_file": class_file}
    labels: dict[str, Any] = {"reduce_zero_label": reduce_zero_label, "ignore": ignore_label}
    pairs, classes = list[Pair](), tuple[str, ...]()
    roots = {root.name: root for root in _databases(data_dir)}
    splits, shards = find_splits(data_dir), _shards(data_dir)
    is_by_class = _note_format(data_dir, form, report) if splits else False
    is_binary: bool | None = None
    # Training decides how all label maps are read.
    chosen = chosen_splits([*splits, *roots, *shards], split, data_dir, report)
    for name in sorted(chosen, key=lambda one: role_of(one) != "train"):
        if name in roots:
            classes, found = _look_into_database(roots[name], report, **options, **labels, is_binary=is_binary)
        elif name in shards:
            given = options | labels | {"is_binary": is_binary}
            classes, found = _look_into_shards(shards[name], data_dir, name, report, **given)
        elif is_by_class:
            classes, found = _look_into_class_masks(data_dir, name, classes, report, **options)
        else:
            classes, found = _look_into_maps(data_dir, name, options, labels, report, is_binary=is_binary)
        if is_binary is None and found and isinstance(found[0].reader, LabelReader):
            is_binary = found[0].reader.is_binary
        pairs += found
    _check_splits(report, data_dir)
    on_start(len(pairs))
    for name, tally in _read_all(pairs, workers, report, on_image).items():
        _judge(name, tally, classes, report)
    return report


def _check_splits(report: Report, data_dir: Path) -> None:
    if not report.splits:
        raise ValueError(
            f"{data_dir} holds no splits; expected {data_dir}/images/train and {data_dir}/annotations/train"
        )


def _look_into_maps(
    data_dir: Path,
    split: str,
    options: dict[str, Any],
    labels: dict[str, Any],
    report: Report,
    *,
    is_binary: bool | None,
) -> tuple[tuple[str, ...], list[Pair]]:
    """Classes and pairs of one split with one label map per image."""
    table = resolve_classes(data_dir, **options)
    folders = find_folders(data_dir, split, exact=True)
    reader = reader_of(table, **labels)
    return table.names, _look_into(folders, split, reader, table.names, report, is_binary=is_binary)


def _note_format(data_dir: Path, form: str | None, report: Report) -> bool:
    """Note the format of a folder; returns whether it has one mask per class."""
    chosen = find_format(data_dir, form)
    if chosen is not None:
        report.notes.append(Problem("format", f"{chosen.name}, {chosen.describe(data_dir)}"))
    return chosen is not None and chosen.name == MasksByClass.name


def _look_into(
    folders: Folders,
    split: str,
    reader: LabelReader,
    classes: Sequence[str],
    report: Report,
    *,
    is_binary: bool | None,
) -> list[Pair]:
    """The pairs of one split; what has no counterpart is a problem."""
    listing = MaskListing(folders)
    images, labels = folders
    report.splits.append(Split(split, reader.total, len(listing.images), listing.other_files))
    if not listing.images:
        report.problems.append(Problem("no images", f"no images in {images}"))
    if listing.without:
        text = f"{len(listing.without)} of {len(listing.images)} images of {split} have none; {listing.remedy()}"
        report.notes.append(Problem("no labels", text))
    for kind, names, root in (
        ("no labels", listing.without, images),
        ("no image", listing.unused, labels),
        ("shared labels", listing.doubled, labels),
    ):
        report.problems += [Problem(kind, str(root / name), (str(root / name),)) for name in names]
    report.problems += [
        Problem("several label maps", f"{listed(names)} in {labels} are of one image; remove all but one")
        for names in listing.several
    ]
    report.problems += [Problem("unreadable folder", f"{path} cannot be read", (path,)) for path in listing.unreadable]
    without = set(listing.without)
    pairs = [
        (image, label) for image, label in zip(listing.images, listing.labels, strict=True) if image not in without
    ]
    reader = _settled(reader, [labels / label for _, label in pairs], split, classes, report, is_binary)
    return [
        Pair(Image(split, "", str(images / image)), Image(split, "", str(labels / label)), reader)
        for image, label in pairs
    ]


def _look_into_class_masks(
    data_dir: Path, split: str, classes: Sequence[str], report: Report, **options: Any
) -> tuple[tuple[str, ...], list[Pair]]:
    """Classes and pairs of one split with one mask per class."""
    try:
        source = open_class_masks(data_dir, split, classes=classes or None, exact=True, **options)
    except ValueError as error:
        report.problems.append(Problem("wrong labels", str(error)))
        report.splits.append(Split(split, len(classes), 0, 0))
        return tuple(classes), []
    report.splits.append(Split(split, len(source.classes), len(source), 0))
    pairs = [
        Pair(Image(split, "", source.name(at)), Image(split, "", source.label_name(at)), source.reader(at))
        for at in range(len(source))
    ]
    return source.classes, pairs


def _settled(
    reader: LabelReader,
    paths: Sequence[Path],
    split: str,
    classes: Sequence[str],
    report: Report,
    is_binary: bool | None,
) -> LabelReader:
    """The reader that training takes; that it refuses the label maps is a problem."""
    try:
        values = look_over(reader, len(paths), lambda index: paths[index].read_bytes())
        return settle_reader(reader, values, split, classes, is_binary=is_binary)
    except ValueError as error:
        report.problems.append(Problem("wrong labels", str(error)))
        return reader


def _look_into_database(root: Path, report: Report, **options: Any) -> tuple[tuple[str, ...], list[Pair]]:
    """Classes and pairs of one database."""
    from globalvit.data.storage.lmdb_masks import open_mask_database

    try:
        source = open_mask_database(root, **options)
    except ValueError as error:
        report.problems.append(Problem("database", str(error)))
        report.splits.append(Split(root.name, 0, 0, 0))
        return (), []
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


def _look_into_shards(
    paths: list[Path], data_dir: Path, split: str, report: Report, **options: Any
) -> tuple[tuple[str, ...], list[Pair]]:
    """Classes and pairs of the shards of one split."""
    try:
        source = open_shard_masks(paths, data_dir / split, data_dir, **options)
    except (ValueError, OSError) as error:
        report.problems.append(Problem("shards", str(error)))
        report.splits.append(Split(split, 0, 0, 0))
        return (), []
    report.splits.append(Split(split, len(source.classes), len(source), 0))
    images, maps = (
        [Image(split, "", members.place(at), span=members.span(at)) for at in range(len(source))]
        for members in (source.images, source.maps)
    )
    return source.classes, [Pair(image, labels, source.reader) for image, labels in zip(images, maps, strict=True)]


def _shards(data_dir: Path) -> dict[str, list[Path]]:
    """The shards of every split that hold images with label maps; none beside folders of these."""
    if find_splits(data_dir):
        return {}
    return {name: paths for name, paths in shard_splits(data_dir).items() if holds_masks(paths)}


def _databases(data_dir: Path) -> list[Path]:
    """Databases of images and label maps."""
    roots = [data_dir / name for name in split_folders(data_dir) if is_database(data_dir / name)]
    if not roots:
        return []
    from globalvit.data.storage.lmdb_masks import holds_masks

    return [root for root in roots if holds_masks(root)]


def _read_all(pairs: Sequence[Pair], workers: int, report: Report, on_image: Callable[[], None]) -> dict[str, Tally]:
    """Read every pair; returns what the label maps of each split hold."""
    splits = {split.name: split for split in report.splits}
    places: dict[bytes, list[Image]] = defaultdict(list)
    tallies = {name: Tally() for name in splits}
    for pair, finding in zip(pairs, in_processes(_read_one, pairs, workers), strict=True):
        on_image()
        tallies[pair.image.split].add(finding)
        if finding.problem:
            report.problems.append(finding.problem)
            splits[pair.image.split].unreadable += finding.problem.kind == KINDS[UnreadableImage]
        else:
            places[finding.digest].append(pair.image)
    find_leaks(places.values(), report)
    return tallies


def _read_one(pair: Pair) -> Finding:
    image, labels = pair.image, pair.labels
    try:
        data, label_data = image.data(), labels.data()
        _, labels_HW = read_labeled(data, label_data, pair.reader, image.path, labels.path)
    except tuple(KINDS) as error:
        kind = next(kind for of, kind in KINDS.items() if isinstance(error, of))
        problem = Problem(kind, str(error), (image.path, labels.path))
        # The classes that a file with a wrong label shows in addition are there.
        return Finding(problem, labels=_known(pair) if kind == KINDS[WrongLabels] else frozenset())
    counts = np.bincount(labels_HW.ravel(), minlength=IGNORE + 1)
    present = frozenset(np.flatnonzero(counts[:IGNORE]).tolist())
    sight = sight_of_pair(image.path, data, label_data)
    return Finding(None, fingerprint(data), present, int(counts[IGNORE]), labels_HW.size, sight)


def _known(pair: Pair) -> frozenset[int]:
    """The labels in a file that some class has."""
    if not isinstance(pair.reader, LabelReader):
        return frozenset()
    values = pair.reader.values(pair.labels.data(), pair.labels.path) or []
    found = {pair.reader.label_of(value) for value in values if value <= IGNORE}
    return frozenset(label for label in found if label < pair.reader.total)


def _judge(split: str, tally: Tally, classes: Sequence[str], report: Report) -> None:
    """What is odd about the label maps of a split as a whole."""
    report.problems += frame_problems(tally.sights, f"the label maps of {split}")
    if tally.ignored:
        text = f"{100 * tally.ignored / tally.pixels:.1f} % of the pixels of {split} are ignored"
        is_all = tally.ignored == tally.pixels
        (report.problems if is_all else report.notes).append(Problem("ignored pixels", text))
    if tally.blank:
        text = f"every pixel is ignored in {tally.blank} of {tally.maps} label maps of {split}"
        report.notes.append(Problem("ignored label maps", text))
    if tally.two and not tally.both:
        text = (
            f"{tally.two} of {tally.maps} label maps of {split} hold only 0 and pixels to ignore ({IGNORE}); if "
            f"{IGNORE} marks an object in them, make the label maps alike"
        )
        (report.problems if len(classes) == 2 else report.notes).append(Problem("two values", text))
    if role_of(split) == "train":
        unused = [name for label, name in enumerate(classes) if label not in tally.labels]
        if unused:
            report.notes.append(Problem("unused class", f"{split} has no pixel of {listed(unused)}"))
        if len(classes) == 1:
            report.notes.append(Problem("single class", f"{split} has only the class {listed(classes)}"))

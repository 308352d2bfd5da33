"""Check a COCO data set: what contradicts itself, objects nobody can see, images that are not what was labeled.

Every image is read whole, as training reads it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from globalvit.data.check import (
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
from globalvit.data.class_folders import listed
from globalvit.data.coco import CocoSource, CompressedMask, OtherSize, image_folder, open_table, read_sized
from globalvit.data.coco_folder import ANNOTATIONS, annotation_files
from globalvit.data.coco_json import CocoTable, missing_categories, other_ids
from globalvit.data.frames import Sight, sight_of
from globalvit.data.images import OversizedImage, UnreadableImage, look
from globalvit.data.splits import role_of

# Errors of an image → the kind of problem they are; the first that fits counts.
KINDS = {
    OversizedImage: "oversized",
    OtherSize: "other size",
    UnreadableImage: "unreadable",
    OSError: "unreadable",
}
HEAD_BYTES = 65536
# What the tools write into the head of a file → their names.
TOOLS = {
    b"roboflow": "Roboflow",
    b"cvat": "CVAT",
    b"label studio": "Label Studio",
    b"label-studio": "Label Studio",
    b"labelme": "labelme",
    b"supervisely": "Supervisely",
    b"datumaro": "Datumaro",
    b"makesense": "MakeSense",
    b"make-sense": "MakeSense",
    b"pycococreator": "pycococreator",
    b"coco-annotator": "COCO Annotator",
    b"rectlabel": "RectLabel",
}


@dataclass(frozen=True, slots=True)
class Labelled:
    """An image and the height and width that the file of annotations states."""

    image: Image
    size: tuple[int, int]
    stated_by: str


def check_coco(
    data_dir: Path,
    *,
    crowd_as_instances: bool = False,
    split: str | None = None,
    workers: int = 0,
    on_start: Callable[[int], None] = lambda _: None,
    on_image: Callable[[], None] = lambda: None,
) -> Report:
    """Look over all splits of a COCO data set.

    Args:
        data_dir: a folder with `annotations/instances_SPLIT.json`.
        crowd_as_instances: read annotations with `iscrowd` 1 as single objects.
        split: the only one to look over.
        workers: processes that read images; 0 reads in this one.
        on_start: called with the number of images before the first is read.
        on_image: called after each image.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
        ValueError: it holds no annotations.
        OSError: a reading process died.
    """
    files = annotation_files(data_dir)
    if not files:
        raise ValueError(f"{data_dir} holds no annotations; expected {data_dir}/{ANNOTATIONS}/instances_train.json")
    report = Report()
    images: list[Labelled] = []
    tables: dict[str, CocoTable] = {}
    for name in chosen_splits(list(files), split, data_dir, report):
        path = files[name]
        try:
            table = open_table(path, crowd_as_instances=crowd_as_instances)
        except (ValueError, OSError) as error:
            report.problems.append(Problem("annotations", str(error), (str(path),)))
            continue
        tables[name] = table
        _judge(name, table, report)
        images += _images(data_dir, name, table, report)
    _compare(tables, report)
    on_start(len(images))
    _read_all(images, workers, report, on_image)
    return report


def _judge(split: str, table: CocoTable, report: Report) -> None:
    """What is odd about the annotations of a file that can be read."""
    path = (str(table.path),)
    report.problems += [Problem("left out", f"{table.path}: {text}", path) for text in table.dropped]
    tool = _writer_of(table.path)
    if tool:
        report.notes.append(Problem("tool", f"{split} was written by {tool}", path))
    if not len(table.ids):
        report.problems.append(Problem("no objects", f"{split}: the file holds no annotations", path))
    for asked in table.questions:
        (report.problems if asked.is_grave else report.notes).append(
            Problem(asked.kind, f"{table.path}: {asked.text}", path)
        )
    if role_of(split) == "train":
        used = set(table.labels[~table.crowd].tolist())
        unused = [name for label, name in enumerate(table.classes) if label not in used]
        if unused:
            report.notes.append(Problem("unused class", f"{split} has no object of {listed(unused)}", path))
    missing = table.ids[~table.masks.present]
    if 0 < len(missing) < len(table.ids):
        text = f"{split}: {len(missing)} of {len(table.ids)} annotations have no mask, the first is {missing[0]}"
        report.problems.append(Problem("no mask", text, path))


def _compare(tables: Mapping[str, CocoTable], report: Report) -> None:
    """Compare every split's categories with those of the training split, or of the first."""
    first = next((name for name in tables if role_of(name) == "train"), next(iter(tables), None))
    for name, table in tables.items():
        if first is None or name == first:
            continue
        expected = tables[first]
        try:
            table.for_classes(expected.classes, expected.category_ids)
        except ValueError as error:
            report.problems.append(Problem("other classes", str(error), (str(table.path),)))
            continue
        missing = missing_categories(table.classes, expected.classes, name)
        renumbered = other_ids(table, expected.classes, expected.category_ids, name)
        for kind, text in (("missing classes", missing), ("other ids", renumbered)):
            if text:
                report.notes.append(Problem(kind, text, (str(table.path),)))


def _writer_of(path: Path) -> str | None:
    """The tool whose name the head of a file mentions."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES).lower()
    return next((name for mark, name in TOOLS.items() if mark in head), None)


def _images(data_dir: Path, split: str, table: CocoTable, report: Report) -> list[Labelled]:
    """The images of a split; damaged masks are problems."""
    report.splits.append(Split(split, len(table.classes), len(table.image_ids), 0))
    try:
        root = image_folder(data_dir, split, table)
    except (FileNotFoundError, ValueError) as error:
        kind = "no images" if isinstance(error, FileNotFoundError) else "annotations"
        report.problems.append(Problem(kind, str(error), (str(table.path),)))
        return []
    source = CocoSource(table, root)
    report.problems += _damaged_masks(table, source)
    sizes = np.asarray(source.sizes).tolist()
    return [
        Labelled(Image(split, "", source.name(index)), (height, width), str(table.path))
        for index, (height, width) in enumerate(sizes)
    ]


def _damaged_masks(table: CocoTable, source: CocoSource) -> Iterator[Problem]:
    """Run lengths that cannot be read; polygons cannot be damaged."""
    for index in range(len(source)):
        size = (int(table.sizes[index, 0]), int(table.sizes[index, 1]))
        for row in range(int(table.first[index]), int(table.first[index + 1])):
            packed = table.masks[row]
            if not isinstance(packed, bytes):
                continue
            try:
                CompressedMask(size, packed).bitmap()
            except (ValueError, RuntimeError) as error:
                text = f"{source.name(index)}: annotation {table.ids[row]} has damaged run lengths: {error}"
                yield Problem("damaged mask", text, (source.name(index),))


def _read_all(images: Sequence[Labelled], workers: int, report: Report, on_image: Callable[[], None]) -> None:
    """Read every image; those that lie in several splits make a score too good."""
    splits: Mapping[str, Split] = {split.name: split for split in report.splits}
    places: dict[bytes, list[Image]] = defaultdict(list)
    sights: dict[str, list[Sight]] = defaultdict(list)
    for labeled, (problem, digest, sight) in zip(images, in_processes(_read_one, images, workers), strict=True):
        on_image()
        if problem:
            report.problems.append(problem)
            splits[labeled.image.split].unreadable += problem.kind == KINDS[OSError]
        else:
            places[digest].append(labeled.image)
            if sight is not None:
                sights[labeled.stated_by].append(sight)
    find_leaks(places.values(), report)
    for path, found in sights.items():
        report.problems += frame_problems(found, f"the annotations of {path}")


def _read_one(labeled: Labelled) -> tuple[Problem | None, bytes, Sight | None]:
    """Read one image; returns what is wrong with it, a fingerprint of its bytes, and what it shows of the frame."""
    path = labeled.image.path
    try:
        data = labeled.image.data()
        _, orientation = read_sized(data, path, labeled.size, labeled.stated_by)
    except tuple(KINDS) as error:
        kind = next(kind for of, kind in KINDS.items() if isinstance(error, of))
        return Problem(kind, str(error), (path,)), b"", None
    sight = sight_of(path, orientation, look(data, path)[1], labeled.size) if orientation != 1 else None
    return None, fingerprint(data), sight

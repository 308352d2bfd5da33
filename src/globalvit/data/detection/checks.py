"""Check images with objects: what contradicts itself, objects nobody can see, images that are not what was labeled.

Every image is read whole, as training reads it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

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
from globalvit.data.common.folders import listed, split_folders
from globalvit.data.common.formats import choose_format
from globalvit.data.common.images import OversizedImage, UnreadableImage, look
from globalvit.data.common.orientation import Sight, sight_of
from globalvit.data.common.splits import role_of
from globalvit.data.detection.coco import ANNOTATIONS, given_file, open_file
from globalvit.data.detection.coco_json import CocoTable, missing_categories, other_ids
from globalvit.data.detection.coco_values import LabelsError
from globalvit.data.detection.dataset import CocoSource, OtherSize, read_sized
from globalvit.data.detection.formats import Annotated
from globalvit.data.detection.registry import FORMATS
from globalvit.data.detection.run_lengths import CompressedMask

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
class Stated:
    """An image and the height and width that the file of annotations states.

    Attributes:
        image: where it lies.
        size: height and width.
        stated_by: the file that states them.
        annotations: what has one rule for images that EXIF turns; empty where the format is for upright images.
    """

    image: Image
    size: tuple[int, int]
    stated_by: str
    annotations: str


def check_detection(
    data_dir: Path,
    *,
    form: str | None = None,
    annotations: Mapping[str, str] | None = None,
    crowd_as_instances: bool = False,
    split: str | None = None,
    workers: int = 0,
    on_start: Callable[[int], None] = lambda _: None,
    on_image: Callable[[], None] = lambda: None,
) -> Report:
    """Look over all splits of a set of images with objects.

    Args:
        data_dir: a folder in one of the formats in `registry`.
        form: name of the format; None finds it.
        annotations: files of COCO's annotations by split, in place of those that are found.
        crowd_as_instances: read annotations with `iscrowd` 1 as single objects.
        split: the only one to look over.
        workers: processes that read images; 0 reads in this one.
        on_start: called with the number of images before the first is read.
        on_image: called after each image.

    Raises:
        FileNotFoundError, NotADirectoryError: the folder does not exist.
        ValueError: it holds no annotations, or fits several formats.
        OSError: a reading process died.
    """
    report = Report()
    opened = _files_given(data_dir, annotations or {}, crowd_as_instances)
    if not opened:
        split_folders(data_dir)
        chosen = choose_format(FORMATS, data_dir, form)
        if chosen is None:
            raise ValueError(f"{data_dir} holds no annotations; expected {data_dir}/{ANNOTATIONS}/instances_train.json")
        report.notes.append(Problem("format", f"{chosen.name}, {chosen.describe(data_dir)}"))
        opened = {
            name: partial(chosen.open, data_dir, name, crowd_as_instances=crowd_as_instances)
            for name in chosen.splits(data_dir)
        }
    images: list[Stated] = []
    tables: dict[str, CocoTable] = {}
    for name in chosen_splits(list(opened), split, data_dir, report):
        try:
            found = opened[name]()
        except (ValueError, OSError) as error:
            files = (error.path,) if isinstance(error, LabelsError) else ()
            report.problems.append(Problem("annotations", str(error), files))
            continue
        tables[name] = found.table
        _judge(name, found.table, report)
        images += _images(name, found, report)
    _compare(tables, report)
    on_start(len(images))
    _read_all(images, workers, report, on_image)
    return report


def _files_given(
    data_dir: Path, annotations: Mapping[str, str], crowd_as_instances: bool
) -> dict[str, Callable[[], Annotated]]:
    """What opens the files of annotations that the user named, by split."""
    files = {split: given_file(data_dir, Path(name)) for split, name in annotations.items()}
    return {
        split: partial(open_file, path, data_dir, split, crowd_as_instances=crowd_as_instances)
        for split, path in files.items()
    }


def _judge(split: str, table: CocoTable, report: Report) -> None:
    """What is odd about the annotations of a file that can be read."""
    path = (str(table.path),)
    report.problems += [Problem("left out", f"{table.path}: {text}", path) for text in table.dropped]
    without = sum(not source for source in table.sources or ())
    if without:
        text = f"{split}: {without} of {len(table.names)} images have no file of labels and show no objects"
        report.notes.append(Problem("no label file", text))
    tool = _writer_of(table.path) if table.path.is_file() else None
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


def _images(split: str, found: Annotated, report: Report) -> list[Stated]:
    """The images of a split; damaged masks are problems."""
    table = found.table
    report.splits.append(Split(split, len(table.classes), len(table.image_ids), 0))
    try:
        root = found.find_root()
    except (FileNotFoundError, ValueError) as error:
        kind = "no images" if isinstance(error, FileNotFoundError) else "annotations"
        report.problems.append(Problem(kind, str(error), (str(table.path),)))
        return []
    source = CocoSource(table, root)
    report.problems += _damaged_masks(table, source)
    sizes = np.asarray(source.sizes).tolist()
    annotations = "" if table.is_upright else str(table.path)
    images = [Image(split, "", source.place(index), span=source.span(index)) for index in range(len(source))]
    return [
        Stated(image, (height, width), table.stated_by(index), annotations)
        for index, (image, (height, width)) in enumerate(zip(images, sizes, strict=True))
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


def _read_all(images: Sequence[Stated], workers: int, report: Report, on_image: Callable[[], None]) -> None:
    """Read every image; those that lie in several splits make a score too good."""
    splits: Mapping[str, Split] = {split.name: split for split in report.splits}
    places: dict[bytes, list[Image]] = defaultdict(list)
    sights: dict[tuple[str, str], list[Sight]] = defaultdict(list)
    for stated, (problem, digest, sight) in zip(images, in_processes(_read_one, images, workers), strict=True):
        on_image()
        if problem:
            report.problems.append(problem)
            splits[stated.image.split].unreadable += problem.kind == KINDS[OSError]
        else:
            places[digest].append(stated.image)
            if sight is not None and stated.annotations:
                sights[stated.image.split, stated.annotations].append(sight)
    find_leaks(places.values(), report)
    for (_, path), found in sights.items():
        report.problems += frame_problems(found, f"the annotations of {path}")


def _read_one(stated: Stated) -> tuple[Problem | None, bytes, Sight | None]:
    """Read one image; returns what is wrong with it, a fingerprint of its bytes, and what it shows of the frame."""
    path = stated.image.path
    try:
        data = stated.image.data()
        _, orientation = read_sized(data, path, stated.size, stated.stated_by)
    except tuple(KINDS) as error:
        kind = next(kind for of, kind in KINDS.items() if isinstance(error, of))
        return Problem(kind, str(error), (path,)), b"", None
    sight = sight_of(path, orientation, look(data, path)[1], stated.size) if orientation != 1 else None
    return None, fingerprint(data), sight

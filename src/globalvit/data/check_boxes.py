"""Check the objects of a COCO file as a whole: boxes that cannot be in pixels, crowds, and the tool that wrote it."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from globalvit.data.coco_json import CocoTable

# Above these shares of the objects something is wrong with all of them.
MOST_THIN, MOST_OUTSIDE, MOST_CROWDS = 0.1, 0.05, 0.5
# How far in pixels a box may reach over the edge, as rounding makes it.
ROUNDING = 1.0
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


class OddObjects(NamedTuple):
    """Something odd about many objects; `is_grave` where a model would learn the wrong thing."""

    kind: str
    text: str
    is_grave: bool


def odd_objects(table: CocoTable) -> Iterator[OddObjects]:
    """What is odd about the objects of a file, as shares of all."""
    total = len(table.ids)
    if not total:
        yield OddObjects("no objects", "the file holds no annotations", True)
        return
    crowds = int(table.crowd.sum())
    if crowds:
        text = f"{crowds} of {total} objects are crowds (iscrowd 1), which are not learned"
        yield OddObjects("crowds", text, crowds >= MOST_CROWDS * total)
    sides = table.boxes[:, 2:] - table.boxes[:, :2]
    thin = np.asarray((sides < 1).any(1))
    if thin.any():
        text = f"{thin.sum()} of {total} boxes are thinner than a pixel, first annotation {_first(table, thin)}"
        is_grave = thin.mean() >= MOST_THIN
        if is_grave:
            text += "; expected pixels, and not parts of the image from 0 to 1"
        yield OddObjects("thin boxes", text, bool(is_grave))
    images = np.repeat(np.arange(len(table.image_ids)), np.diff(table.first))
    edges = table.sizes[images][:, ::-1]
    outside = np.asarray(((table.boxes[:, 2:] > edges + ROUNDING) | (table.boxes[:, :2] < -ROUNDING)).any(1))
    if outside.any():
        text = f"{outside.sum()} of {total} boxes reach over the edge, first annotation {_first(table, outside)}"
        is_grave = outside.mean() >= MOST_OUTSIDE
        if is_grave:
            text += "; expected x, y, width, height, and not two corners"
        yield OddObjects("boxes over the edge", text, bool(is_grave))


def writer_of(path: Path) -> str | None:
    """The tool whose name the head of a file mentions."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES).lower()
    return next((name for mark, name in TOOLS.items() if mark in head), None)


def _first(table: CocoTable, chosen: np.ndarray) -> int:
    return int(table.ids[np.flatnonzero(chosen)[0]])

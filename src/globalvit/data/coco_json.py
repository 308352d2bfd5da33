"""Reads COCO's JSON into arrays, and says what is wrong with it.

Decided here: a file that contradicts itself (ids twice, an unknown category, a mask of another size) is refused, since
nobody can know what was meant; an object that cannot be seen (its box has no area, or lies outside the image) or
whose image is not in the file is left out, counted and named; a box that reaches over the edge stays.

Legend: `I` images · `A` annotations.
"""

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from globalvit.data.image_folder import listed
from globalvit.data.names import Names
from globalvit.data.packed_masks import PackedMasks

logger = logging.getLogger(__name__)

PARTS = ("images", "annotations", "categories")
# Rasterising takes time and memory with the length of an outline.
FARTHEST = 100_000
FEWEST_NUMBERS = 6
# Beyond it other programs round whole numbers of JSON.
LARGEST_ID = 2**53
LARGEST_SIDE = 2**31 - 1
Size = tuple[int, int]
Compress = Callable[[list[int], Size], bytes]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CocoTable:
    """What a file holds; annotations stand image by image.

    Attributes:
        path: of the file.
        classes: names of the categories, in the order of their ids.
        category_ids: the file's ids of these.
        image_ids: int64 (I,).
        names: the images' files.
        sizes: int32 (I, 2), height and width.
        first: int64 (I + 1,): image i has the annotations first[i] … first[i + 1] − 1.
        ids: int64 (A,).
        boxes: float64 (A, 4) xyxy, as the file has them.
        labels: int64 (A,), positions in `classes`.
        areas: float64 (A,), those of the boxes where the file says nothing.
        crowd: bool (A,).
        masks: polygons or run lengths of each annotation.
        dropped: what was left out, and why.
    """

    path: Path
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_ids: np.ndarray
    names: Names
    sizes: np.ndarray
    first: np.ndarray
    ids: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    masks: PackedMasks
    dropped: tuple[str, ...]

    def for_classes(self, classes: Sequence[str]) -> Self:
        """The same with other labels: positions in `classes`.

        Raises:
            ValueError: these are not the file's categories.
        """
        order = label_order(self.classes, classes, str(self.path))
        labels_of = np.empty(len(order), np.int64)
        labels_of[order] = np.arange(len(order))
        category_ids = tuple(self.category_ids[label] for label in order)
        return replace(self, classes=tuple(classes), category_ids=category_ids, labels=labels_of[self.labels])


def label_order(found: Sequence[str], expected: Sequence[str], where: str) -> list[int]:
    """Position in `found` of each of `expected`.

    Raises:
        ValueError: the names differ; the text says which are lacking and which are too much.
    """
    lacking = [name for name in expected if name not in found]
    foreign = [name for name in found if name not in expected]
    if lacking or foreign:
        parts = [f"lacks {listed(lacking)}"] * bool(lacking) + [f"has {listed(foreign)} besides"] * bool(foreign)
        raise ValueError(
            f"the categories of {where} are not the {len(expected)} classes expected: it {' and '.join(parts)}; give "
            "every split the categories the model was trained on"
        )
    return [found.index(name) for name in expected]


def read_coco(path: Path, compress: Compress) -> CocoTable:
    """Read a file of COCO's form.

    Args:
        path: of the file.
        compress: makes COCO's compressed run lengths of plain ones (of a mask of a height and width).

    Raises:
        OSError: it cannot be read.
        ValueError: it is not COCO's JSON, or contradicts itself.
    """
    try:
        return _table(path, _load(path), compress)
    except _BrokenError as error:
        raise ValueError(f"{path}: {error}") from None


class _BrokenError(Exception):
    """What is wrong, without the file's name."""


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _BrokenError(f"this is not JSON: {error}") from error
    lacking = [part for part in PARTS if not isinstance(content, dict) or not isinstance(content.get(part), list)]
    if lacking:
        kind = (
            "that is a list, as of results, and"
            if isinstance(content, list)
            else f"without {' and '.join(lacking)}, and"
        )
        raise _BrokenError(f"this is JSON {kind} not COCO's; expected an object with lists {', '.join(PARTS)}")
    return content


def _table(path: Path, content: dict[str, Any], compress: Compress) -> CocoTable:
    categories = sorted(_rows(content, "categories", ("id", "name")), key=lambda row: row["id"])
    category_ids, classes = _ids(categories, "category"), tuple(str(row["name"]) for row in categories)
    if not classes or len(set(classes)) < len(classes):
        raise _BrokenError(f"expected categories of different names, got {sorted(classes)}")
    images = _rows(content, "images", ("id", "file_name", "height", "width"))
    if not images:
        raise _BrokenError("its list of images is empty")
    image_ids, sizes = _ids(images, "image"), _sizes(images)
    annotations = _rows(content, "annotations", ("id", "image_id", "category_id", "bbox"))
    _ids(annotations, "annotation")
    labels_of = {number: label for label, number in enumerate(category_ids.tolist())}
    positions = {number: position for position, number in enumerate(image_ids.tolist())}
    _check_categories(annotations, labels_of)
    kept, dropped = _visible(annotations, positions, sizes, images)
    kept.sort(key=lambda row: positions[row["image_id"]])
    where = np.array([positions[row["image_id"]] for row in kept], np.int64)
    boxes = _boxes(kept)
    _warn(path, dropped)
    return CocoTable(
        path=path,
        classes=classes,
        category_ids=tuple(category_ids.tolist()),
        image_ids=image_ids,
        names=Names(str(row["file_name"]) for row in images),
        sizes=sizes,
        first=np.searchsorted(where, np.arange(len(images) + 1)),
        ids=np.array([row["id"] for row in kept], np.int64),
        boxes=boxes,
        labels=np.array([labels_of[row["category_id"]] for row in kept], np.int64),
        areas=_areas(kept, boxes),
        crowd=np.array([bool(row.get("iscrowd")) for row in kept], bool),
        masks=_masks(kept, [(int(sizes[at, 0]), int(sizes[at, 1])) for at in where], compress),
        dropped=tuple(dropped),
    )


def _rows(content: Mapping[str, Any], part: str, keys: Sequence[str]) -> list[dict[str, Any]]:
    for number, row in enumerate(content[part]):
        lacking = [key for key in keys if not isinstance(row, dict) or row.get(key) is None]
        if lacking:
            raise _BrokenError(f"{part}[{number}] has no {' and no '.join(lacking)}; every one needs {', '.join(keys)}")
    return content[part]


def _ids(rows: Iterable[Mapping[str, Any]], kind: str) -> np.ndarray:
    ids = [row["id"] for row in rows]
    for number in ids:
        if not _is_id(number):
            raise _BrokenError(f"{kind} id {number!r} is no whole number; ids are whole numbers")
    if len(set(ids)) < len(ids):
        seen: set[int] = set()
        twice = next(number for number in ids if number in seen or seen.add(number))
        raise _BrokenError(f"{kind} id {twice} stands there twice; give each {kind} an id of its own")
    return np.array(ids, np.int64)


def _is_id(value: Any) -> bool:
    return type(value) is int and abs(value) <= LARGEST_ID


def _sizes(images: Sequence[Mapping[str, Any]]) -> np.ndarray:
    for row in images:
        if not all(_is_id(row[key]) and 0 < row[key] <= LARGEST_SIDE for key in ("height", "width")):
            sides = f"height {row['height']!r} and width {row['width']!r}"
            raise _BrokenError(f"image {row['id']} has {sides}; expected numbers of pixels")
    return np.array([(row["height"], row["width"]) for row in images], np.int32).reshape(-1, 2)


def _check_categories(annotations: Sequence[Mapping[str, Any]], labels_of: Mapping[int, int]) -> None:
    for row in annotations:
        if not _is_id(row["category_id"]) or row["category_id"] not in labels_of:
            known = ", ".join(map(str, list(labels_of)[:10])) + (", …" if len(labels_of) > 10 else "")
            raise _BrokenError(
                f"annotation {row['id']} has category_id {row['category_id']!r}, which is not among the categories "
                f"{known}; add the category or remove the annotation"
            )


def _visible(
    annotations: Sequence[dict[str, Any]],
    positions: Mapping[int, int],
    sizes: np.ndarray,
    images: Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], list[str]]:
    """The annotations of which something lies in an image, and what is wrong with the others."""
    kept: list[dict[str, Any]] = []
    dropped: list[str] = []
    for row, (left, top, right, bottom) in zip(annotations, _boxes(annotations).tolist(), strict=True):
        at = positions.get(row["image_id"]) if _is_id(row["image_id"]) else None
        if at is None:
            dropped.append(f"annotation {row['id']} is of image {row['image_id']!r}, which is not there")
            continue
        height, width = sizes[at].tolist()
        if min(right, width) > max(left, 0) and min(bottom, height) > max(top, 0):
            kept.append(row)
            continue
        fault = "has no area" if right <= left or bottom <= top else f"lies outside the {width}×{height} pixels"
        dropped.append(f"annotation {row['id']}: its box {row['bbox']} {fault} of {images[at]['file_name']}")
    return kept, dropped


def _boxes(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """`bbox` (x, y, width, height) → float64 (A, 4) xyxy."""
    try:
        boxes = np.array([row["bbox"] for row in rows], np.float64).reshape(len(rows), 4)
    except (TypeError, ValueError, OverflowError):
        boxes = np.full((1, 4), np.nan)
    if not np.isfinite(boxes).all():
        row = next(row for row in rows if not _is_box(row["bbox"]))
        raise _BrokenError(f"annotation {row['id']} has bbox {row['bbox']!r}; expected numbers x, y, width, height")
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(_is_number(value) for value in box)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < math.inf


def _areas(rows: Sequence[Mapping[str, Any]], boxes: np.ndarray) -> np.ndarray:
    sides = boxes[:, 2:] - boxes[:, :2]
    stated = [row.get("area") for row in rows]
    areas = [area if _is_number(area) else w * h for area, (w, h) in zip(stated, sides.tolist(), strict=True)]
    return np.array(areas, np.float64)


def _masks(rows: Sequence[Mapping[str, Any]], sizes: Sequence[Size], compress: Compress) -> PackedMasks:
    try:
        packed = PackedMasks(_mask(row, size, compress) for row, size in zip(rows, sizes, strict=True))
    except (TypeError, OverflowError):
        # Something in a polygon is no number; only now is it worth the time to look for it.
        raise _no_mask(next(row for row in rows if not _is_mask(row.get("segmentation")))) from None
    if not packed.extent <= FARTHEST:
        raise _BrokenError(f"a polygon reaches to {packed.extent:g}; expected pixels, none beyond {FARTHEST}")
    return packed


def _mask(row: Mapping[str, Any], size: Size, compress: Compress) -> list[list[float]] | bytes | None:
    """Polygons of three points and more, or compressed run lengths, or None."""
    segmentation = row.get("segmentation")
    if isinstance(segmentation, dict):
        return _runs(row, segmentation, size, compress)
    if not isinstance(segmentation, list | None) or not all(isinstance(one, list) for one in segmentation or ()):
        raise _no_mask(row)
    # Fewer than three points have no area.
    polygons = [polygon for polygon in segmentation or () if len(polygon) >= FEWEST_NUMBERS]
    if any(len(polygon) % 2 for polygon in polygons):
        raise _no_mask(row)
    return polygons


def _is_mask(segmentation: Any) -> bool:
    return not isinstance(segmentation, list) or all(_is_number(value) for polygon in segmentation for value in polygon)


def _no_mask(row: Mapping[str, Any]) -> _BrokenError:
    return _BrokenError(
        f"annotation {row['id']} has a segmentation that is neither polygons [[x, y, x, y, x, y, …], …] nor run "
        "lengths {size, counts}"
    )


def _runs(row: Mapping[str, Any], runs: Mapping[str, Any], size: Size, compress: Compress) -> bytes | None:
    stated, counts = runs.get("size"), runs.get("counts")
    if stated != list(size):
        raise _BrokenError(f"annotation {row['id']} has a mask of size {stated}, but its image has {list(size)}")
    if isinstance(counts, str):
        return counts.encode("ascii", "replace")
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise _no_mask(row)
    if sum(counts) != size[0] * size[1]:
        raise _BrokenError(f"annotation {row['id']} has run lengths of {sum(counts)} pixels for a mask of {list(size)}")
    return compress(counts, size)


def _warn(path: Path, dropped: Sequence[str]) -> None:
    if dropped:
        logger.warning("%s: left out %d annotations; the first: %s", path, len(dropped), dropped[0])

"""Reads COCO's JSON into arrays, and says what is wrong with it.

Decided here: a file that contradicts itself (ids twice, an unknown category, a mask of another size) is refused, since
nobody can know what was meant, and so is one whose boxes are parts of the image or corners; an object that cannot be
seen (its box has no area, or lies outside the image) or whose image is not in the file is left out, counted and named;
a box that reaches over the edge stays.

Legend: `I` images · `A` annotations.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from globalvit.data.common.folders import listed
from globalvit.data.common.names import Names
from globalvit.data.detection import coco_values
from globalvit.data.detection.coco_masks import read_masks
from globalvit.data.detection.coco_plausible import (
    COCO_WORDS,
    Boxes,
    Question,
    Words,
    asked_of_boxes,
    asked_of_outlines,
    asked_of_rows,
    check_boxes,
)
from globalvit.data.detection.coco_values import BrokenError, LabelsError, Owners, shown
from globalvit.data.detection.packed_masks import PackedMasks

logger = logging.getLogger(__name__)

PARTS = ("images", "annotations", "categories")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CocoTable:
    """What a file holds; annotations stand image by image.

    Attributes:
        path: of the file.
        classes: names of the categories, in the order of their ids.
        category_ids: the file's ids of these; None for a class expected that it does not list.
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
        questions: what may be meant otherwise.
        words: what messages call boxes and crowds.
        sources: the files that state each image's objects, where that is not `path`.
        is_upright: the format says that labels are for the upright image, so that no image need show it.
    """

    path: Path
    classes: tuple[str, ...]
    category_ids: tuple[int | None, ...]
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
    questions: tuple[Question, ...]
    words: Words = COCO_WORDS
    sources: Names | None = None
    is_upright: bool = False

    def stated_by(self, image: int) -> str:
        """The file that states the objects of image number `image`."""
        source = "" if self.sources is None else self.sources[image]
        return source or str(self.path)

    def image_of(self, annotation: int) -> int:
        """The number of the image that annotation number `annotation` is of."""
        return int(np.searchsorted(self.first, annotation, "right")) - 1

    def for_classes(self, classes: Sequence[str], category_ids: Sequence[int | None] | None = None) -> Self:
        """The same with other labels: positions in `classes`.

        Args:
            classes: names of the categories expected, of which the file may list fewer.
            category_ids: the ids of these in the training split, which a file with fewer categories must agree with.

        Raises:
            ValueError: the file has other categories, or fewer with other ids.
        """
        labels = match_categories(self.classes, classes, str(self.path))
        ids: list[int | None] = [None] * len(classes) if category_ids is None else list(category_ids)
        if len(labels) < len(classes):
            for name, label, own in zip(self.classes, labels, self.category_ids, strict=True):
                if ids[label] not in (None, own):
                    raise ValueError(
                        f"{self.path} lists {len(labels)} of the {len(classes)} categories, and {name!r} has id {own}, "
                        f"but {ids[label]} in the training split; export both with one list of categories"
                    )
        for label, own in zip(labels, self.category_ids, strict=True):
            ids[label] = own
        return replace(self, classes=tuple(classes), category_ids=tuple(ids), labels=np.array(labels)[self.labels])


@dataclass(slots=True)
class Labels:
    """Images and objects as a format of many files states them.

    Attributes:
        classes: names of the labels 0 … K−1.
        images: rows of COCO's `images`.
        annotations: rows of COCO's `annotations`; `category_id` is the label.
        places: file and line of each annotation.
        sources: the file of labels of each image; empty where it has none.
    """

    classes: Sequence[str]
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)

    def add_image(self, name: str, size: tuple[int, int], source: str) -> None:
        """Add an image of height and width `size`; the objects added next are in it."""
        number = len(self.images) + 1
        self.images.append({"id": number, "file_name": name, "height": size[0], "width": size[1]})
        self.sources.append(source)

    def add_object(self, place: str, row: dict[str, Any]) -> None:
        """Add an object of the last image: `category_id`, `bbox` and what else COCO's annotations have."""
        self.annotations.append(row | {"id": len(self.annotations) + 1, "image_id": len(self.images)})
        self.places.append(place)

    def content(self) -> dict[str, Any]:
        """All of it as COCO's JSON has it."""
        categories = [{"id": label, "name": name} for label, name in enumerate(self.classes)]
        return {"images": self.images, "annotations": self.annotations, "categories": categories}


def match_categories(found: Sequence[str], expected: Sequence[str], where: str) -> list[int]:
    """The label of each category in `found`: its position in `expected`, of which some may be missing.

    Raises:
        ValueError: there are unexpected categories, or none of those expected; the text names both.
    """
    missing = [name for name in expected if name not in found]
    foreign = [name for name in found if name not in expected]
    if foreign:
        parts = [f"unexpected {listed(foreign)}"] + [f"missing {listed(missing)}"] * bool(missing)
        raise ValueError(
            f"the categories of {where} are not the {len(expected)} classes expected: {'; '.join(parts)}; give every "
            "split the categories the model was trained on"
        )
    return [expected.index(name) for name in found]


def other_ids(
    found: CocoTable, expected: Sequence[str], category_ids: Sequence[int | None], where: object
) -> str | None:
    """What to say of categories whose ids are not those of the training split; None if all agree."""
    ids = dict(zip(expected, category_ids, strict=True))
    pairs = [(name, own, ids.get(name)) for name, own in zip(found.classes, found.category_ids, strict=True)]
    differing = [(name, own, there) for name, own, there in pairs if there not in (None, own)]
    if not differing:
        return None
    name, own, there = differing[0]
    return (
        f"{where} has other ids than the training split for {len(differing)} of {len(found.classes)} categories, such "
        f"as {own} for {name!r}, which is {there} there; categories are matched by name"
    )


def missing_categories(found: Sequence[str], expected: Sequence[str], where: object) -> str | None:
    """What to say of the categories that the file of a split does not list; None if all are there."""
    missing = [name for name in expected if name not in found]
    if not missing:
        return None
    return (
        f"{where} does not list {len(missing)} of the {len(expected)} categories, so their AP cannot be measured: "
        f"{listed(missing)}"
    )


def read_coco(path: Path, *, crowd_as_instances: bool = False) -> CocoTable:
    """Read a file of COCO's form.

    Args:
        path: of the file.
        crowd_as_instances: read annotations with `iscrowd` 1 as single objects.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not COCO's JSON, or contradicts itself.
    """
    try:
        return table_of(path, _load(path), crowd_as_instances=crowd_as_instances)
    except BrokenError as error:
        raise LabelsError(path, f"{path}: {error}") from None


def read_labels(path: Path, labels: Labels, words: Words, *, crowd_as_instances: bool = False) -> CocoTable:
    """Make a table of what another format says, brought into COCO's form.

    Args:
        path: what messages call the whole.
        labels: what its files say.
        words: what messages call boxes and crowds.
        crowd_as_instances: read crowds as single objects.
    """
    return table_of(path, labels.content(), crowd_as_instances=crowd_as_instances, words=words, labels=labels)


def _load(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    if not data.strip():
        raise BrokenError("the file is empty; expected COCO's JSON")
    try:
        # UTF-8, UTF-16 and UTF-32, with or without a byte order mark.
        content = json.loads(data)
    except UnicodeDecodeError as error:
        raise BrokenError(f"this is not JSON in UTF-8 or UTF-16: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise BrokenError("this is JSON nested too deeply to be COCO's; expected lists of images and boxes") from None
    except ValueError as error:
        raise BrokenError(f"this is not JSON: {error}") from None
    missing = [part for part in PARTS if not isinstance(content, dict) or not isinstance(content.get(part), list)]
    if missing:
        kind = (
            "that is a list, as of results, and"
            if isinstance(content, list)
            else f"without {' and '.join(missing)}, and"
        )
        raise BrokenError(f"this is JSON {kind} not COCO's; expected an object with lists {', '.join(PARTS)}")
    return content


def table_of(
    path: Path,
    content: dict[str, Any],
    *,
    crowd_as_instances: bool,
    words: Words = COCO_WORDS,
    labels: Labels | None = None,
) -> CocoTable:
    """Make a table of what a file holds.

    Raises:
        BrokenError: it contradicts itself.
    """
    category_ids, classes = _categories(content)
    images = coco_values.rows(content, "images", ("id", "file_name", "height", "width"))
    if not images:
        raise BrokenError("its list of images is empty; expected one image or more")
    image_ids = coco_values.ids(images, "image")
    names, sizes = coco_values.file_names(images, image_ids), coco_values.sizes(images, image_ids)
    rows = coco_values.rows(content, "annotations", ("id", "image_id", "category_id", "bbox"))
    ids, where = coco_values.ids(rows, "annotation"), coco_values.positions(rows, "image_id", image_ids)
    owners = Owners(ids, where, image_ids, names, labels and labels.places)
    positions = _labels(rows, owners, category_ids)
    xywh, stated_areas = coco_values.boxes(rows, owners), coco_values.areas(rows, owners)
    crowd = coco_values.crowds(rows, owners) & (not crowd_as_instances)
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
    known = np.flatnonzero(where >= 0)
    parts = owners.chosen(known), xywh[known], sizes[where[known]], stated_areas[known]
    found = Boxes([rows[at] for at in known], *parts)
    if labels is None:
        check_boxes(found)
    is_seen, dropped = _seen(rows, owners, boxes, sizes, where)
    _warn(path, dropped)
    kept = np.flatnonzero(is_seen)
    kept = kept[np.argsort(where[kept], kind="stable")]
    image_sizes = [(int(height), int(width)) for height, width in sizes[where[kept]].tolist()]
    return CocoTable(
        path=path,
        classes=classes,
        category_ids=tuple(category_ids.tolist()),
        image_ids=image_ids,
        names=Names(names),
        sizes=sizes,
        first=np.searchsorted(where[kept], np.arange(len(images) + 1)),
        ids=ids[kept],
        boxes=boxes[kept],
        labels=positions[kept],
        areas=np.where(np.isnan(stated_areas), xywh[:, 2] * xywh[:, 3], stated_areas)[kept],
        crowd=crowd[kept],
        masks=read_masks([rows[at] for at in kept], owners.chosen(kept), image_sizes),
        dropped=tuple(dropped),
        questions=(
            *asked_of_boxes(found, words),
            *asked_of_outlines(found),
            *asked_of_rows(crowd[kept], image_ids.tolist(), names, words),
        ),
        words=words,
        sources=None if labels is None else Names(labels.sources),
    )


def _categories(content: dict[str, Any]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Ids, in rising order, and names of the categories."""
    rows = coco_values.rows(content, "categories", ("id", "name"))
    ids = coco_values.ids(rows, "category")
    names = [str(row["name"]) for row in rows]
    if not names:
        raise BrokenError("its list of categories is empty; expected one category or more")
    firsts: dict[str, int] = {}
    for place, name in enumerate(names):
        if not name.strip():
            raise BrokenError(f"category {ids[place]} has the name {shown(name)}; expected a name that is not empty")
        first = firsts.setdefault(name, place)
        if first < place:
            raise BrokenError(
                f"categories {ids[first]} and {ids[place]} have the same name {shown(name)}; expected different names: "
                "rename one, or remove the one without annotations"
            )
    order = np.argsort(ids)
    return ids[order], tuple(names[at] for at in order)


def _labels(rows: Sequence[dict[str, Any]], owners: Owners, category_ids: np.ndarray) -> np.ndarray:
    """The position of each annotation's category, int64 (A,)."""
    labels = coco_values.positions(rows, "category_id", category_ids)
    for at in np.flatnonzero(labels < 0)[:1]:
        known = ", ".join(map(str, category_ids[:10])) + (", …" if len(category_ids) > 10 else "")
        raise BrokenError(
            f"{owners[at]} has category_id {shown(rows[at]['category_id'])}, which is not among the categories "
            f"{known}; add the category or remove the annotation"
        )
    return labels


def _seen(
    rows: Sequence[dict[str, Any]], owners: Owners, boxes: np.ndarray, sizes: np.ndarray, where: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Which annotations have something in an image, bool (A,), and what is wrong with the others."""
    left, top, right, bottom = boxes.T
    height, width = sizes[where].T
    has_area = (right > left) & (bottom > top)
    is_inside = (left < width) & (top < height) & (right > 0) & (bottom > 0)
    is_seen = (where >= 0) & has_area & is_inside
    dropped: list[str] = []
    for at in np.flatnonzero(~is_seen).tolist():
        if where[at] < 0:
            dropped.append(f"{owners[at]} is of image {shown(rows[at]['image_id'])}, which the file does not list")
        elif not has_area[at]:
            dropped.append(f"{owners[at]}: its box {shown(rows[at]['bbox'])} has no area")
        else:
            place = f"the {width[at]}×{height[at]} pixels of the image"
            dropped.append(f"{owners[at]}: its box {shown(rows[at]['bbox'])} lies outside {place}")
    return is_seen, dropped


def _warn(path: Path, dropped: Sequence[str]) -> None:
    if dropped:
        logger.warning(
            "%s: left out %d annotations, which `globalvit data check` lists; the first: %s",
            path,
            len(dropped),
            dropped[0],
        )

"""Boxes and crowds of a COCO file that can be read and yet are not meant as they are read.

Legend: `A` annotations.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from globalvit.data.detection.coco_masks import values
from globalvit.data.detection.coco_values import BrokenError, Owners, Row, number, shown

# Boxes that all lie within 0 … 1, or nearly all, are parts of the image: as pixels they would be thinner than one.
MOST_IN_UNIT = 0.5
# Corners: as good as all boxes fit into their images as x1, y1, x2, y2 …
FITTING = 0.95
# … and so many do not fit as x, y, width, height, by more than this part of a side and a pixel.
OVER_EDGE, TOLERANCE = 0.25, 0.05
# So many outlines are compared with boxes at most.
MOST_COMPARED = 1000
# Sets that mark objects as crowds rarely have so many: COCO has 1 in 80.
MANY_CROWDS = 0.2
# Sets have a few boxes thinner than a pixel; so many are boxes in another unit.
MANY_THIN = 0.05
# A box is elsewhere than its polygons if they share less than this part of their union and a side is so many pixels
# off; so many of them are a mistake of the tool.
LEAST_SHARED, APART, MANY_ELSEWHERE = 0.5, 3, 0.05
CROWD_REMEDY = "CVAT marks every brush mask so; if they are single objects, --crowd-as-instances reads them as such"


class Words(NamedTuple):
    """What a format calls its boxes and its crowds in messages, and what to do about many crowds."""

    box: str
    crowd: str
    crowd_remedy: str


COCO_WORDS = Words("[x, y, width, height] in pixels", "iscrowd 1", CROWD_REMEDY)


@dataclass(frozen=True, slots=True)
class Boxes:
    """What a file says of its boxes.

    Attributes:
        rows: the annotations.
        owners: what errors call each of them.
        xywh: `bbox`, float64 (A, 4).
        sizes: height and width of each one's image, (A, 2).
        areas: stated, float64 (A,), NaN where none is.
    """

    rows: Sequence[Row]
    owners: Owners
    xywh: np.ndarray
    sizes: np.ndarray
    areas: np.ndarray


class Question(NamedTuple):
    """What may be meant otherwise; `is_grave` where a model would learn the wrong thing."""

    kind: str
    text: str
    is_grave: bool


def check_boxes(found: Boxes) -> None:
    """Refuse boxes that are parts of their images, and corners in place of widths and heights.

    Raises:
        BrokenError: most boxes are; the text names the first one.
    """
    if not len(found.rows):
        return
    _check_unit(found)
    _check_corners(found)


def _check_unit(found: Boxes) -> None:
    boxes = found.xywh
    in_unit = ((boxes >= 0) & (boxes <= 1)).all(1) & (boxes[:, 2:] > 0).all(1)
    if in_unit.mean() > MOST_IN_UNIT:
        first = int(in_unit.argmax())
        raise BrokenError(
            f"{found.owners[first]} has bbox {shown(found.rows[first]['bbox'])}, and {in_unit.sum()} of {len(boxes)} "
            "boxes lie within 0 … 1: expected pixels, got parts of the image; multiply x and width by the image's "
            "width, y and height by its height"
        )


def _check_corners(found: Boxes) -> None:
    boxes, (height, width) = found.xywh, found.sizes.T
    left, top, right, bottom = boxes.T
    fits = (right > left) & (bottom > top) & (left >= 0) & (top >= 0) & (right <= width + 1) & (bottom <= height + 1)
    if fits.mean() < FITTING:
        return
    is_over = (left + right > width * (1 + TOLERANCE) + 1) | (top + bottom > height * (1 + TOLERANCE) + 1)
    evidence = ""
    if is_over.mean() >= OVER_EDGE:
        evidence = f"{is_over.sum()} of {len(boxes)} boxes reach beyond their images as x, y, width, height"
    elif _has_areas_of_corners(found):
        evidence = "`area` is that of boxes from corner to corner"
    elif _has_outlines_of_corners(found):
        evidence = "the polygons lie in boxes from corner to corner"
    if not evidence:
        return
    first = int(is_over.argmax())
    x1, y1, x2, y2 = boxes[first].tolist()
    raise BrokenError(
        f"{found.owners[first]} has bbox {shown(found.rows[first]['bbox'])} in an image of "
        f"{width[first]}×{height[first]}; {evidence}: expected [x, y, width, height], got corners [x1, y1, x2, y2]; "
        f"write [{x1:g}, {y1:g}, {x2 - x1:g}, {y2 - y1:g}]"
    )


def _has_areas_of_corners(found: Boxes) -> bool:
    left, top, right, bottom = found.xywh.T
    known = found.areas > 0
    corners, plain = (right - left) * (bottom - top), right * bottom
    as_corners = np.isclose(found.areas, corners, rtol=0.01) & ~np.isclose(corners, plain, rtol=0.05)
    return bool(known.any() and as_corners[known].mean() >= FITTING)


def _has_outlines_of_corners(found: Boxes) -> bool:
    """Whether the outlines end where the corners are; at most so many are looked at."""
    votes: list[bool] = []
    for row, box in zip(found.rows[:MOST_COMPARED], found.xywh.tolist(), strict=False):
        ends = _ends(row)
        if ends is None:
            continue
        is_far = abs(box[2] - (ends[2] - ends[0])) > 3 or abs(box[3] - (ends[3] - ends[1])) > 3
        votes.append(is_far and bool(np.allclose(ends, box, rtol=0, atol=1.5)))
    return bool(votes) and float(np.mean(votes)) >= FITTING


def asked_of_boxes(found: Boxes, words: Words = COCO_WORDS) -> list[Question]:
    """Return what may be meant otherwise: boxes over the edge and boxes thinner than a pixel."""
    _, _, wide, high = found.xywh.T
    is_seen = (wide > 0) & (high > 0)
    is_over, is_far = is_seen & _reaches_over(found, 0), is_seen & _reaches_over(found, TOLERANCE)
    is_thin = is_seen & (np.minimum(wide, high) < 1)
    over = is_far if is_far.any() else is_over
    has_many_thin = is_thin.sum() >= max(1, MANY_THIN * len(is_thin))
    asked: list[Question] = []
    for kind, chosen, is_grave, text in (
        (
            "over the edge",
            over,
            is_far.any(),
            "reach beyond their images and are clipped",
        ),
        ("thin boxes", is_thin, has_many_thin, "are thinner than a pixel and are hardly learned"),
    ):
        if chosen.any():
            at = int(chosen.argmax())
            height, width = found.sizes[at].tolist()
            remedy = f"; expected {words.box}" if is_grave else ""
            text = (
                f"{chosen.sum()} of {len(chosen)} boxes {text}; the first: {found.owners[at]} has bbox "
                f"{shown(found.rows[at]['bbox'])} in an image of {width}×{height}{remedy}"
            )
            asked.append(Question(kind, text, bool(is_grave)))
    return asked


def asked_of_outlines(found: Boxes) -> list[Question]:
    """Return what may be meant otherwise where boxes and polygons are of different places; some are compared."""
    left, top, wide, high = found.xywh.T
    height, width = found.sizes.T
    is_inside = (left > -wide) & (top > -high) & (left < width) & (top < height)
    # The others are asked about already, or left out.
    is_sound = is_inside & (wide >= 1) & (high >= 1) & ~_reaches_over(found, TOLERANCE)
    wrong: list[int] = []
    compared = 0
    for at, (row, box) in enumerate(zip(found.rows[:MOST_COMPARED], found.xywh.tolist(), strict=False)):
        ends = _ends(row) if is_sound[at] else None
        if ends is None:
            continue
        compared += 1
        # Boxes of objects of a few pixels differ by rounding.
        if _are_apart(ends, (box[0], box[1], box[0] + box[2], box[1] + box[3])):
            wrong.append(at)
    if not wrong:
        return []
    at = wrong[0]
    text = (
        f"{len(wrong)} of {compared} boxes are elsewhere than their polygons; the first: {found.owners[at]} has bbox "
        f"{shown(found.rows[at]['bbox'])}, and its polygons reach from {_corner(found.rows[at], 0)} to "
        f"{_corner(found.rows[at], 2)}; expected [x, y, width, height] with x, y the upper left corner"
    )
    return [Question("other outlines", text, len(wrong) >= MANY_ELSEWHERE * compared)]


def _are_apart(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether two boxes xyxy share little and differ by some pixels."""
    sides = [min(one[at + 2], other[at + 2]) - max(one[at], other[at]) for at in (0, 1)]
    shared = max(sides[0], 0.0) * max(sides[1], 0.0)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - shared
    apart = max(abs(here - there) for here, there in zip(one, other, strict=True))
    return apart > APART and shared < LEAST_SHARED * union


def _ends(row: Row) -> tuple[float, float, float, float] | None:
    """Left, top, right and bottom of an annotation's polygons; None where there are none."""
    outline = [number(value) for value in values(row.get("segmentation"))]
    known = [value for value in outline if value is not None]
    if not known or len(known) < len(outline) or len(known) % 2:
        return None
    return min(known[0::2]), min(known[1::2]), max(known[0::2]), max(known[1::2])


def _corner(row: Row, at: int) -> str:
    ends = _ends(row)
    assert ends is not None
    return f"{ends[at]:g}, {ends[at + 1]:g}"


def _reaches_over(found: Boxes, part: float) -> np.ndarray:
    """Which boxes lie in their image and reach over its edge by more than this part of a side and a pixel."""
    left, top, wide, high = found.xywh.T
    height, width = found.sizes.T
    x_room, y_room = width * part + 1, height * part + 1
    is_over = (left < -x_room) | (top < -y_room) | (left + wide > width + x_room) | (top + high > height + y_room)
    return is_over & (left < width) & (top < height) & (left + wide > 0) & (top + high > 0)


def asked_of_rows(
    crowd: np.ndarray, image_ids: Sequence[int], names: Sequence[str], words: Words = COCO_WORDS
) -> list[Question]:
    """Return what may be meant otherwise: crowds, and files that several images share."""
    asked: list[Question] = []
    if crowd.any():
        text = f"{crowd.sum()} of {len(crowd)} annotations have {words.crowd}, so they are not learned"
        is_grave = bool(crowd.mean() >= MANY_CROWDS)
        asked.append(Question("crowds", f"{text}: {words.crowd_remedy}" if is_grave else text, is_grave))
    shared = [name for name, times in Counter(names).items() if times > 1]
    if shared:
        holders = [str(one) for one, name in zip(image_ids, names, strict=True) if name == shared[0]]
        text = (
            f"images {' and '.join(holders[:3])} have the same file_name {shown(shared[0])} ({len(shared)} such "
            "names), and each has only its own objects; list every file once"
        )
        asked.append(Question("listed twice", text, True))
    return asked

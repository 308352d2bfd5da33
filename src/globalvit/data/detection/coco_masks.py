"""Reads the masks in COCO's JSON: polygons and run lengths.

Legend: `A` annotations.
"""

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from globalvit.data.common.orientation import Size
from globalvit.data.detection.coco_values import BrokenError, Owners, Row, shown, whole
from globalvit.data.detection.packed_masks import PackedMasks
from globalvit.data.detection.run_lengths import compress

# Rasterizing takes time and memory with the length of an outline.
FARTHEST = 100_000
FEWEST_NUMBERS = 6


def read_masks(annotations: Sequence[Row], owners: Owners, image_sizes: Sequence[Size]) -> PackedMasks:
    """Read `segmentation` of every annotation.

    Args:
        annotations: the rows.
        owners: what errors call each of them.
        image_sizes: height and width of each one's image.

    Raises:
        BrokenError: one is neither polygons in pixels nor run lengths of its image's size.
    """
    pairs = zip(annotations, image_sizes, strict=True)
    try:
        packed = PackedMasks(_named(owners, at, row, size) for at, (row, size) in enumerate(pairs))
    except (TypeError, OverflowError):
        # Something in a polygon is not a number; only now is it worth the time to look for it.
        at = _first(annotations, lambda value: not _is_number(value))
        raise BrokenError(f"{owners[at]} {_no_mask(annotations[at])}") from None
    if not packed.extent <= FARTHEST:
        at = _first(annotations, lambda value: not abs(value) <= FARTHEST)
        raise BrokenError(
            f"{owners[at]} has a polygon that reaches to {_farthest(annotations[at]):g}; expected pixels, none beyond "
            f"{FARTHEST}"
        )
    if 0 < packed.extent <= 1:
        at = _first(annotations, lambda _: True)
        raise BrokenError(
            f"{owners[at]} has the polygons {shown(annotations[at]['segmentation'])}, and all polygons lie within "
            "0 … 1: expected pixels, got parts of the image; multiply x by the image's width and y by its height"
        )
    return packed


def _named(owners: Owners, at: int, row: Row, size: Size) -> list[list[float]] | bytes | None:
    try:
        return _mask(row, size)
    except BrokenError as error:
        raise BrokenError(f"{owners[at]} {error}") from None


def _mask(row: Row, size: Size) -> list[list[float]] | bytes | None:
    """Polygons of three points or more, or compressed run lengths, or None."""
    segmentation = row.get("segmentation")
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        return _runs(row, segmentation, size)
    if isinstance(segmentation, list) and all(map(_is_number, segmentation)):
        # One polygon without the list of polygons around it.
        segmentation = [segmentation]
    if not isinstance(segmentation, list) or not all(isinstance(one, list) for one in segmentation):
        raise _no_mask(row)
    if not all(map(_is_number, chain.from_iterable(one for one in segmentation if len(one) < FEWEST_NUMBERS))):
        raise _no_mask(row)
    # Fewer than three points have no area.
    polygons = [polygon for polygon in segmentation if len(polygon) >= FEWEST_NUMBERS]
    odd = next((len(polygon) for polygon in polygons if len(polygon) % 2), None)
    if odd:
        raise BrokenError(f"has a polygon of {odd} numbers; expected x and y of each point, an even number")
    return polygons


def _runs(row: Row, runs: Row, size: Size) -> bytes | None:
    stated, counts = runs.get("size"), runs.get("counts")
    sides = [whole(side) for side in stated] if isinstance(stated, list) else stated
    if sides != list(size):
        raise BrokenError(
            f"has a mask of size {shown(stated)}, but its image has {list(size)}; expected [height, width] of the image"
        )
    if isinstance(counts, str):
        return counts.encode("ascii", "replace")
    lengths = [whole(count) for count in counts] if isinstance(counts, list) else [None]
    known = [length for length in lengths if length is not None and length >= 0]
    if len(known) < len(lengths):
        raise _no_mask(row)
    if sum(known) != size[0] * size[1]:
        raise BrokenError(f"has run lengths of {sum(known)} pixels for a mask of {list(size)}; they must fill it")
    return compress(known, size)


def _no_mask(row: Row) -> BrokenError:
    return BrokenError(
        f"has the segmentation {shown(row.get('segmentation'))}; expected polygons [[x, y, x, y, x, y, …], …] "
        "or run lengths {size, counts}"
    )


def _first(annotations: Sequence[Row], is_wrong: Callable[[Any], bool]) -> int:
    """The position of the first annotation with such a value in a polygon."""
    return next(at for at, row in enumerate(annotations) if any(map(is_wrong, values(row.get("segmentation")))))


def values(segmentation: Any) -> list[Any]:
    """Return all values of a segmentation's polygons that have an area; none of run lengths."""
    if not isinstance(segmentation, list):
        return []
    polygons = segmentation if segmentation and isinstance(segmentation[0], list) else [segmentation]
    return [
        value
        for polygon in polygons
        if isinstance(polygon, list) and len(polygon) >= FEWEST_NUMBERS
        for value in polygon
    ]


def _farthest(row: Row) -> float:
    found = [float(value) for value in values(row.get("segmentation"))]
    return math.nan if any(map(math.isnan, found)) else max(map(abs, found))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

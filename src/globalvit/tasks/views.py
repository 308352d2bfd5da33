"""Views of an image that a detector sees one by one, tiles and mirror images, and the detections of all of them merged.

Legend: `N` detections · `M` those of one view · `V` detections that no view cuts · `C` channels · `H W` pixels.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from globalvit.detectors.boxes import Size, clip
from globalvit.detectors.found import OVERLAP
from globalvit.detectors.objects import Detections
from globalvit.detectors.padding import scale_boxes
from globalvit.tasks.inputs import as_tensor, opened
from globalvit.tasks.rows import starts
from globalvit.tasks.task import Preprocessing

# A box ends at the border of its tile if it is nearer than this fraction of the tile's longer side.
NEAR = 0.01
# Fraction of a cut box that a whole one has to cover to replace it.
COVERED = 0.7


class View(NamedTuple):
    """A part of an image.

    Attributes:
        position: of the image among all.
        size: (height, width) of the image.
        area: (left, top, right, bottom) of the part, in pixels of the image.
        views: how many there are of the image.
        is_flipped: left and right are exchanged.
    """

    position: int
    size: Size
    area: tuple[int, int, int, int]
    views: int = 1
    is_flipped: bool = False

    def place(self, found: Detections, seen: Size) -> Detections:
        """Move detections from a view that the model saw in the size `seen` into the image."""
        left, top, right, bottom = self.area
        size = (bottom - top, right - left)
        boxes_N4, masks = clip(scale_boxes(found.boxes, seen, size), size), found.masks
        if self.is_flipped:
            x1, y1, x2, y2 = boxes_N4.unbind(1)
            boxes_N4 = torch.stack([size[1] - x2, y1, size[1] - x1, y2], 1)
            masks = None if masks is None else masks.flip(-1)
        boxes_N4 = boxes_N4 + boxes_N4.new_tensor([left, top, left, top])
        return Detections(boxes=boxes_N4, scores=found.scores, labels=found.labels, masks=masks)

    def cuts(self, boxes_M4: Tensor) -> Tensor:
        """Return which of the view's boxes (M, 4) end at a border of it that lies inside the image: (M,) bool."""
        left, top, right, bottom = self.area
        is_inner = [left > 0, top > 0, right < self.size[1], bottom < self.size[0]]
        near = NEAR * max(right - left, bottom - top)
        is_near_M4 = (boxes_M4 - boxes_M4.new_tensor(self.area)).abs() <= near
        return (is_near_M4 & torch.tensor(is_inner, device=boxes_M4.device)).any(1)


def whole(position: int, size: Size) -> View:
    """Return the view of a whole image."""
    return View(position, size, (0, 0, size[1], size[0]))


def tiles(size: Size, tile: int | None, overlap: float) -> list[tuple[int, int, int, int]]:
    """Return the areas of square tiles that cover an image, row by row; those at the far borders are moved inside.

    Args:
        size: (height, width) of the image.
        tile: side of a tile in pixels; None gives the whole image.
        overlap: fraction of a tile that it shares with the next one.
    """
    height, width = (min(side, tile or side) for side in size)
    stride = max(1, round((tile or 1) * (1 - overlap)))
    return [
        (left, top, left + width, top + height)
        for top in starts(size[0], height, stride)
        for left in starts(size[1], width, stride)
    ]


def seen(images: Any, preprocessing: Preprocessing, tile: int | None, overlap: float) -> Iterator[tuple[Tensor, View]]:
    """Yield each tile of each image as the model's input (C, h, w), with its view; see `tasks.inputs.batches`."""
    for position, (image, size) in enumerate(opened(images, preprocessing.channels)):
        areas = tiles(size, tile, overlap)
        for area in areas:
            left, top, right, bottom = area
            if len(areas) == 1:
                part = image
            elif isinstance(image, Tensor):
                part = image[:, top:bottom, left:right]
            else:
                part = image.crop(area)
            yield as_tensor(part, preprocessing), View(position, size, area, len(areas))


def mirrored(views: Iterable[tuple[Tensor, View]]) -> Iterator[tuple[Tensor, View]]:
    """Yield each view and its mirror image."""
    for image, view in views:
        view = view._replace(views=2 * view.views)
        yield image, view
        yield image.flip(-1), view._replace(is_flipped=True)


def merge(parts: Sequence[tuple[View, Detections]], most: int) -> Detections:
    """Merge what was found in all views of an image, in the image's pixels, best first.

    A box that a tile's border cuts is dropped where another view shows more of the same object: a box of the same
    class, cut by no border, that covers most of it and reaches out of the tile. Then the lesser of two boxes of a class
    is dropped by non-maximum suppression, as in a single view.

    Args:
        parts: each view with its detections.
        most: detections to return at most.
    """
    if len(parts) == 1:
        return parts[0][1]
    is_cut = [view.cuts(found.boxes) for view, found in parts]
    wholes = _cat([found.take(~cut) for (_, found), cut in zip(parts, is_cut, strict=True)])
    kept = []
    for (view, found), cut in zip(parts, is_cut, strict=True):
        dropped = cut.clone()
        dropped[cut] = _is_shown(view, found.take(cut), wholes)
        kept.append(found.take(~dropped))
    together = _cat(kept)
    return together.take(batched_nms(together.boxes, together.scores, together.labels, OVERLAP)[:most])


def _is_shown(view: View, cut: Detections, wholes: Detections) -> Tensor:
    """Return which boxes that a view cuts (M,) another view shows whole."""
    boxes_M4, area_4 = cut.boxes, cut.boxes.new_tensor(view.area)
    reaches_V = (wholes.boxes[:, :2] < area_4[:2]).any(1) | (wholes.boxes[:, 2:] > area_4[2:]).any(1)
    ends_MV2 = torch.minimum(boxes_M4[:, None, 2:], wholes.boxes[:, 2:])
    shared_MV = (ends_MV2 - torch.maximum(boxes_M4[:, None, :2], wholes.boxes[:, :2])).clamp(min=0).prod(2)
    areas_M = (boxes_M4[:, 2:] - boxes_M4[:, :2]).prod(1)
    is_same_MV = cut.labels[:, None] == wholes.labels
    return (is_same_MV & reaches_V & (shared_MV >= COVERED * areas_M[:, None])).any(1)


def _cat(parts: Sequence[Detections]) -> Detections:
    masks = [one.masks for one in parts if one.masks is not None]
    return Detections(
        boxes=torch.cat([one.boxes for one in parts]),
        scores=torch.cat([one.scores for one in parts]),
        labels=torch.cat([one.labels for one in parts]),
        masks=torch.cat(masks) if masks else None,
    )

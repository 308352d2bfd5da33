"""Which anchor or region learns which object, and which of them are drawn for a step.

Legend: `N` anchors or regions · `G` objects.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from globalvit.detectors.boxes import iou

NEGATIVE = -1
IGNORED = -2
# Objects compared with all boxes at a time: memory does not grow with the crowd in an image.
OBJECTS_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Assigner:
    """Objects to boxes by IoU.

    Attributes:
        positive: a box learns the object it overlaps most from this IoU on.
        negative: it learns background under this one, and nothing in between.
        lowest_match: the boxes that an object overlaps most learn this object if their IoU is over 0 and at least
            this, even where another object is nearer to them; None switches that off.
    """

    positive: float
    negative: float
    lowest_match: float | None = None

    def __call__(self, boxes_N4: Tensor, objects_G4: Tensor) -> Tensor:
        """The object's index of every box: (N,) int64, `NEGATIVE` for background, `IGNORED` for boxes left out."""
        best_N, nearest_N, asking_N = _match(boxes_N4, objects_G4, self.lowest_match)
        assigned_N = torch.where(best_N >= self.positive, nearest_N, IGNORED)
        assigned_N[best_N < self.negative] = NEGATIVE
        return torch.where(asking_N >= 0, asking_N, assigned_N)


def _match(boxes_N4: Tensor, objects_G4: Tensor, lowest: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """For each box its largest IoU, the object of that, and the last object whose best box it is, `NEGATIVE` for none.

    All boxes that tie are an object's best.
    """
    best_N = torch.zeros(len(boxes_N4), device=boxes_N4.device)
    nearest_N = torch.full_like(best_N, NEGATIVE, dtype=torch.int64)
    asking_N = nearest_N.clone()
    for start in range(0, len(objects_G4) if len(boxes_N4) else 0, OBJECTS_AT_ONCE):
        iou_GN = iou(objects_G4[start : start + OBJECTS_AT_ONCE], boxes_N4)
        largest_N, where_N = iou_GN.max(0)
        nearest_N = torch.where(largest_N > best_N, where_N + start, nearest_N)
        best_N = torch.maximum(best_N, largest_N)
        if lowest is not None:
            asking_N = torch.maximum(asking_N, _asking(iou_GN, lowest, start))
    return best_N, nearest_N, asking_N


def _asking(iou_GN: Tensor, lowest: float, first: int) -> Tensor:
    """The last object whose best box each is: (N,) int64, counted from `first`, `NEGATIVE` for none."""
    best_G1 = iou_GN.amax(1, keepdim=True)
    is_best_GN = (iou_GN == best_G1) & (best_G1 >= lowest) & (best_G1 > 0)
    order_G1 = torch.arange(first, first + len(iou_GN), device=iou_GN.device)[:, None]
    return torch.where(is_best_GN, order_G1, NEGATIVE).amax(0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampler:
    """A draw of positives and negatives.

    Attributes:
        number: how many are drawn at most.
        positive_fraction: the part of them that may be positive; negatives fill the rest.
    """

    number: int
    positive_fraction: float

    def __call__(self, assigned_N: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Indices of the positives and of the negatives drawn, each in rising order.

        The draw is a function of `generator`, or of torch's random state where there is none. Where there are no more
        than may be drawn all are taken and nothing random is used.
        """
        positives = _draw((assigned_N >= 0).nonzero()[:, 0], int(self.number * self.positive_fraction), generator)
        negatives = _draw((assigned_N == NEGATIVE).nonzero()[:, 0], self.number - len(positives), generator)
        return positives, negatives


def _draw(indices: Tensor, most: int, generator: torch.Generator | None) -> Tensor:
    """At most `most` of `indices`, each equally likely."""
    if len(indices) <= most:
        return indices
    # Drawn on the CPU, so that a seed gives the same boxes on every device.
    drawn = torch.randperm(len(indices), generator=generator)[:most].sort().values
    return indices[drawn.to(indices.device)]

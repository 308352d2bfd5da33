"""Which anchor or region learns which object, and which of them are drawn for a step.

Legend: `N` anchors or regions · `G` objects.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from globalvit.detectors.boxes import iou

NEGATIVE = -1
IGNORED = -2


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
        count = len(boxes_N4)
        if count == 0 or len(objects_G4) == 0:
            return torch.full((count,), NEGATIVE, device=boxes_N4.device)
        iou_GN = iou(objects_G4, boxes_N4)
        best_N, nearest_N = iou_GN.max(0)
        assigned_N = torch.where(best_N >= self.positive, nearest_N, IGNORED)
        assigned_N[best_N < self.negative] = NEGATIVE
        return assigned_N if self.lowest_match is None else self._give_best(assigned_N, iou_GN, self.lowest_match)

    def _give_best(self, assigned_N: Tensor, iou_GN: Tensor, lowest: float) -> Tensor:
        """Each object its best boxes, all of those that tie; the last object wins a box that several ask for."""
        best_G1 = iou_GN.amax(1, keepdim=True)
        is_best_GN = (iou_GN == best_G1) & (best_G1 >= lowest) & (best_G1 > 0)
        order_G1 = torch.arange(len(iou_GN), device=iou_GN.device)[:, None]
        last_N = torch.where(is_best_GN, order_G1, NEGATIVE).amax(0)
        return torch.where(last_N >= 0, last_N, assigned_N)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampler:
    """A draw of positives and negatives.

    Attributes:
        number: how many are drawn at the most.
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

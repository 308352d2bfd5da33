"""What goes into a detector's losses and what comes out of its predictions, for one image.

Legend: `G` objects · `N` detections · `H W` pixels · `h w` grid of a mask within its box.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# From a count of this pass, a scalar tensor, to what this pass's sum is divided by. A lone pass divides by its own
# count; of many passes and processes, each divides by that of all, so that gradients are those of one large batch.
Divisor = Callable[[Tensor], Tensor]


def own_count(count: Tensor) -> Tensor:
    """The divisor of a single process: the count, at least 1."""
    return count.clamp(min=1).float()


@dataclass(frozen=True, kw_only=True, slots=True)
class Objects:
    """The labeled objects of an image.

    Attributes:
        boxes: (G, 4) float32.
        labels: (G,) int64, 0 … K−1.
        masks: (G, H, W), bool or uint8; None for detectors that need none.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Detections:
    """What was found in an image, best first.

    Attributes:
        boxes: (N, 4) float32.
        scores: (N,) float32, probabilities.
        labels: (N,) int64, 0 … K−1.
        masks: (N, h, w) float32, probabilities within each box; None from detectors without masks.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None

    def take(self, rows_N: Tensor) -> "Detections":
        """Return the detections of these rows, indices or bools."""
        masks = None if self.masks is None else self.masks[rows_N]
        return Detections(boxes=self.boxes[rows_N], scores=self.scores[rows_N], labels=self.labels[rows_N], masks=masks)

    def __len__(self) -> int:
        return len(self.labels)


def sum_by_level(values_N: Tensor, levels_N: Tensor, levels: int) -> Tensor:
    """Sums (L,) of the values of each level."""
    return torch.stack([torch.where(levels_N == level, values_N, 0.0).sum() for level in range(levels)])


def level_indices(anchors: Sequence[Tensor]) -> Tensor:
    """The level of each anchor of all levels' anchors in a row."""
    counts = torch.tensor([len(one) for one in anchors], device=anchors[0].device)
    return torch.arange(len(anchors), device=counts.device).repeat_interleave(counts)

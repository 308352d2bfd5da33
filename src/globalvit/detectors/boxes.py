"""Arithmetic on boxes (x1, y1, x2, y2) in pixels, in float32 whatever the networks run in. A width is x2 − x1.

Legend: `N` boxes · `M` other boxes · `…` any leading axes.
"""

from collections.abc import Sequence
from math import log

import torch
from torch import Tensor

Size = tuple[int, int]
# No box grows or shrinks by more in one step: Fast R-CNN's bound, here on both sides.
LARGEST_LOG_SCALE = log(1000 / 16)
SMALLEST_UNION = 1e-6
NO_STDS = (1.0, 1.0, 1.0, 1.0)


def encode(boxes_N4: Tensor, targets_N4: Tensor, stds: Sequence[float] = NO_STDS) -> Tensor:
    """The deltas (…, 4) that move boxes onto targets: the inverse of `decode`."""
    centers, sides = _centers_and_sides(boxes_N4.float())
    target_centers, target_sides = _centers_and_sides(targets_N4.float())
    deltas = torch.cat([(target_centers - centers) / sides, (target_sides / sides).log()], dim=-1)
    return deltas / deltas.new_tensor(stds)


def decode(boxes: Tensor, deltas: Tensor, stds: Sequence[float] = NO_STDS) -> Tensor:
    """Move boxes (…, 4) by deltas (…, 4): shifts in sides of the box, logarithms of the growth."""
    centers, sides = _centers_and_sides(boxes.float())
    deltas = deltas.float() * deltas.new_tensor(stds, dtype=torch.float32)
    growth = deltas[..., 2:].clamp(-LARGEST_LOG_SCALE, LARGEST_LOG_SCALE).exp()
    centers, half = centers + deltas[..., :2] * sides, sides * growth * 0.5
    return torch.cat([centers - half, centers + half], dim=-1)


def clip(boxes: Tensor, size: Size) -> Tensor:
    """Cut boxes (…, 4) to an image of `size` (height, width)."""
    height, width = size
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack([x, y], dim=-1).flatten(-2)


def has_area(boxes: Tensor) -> Tensor:
    """(…, 4) → (…) bool: both sides are over 0."""
    return (boxes[..., 2:] > boxes[..., :2]).all(-1)


def iou(boxes_N4: Tensor, others_M4: Tensor) -> Tensor:
    """Intersection over union of every pair: (N, M)."""
    boxes, others = boxes_N4.float()[:, None], others_M4.float()[None]
    inside, union = _overlap(boxes, others)
    return inside / union


def giou(boxes: Tensor, others: Tensor) -> Tensor:
    """Generalized IoU (arXiv 1902.09630) of boxes (…, 4) with others (…, 4), pair by pair: (…), from −1 to 1."""
    boxes, others = boxes.float(), others.float()
    inside, union = _overlap(boxes, others)
    hull_sides = torch.maximum(boxes[..., 2:], others[..., 2:]) - torch.minimum(boxes[..., :2], others[..., :2])
    hull = hull_sides.prod(-1).clamp(min=SMALLEST_UNION)
    return inside / union - (hull - union) / hull


def _overlap(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Areas of intersection and of union."""
    # Axis by axis: pairs of all anchors and all objects are the largest tensors of a training step.
    inside = _shared(boxes, others, 0) * _shared(boxes, others, 1)
    union = _area(boxes) + _area(others) - inside
    return inside, union.clamp(min=SMALLEST_UNION)


def _shared(boxes: Tensor, others: Tensor, axis: int) -> Tensor:
    """The length that boxes share along x (0) or y (1)."""
    start = torch.maximum(boxes[..., axis], others[..., axis])
    end = torch.minimum(boxes[..., axis + 2], others[..., axis + 2])
    return (end - start).clamp(min=0)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _centers_and_sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    starts, ends = boxes[..., :2], boxes[..., 2:]
    return (starts + ends) * 0.5, ends - starts

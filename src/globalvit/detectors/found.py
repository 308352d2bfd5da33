"""What is found in a batch of images, with as many rows for each: in prediction, in training's proposals, in exports.

Rows that stand for nothing have a score of 0; they come last. A graph that is exported keeps them all, so that its
shapes do not depend on what is found; elsewhere those that no image needs are cut off.

Legend: `B` images · `T` rows of an image · `R` rows of all images · `K` classes · `h w` grid of a mask within its box.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms, nms

from globalvit.detectors.boxes import Size
from globalvit.detectors.objects import Detections

# Up to this many boxes are suppressed in one call, with the boxes of each label and image shifted apart. Its time
# grows with the square of their number, so larger numbers are suppressed label by label and image by image.
TOGETHER = 1000
# IoU over which the lesser of two detections of a class is dropped.
OVERLAP = 0.5


class Found(NamedTuple):
    """Boxes (B, T, 4), scores (B, T) and labels (B, T), best first."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def trimmed(self) -> "Found":
        """Cut off the rows that stand for nothing in every image."""
        count = int((self.scores > 0).sum(1).max())
        return Found(*(one[:, :count] for one in self))

    def split(self, masks_BThw: Tensor | None = None) -> list[Detections]:
        """Return each image's own detections, with masks (B, T, h, w) if there are some."""
        found = []
        for image, count in enumerate((self.scores > 0).sum(1).tolist()):
            boxes, scores, labels = (one[image, :count] for one in self)
            masks = None if masks_BThw is None else masks_BThw[image, :count]
            found.append(Detections(boxes=boxes, scores=scores, labels=labels, masks=masks))
        return found


def stacked(boxes: Sequence[Tensor]) -> Found:
    """Return boxes (N, 4) of each image as rows with a score of 1 and a label of 0."""
    most = max(len(one) for one in boxes)
    boxes_BT4 = torch.stack([F.pad(one, (0, 0, 0, most - len(one))) for one in boxes])
    scores_BT = torch.stack([F.pad(one.new_ones(len(one)), (0, most - len(one))) for one in boxes])
    return Found(boxes_BT4, scores_BT, torch.zeros_like(scores_BT, dtype=torch.int64))


def limits_of(sizes: Sequence[Size], device: torch.device) -> Tensor:
    """Return the borders (B, 1, 4) to which boxes of images of (height, width) are cut; sides may be symbols."""
    rows = [[torch.full((), side, dtype=torch.float32, device=device) for side in size[::-1]] for size in sizes]
    return torch.stack([torch.stack([*row, *row]) for row in rows])[:, None]


def cut(boxes_BT4: Tensor, limits_B14: Tensor) -> Tensor:
    """Cut the boxes of each image to its borders."""
    return torch.minimum(boxes_BT4.clamp(min=0), limits_B14)


def rois_of(boxes_BT4: Tensor) -> Tensor:
    """Return boxes with the number of their image in front: (R, 5)."""
    images_B = torch.arange(boxes_BT4.shape[0], device=boxes_BT4.device, dtype=boxes_BT4.dtype)
    images_BT1 = images_B[:, None, None].expand(-1, boxes_BT4.shape[1], 1)
    return torch.cat([images_BT1, boxes_BT4], dim=-1).flatten(0, 1)


def suppress(found: Found, *, overlap: float, most: int, is_fixed: bool = False) -> Found:
    """Suppress non-maxima within each image and label, and return the `most` best rows of each image.

    Args:
        found: candidates in any order.
        overlap: IoU over which the lesser of two is dropped.
        most: rows of an image at most, exactly if `is_fixed`.
        is_fixed: whether the number of rows may not depend on what is found.
    """
    boxes_BT4, scores_BT, labels_BT = (F.pad(one, (0, 0, 0, most) if one.ndim == 3 else (0, most)) for one in found)
    batch, count = scores_BT.shape
    images_BT = torch.arange(batch, device=scores_BT.device)[:, None].expand(batch, count)
    scores_R = scores_BT.flatten()
    chosen = (scores_R > 0).nonzero()[:, 0]
    if is_fixed or len(chosen) <= TOGETHER:
        # A label moves to the right, an image down: large numbers would cost boxes their last digits.
        places_BT4 = torch.stack([labels_BT, images_BT, labels_BT, images_BT], -1) * (boxes_BT4.flatten().amax(0) + 1)
        kept = nms((boxes_BT4 + places_BT4).flatten(0, 1)[chosen], scores_R[chosen], overlap)
    else:
        pairs_R2 = torch.stack([images_BT, labels_BT], -1).flatten(0, 1)[chosen]
        groups_R = pairs_R2.unique(dim=0, return_inverse=True)[1]
        kept = batched_nms(boxes_BT4.flatten(0, 1)[chosen], scores_R[chosen], groups_R, overlap)
    is_kept_R = torch.zeros_like(scores_R).index_put((chosen[kept],), torch.ones_like(scores_R[chosen[kept]]))
    best = (scores_BT * is_kept_R.view(batch, count)).topk(most)
    out = Found(take(boxes_BT4, best.indices), best.values, labels_BT.gather(1, best.indices))
    return out if is_fixed else out.trimmed()


def join(found: Sequence[Found]) -> Found:
    """Put the rows of several levels side by side."""
    boxes, scores, labels = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    return Found(boxes, scores, labels)


def top(scores_BT: Tensor, most: int) -> torch.return_types.topk:
    """Return the best `most` of each image, or all if there are fewer."""
    return scores_BT.topk(torch.sym_min(most, scores_BT.shape[1]))


def above(scores: Tensor, threshold: float) -> Tensor:
    """Set scores that do not exceed the threshold to 0."""
    return torch.where(scores > threshold, scores, 0.0)


def take(x_BTC: Tensor, indices_BN: Tensor) -> Tensor:
    """Take rows of each image: (B, T, C) → (B, N, C)."""
    return x_BTC.gather(1, indices_BN[..., None].expand(-1, -1, x_BTC.shape[2]))

"""Regions in training and in the end: which are learned, what their losses are, which detections they give.

Shared by Mask R-CNN and its cascade. Legend: `R` regions of all images · `S` regions drawn in an image · `P` positive
ones of them · `G` objects · `K` classes · `N` detections · `h w` grid of a mask within its box.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from globalvit.detectors.assign import Assigner, Sampler
from globalvit.detectors.boxes import Size
from globalvit.detectors.found import OVERLAP, Found, above, cut, limits_of, stacked, suppress, take, top
from globalvit.detectors.limits import MOST_DETECTIONS
from globalvit.detectors.objects import Detections, Divisor, Objects

# Best boxes of an image that enter the last suppression, whose time grows with the square of their number: with a low
# threshold a thousand regions of 80 classes would be 80,000.
CANDIDATES = 5000
MASK_SIDE = 28
MASK_THRESHOLD = 0.5
# Objects whose masks are pooled at a time: they are floats of a whole image each.
MASKS_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """The regions of an image that a step learns from, positives first.

    Attributes:
        boxes: (S, 4).
        labels: (S,) int64, K for background.
        objects: (P,) int64, the object of each positive.
        is_given: (S,) bool: the region is a labeled box itself.
    """

    boxes: Tensor
    labels: Tensor
    objects: Tensor
    is_given: Tensor

    @property
    def positives(self) -> Tensor:
        """Boxes of the positives: (P, 4)."""
        return self.boxes[: len(self.objects)]

    @property
    def positive_labels(self) -> Tensor:
        """Labels of the positives: (P,)."""
        return self.labels[: len(self.objects)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Learning:
    """How regions of images become what a step learns from.

    Attributes:
        assigner: objects to regions.
        sampler: regions of an image that enter the losses.
        num_classes: classes without the background.
    """

    assigner: Assigner
    sampler: Sampler
    num_classes: int

    def draw(self, regions: Sequence[Tensor], objects: Sequence[Objects]) -> list[Drawn]:
        """The regions drawn in each image from the boxes (N, 4) given and the objects' own."""
        return [
            _draw(boxes, found, self.assigner, self.sampler, self.num_classes)
            for boxes, found in zip(regions, objects, strict=True)
        ]


@torch.no_grad()
def _draw(boxes_N4: Tensor, objects: Objects, assigner: Assigner, sampler: Sampler, num_classes: int) -> Drawn:
    # The objects' boxes are added after the assignment, so that each object's best region is still found.
    own = torch.arange(len(objects.boxes), device=boxes_N4.device)
    assigned = torch.cat([own, assigner(boxes_N4, objects.boxes)])
    boxes = torch.cat([objects.boxes.float(), boxes_N4])
    positives, negatives = sampler(assigned)
    chosen, found = torch.cat([positives, negatives]), assigned[positives]
    background = torch.full_like(negatives, num_classes)
    return Drawn(
        boxes=boxes[chosen],
        labels=torch.cat([objects.labels[found], background]),
        objects=found,
        is_given=chosen < len(own),
    )


def count_drawn(drawn: Sequence[Drawn]) -> Tensor:
    """Regions drawn in all images, as a scalar."""
    return torch.tensor(sum(len(one.boxes) for one in drawn), device=drawn[0].boxes.device)


def positive_rows(drawn: Sequence[Drawn]) -> Tensor:
    """Which of all images' drawn regions are positive: (R,) bool."""
    return torch.cat([torch.arange(len(one.boxes), device=one.boxes.device) < len(one.objects) for one in drawn])


def class_loss(logits_R: Tensor, drawn: Sequence[Drawn], divisor: Tensor) -> Tensor:
    """Cross-entropy of logits (R, K + 1), summed and divided."""
    labels_R = torch.cat([one.labels for one in drawn])
    return F.cross_entropy(logits_R.float(), labels_R, reduction="sum") / divisor


def of_label(values_RK: Tensor, labels_R: Tensor) -> Tensor:
    """What each region says for its label: (R, K, …) → (R, …)."""
    return values_RK[torch.arange(labels_R.shape[0], device=labels_R.device), labels_R]


def mask_loss(logits_PKhw: Tensor, drawn: Sequence[Drawn], objects: Sequence[Objects], divisor: Divisor) -> Tensor:
    """Binary cross-entropy of the positives' own classes: the mean over pixels, summed and divided by the positives."""
    labels_P = torch.cat([one.positive_labels for one in drawn])
    targets_Phw = torch.cat([mask_targets(a, b) for a, b in zip(drawn, objects, strict=True)])
    logits_Phw = of_label(logits_PKhw, labels_P).float()
    entropy = F.binary_cross_entropy_with_logits(logits_Phw, targets_Phw, reduction="sum") / MASK_SIDE**2
    return entropy / divisor(torch.tensor(len(labels_P), device=labels_P.device))


@torch.no_grad()
def mask_targets(drawn: Drawn, objects: Objects) -> Tensor:
    """The part of its object's mask that lies in each positive box: (P, 28, 28) float32 of 0 and 1.

    Raises:
        ValueError: the objects have no masks.
    """
    if objects.masks is None:
        raise ValueError(
            "the objects have no masks; this detector learns masks: give a data set that has them, or train a "
            "detector of boxes only (_retinanet)"
        )
    targets = drawn.boxes.new_zeros(len(drawn.objects), MASK_SIDE, MASK_SIDE)
    for start in range(0, len(objects.masks), MASKS_AT_ONCE):
        masks_G1HW = objects.masks[start : start + MASKS_AT_ONCE, None].float()
        chosen = ((drawn.objects >= start) & (drawn.objects < start + MASKS_AT_ONCE)).nonzero()[:, 0]
        rois = torch.cat([(drawn.objects[chosen] - start)[:, None].float(), drawn.positives[chosen]], 1)
        targets[chosen] = roi_align(masks_G1HW, rois, MASK_SIDE, 1.0, 0, aligned=True)[:, 0]
    return (targets >= MASK_THRESHOLD).float()


def best_of(
    probabilities_RK: Tensor,
    boxes_RK4: Tensor,
    regions: Found,
    limits_B14: Tensor,
    threshold: float,
    *,
    most: int = MOST_DETECTIONS,
    is_fixed: bool = False,
) -> Found:
    """Return the detections of all images from the probabilities and boxes of every region and class.

    Args:
        probabilities_RK: without the background's.
        boxes_RK4: decoded, not yet cut to the images.
        regions: whose rows they are.
        limits_B14: borders of each image without its padding.
        threshold: the score that a detection has to exceed.
        most: detections of an image.
        is_fixed: as in `suppress`.
    """
    batch, count = regions.scores.shape
    classes = probabilities_RK.shape[1]
    # What stands for no region is not a candidate.
    scores_BTK = probabilities_RK.view(batch, count, classes) * (regions.scores > 0)[..., None]
    best = top(above(scores_BTK.flatten(1), threshold), CANDIDATES)
    boxes_BS4 = cut(boxes_RK4.reshape(batch, count * classes, 4), limits_B14)
    candidates = Found(take(boxes_BS4, best.indices), best.values, best.indices % classes)
    return suppress(candidates, overlap=OVERLAP, most=most, is_fixed=is_fixed)


class RegionHeads(nn.Module):
    """Heads that turn proposed regions into detections."""

    @abstractmethod
    def find(
        self,
        maps: Sequence[Tensor],
        regions: Found,
        limits_B14: Tensor,
        threshold: float,
        *,
        most: int = MOST_DETECTIONS,
        is_fixed: bool = False,
    ) -> tuple[Found, Tensor]:
        """Return the detections of all images together, and masks (B, T, h, w).

        `most` and `is_fixed` are as in `suppress`.
        """

    def detect(
        self,
        maps: Sequence[Tensor],
        proposals: Sequence[Tensor],
        sizes: Sequence[Size],
        threshold: float,
        most: int = MOST_DETECTIONS,
    ) -> list[Detections]:
        """Return the detections of each image.

        Args:
            maps: the pyramid's.
            proposals: (N, 4) of each image.
            sizes: (height, width) of each image without its padding, to which boxes are cut.
            threshold: the score that a detection has to exceed.
            most: detections of an image.
        """
        limits_B14 = limits_of(sizes, maps[0].device)
        found, masks_BThw = self.find(maps, stacked(proposals), limits_B14, threshold, most=most)
        return found.split(masks_BThw)


def split_like(x_R: Tensor, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Cut what belongs to all images' boxes into each image's."""
    return x_R.split([len(one) for one in parts])

"""Cascade Mask R-CNN's second stage: three box heads, each starting from the boxes of the one before.

Paper: Cai and Vasconcelos, CVPR 2018, arXiv 1712.00726. Legend: `R` regions of all images · `K` classes · `P` positive
regions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from globalvit.detectors.assign import Assigner, Sampler
from globalvit.detectors.boxes import Size, clip, decode, giou
from globalvit.detectors.found import Found, cut, rois_of
from globalvit.detectors.limits import MOST_DETECTIONS
from globalvit.detectors.mask_rcnn import SAMPLER
from globalvit.detectors.objects import Divisor, Objects, own_count
from globalvit.detectors.regions import (
    Drawn,
    Learning,
    RegionHeads,
    best_of,
    class_loss,
    count_drawn,
    mask_loss,
    of_label,
    positive_rows,
    split_like,
)
from globalvit.detectors.roi import BOX_GRID, MASK_GRID, BoxHead, MaskHead, RegionPool

BOX_WEIGHT = 10.0
CONVS, FCS = 4, 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One step of the cascade.

    Attributes:
        overlap: IoU from which a region is positive.
        stds: scale of its deltas.
        weight: of its losses.
    """

    overlap: float
    stds: tuple[float, float, float, float]
    weight: float

    def learning(self, sampler: Sampler, num_classes: int) -> Learning:
        """Its draw of regions, without low-quality matches."""
        assigner = Assigner(positive=self.overlap, negative=self.overlap)
        return Learning(assigner=assigner, sampler=sampler, num_classes=num_classes)


STAGES = (
    Stage(overlap=0.5, stds=(0.1, 0.1, 0.2, 0.2), weight=1.0),
    Stage(overlap=0.6, stds=(0.05, 0.05, 0.1, 0.1), weight=0.5),
    # 0.033 and 0.067 as published, not thirds.
    Stage(overlap=0.7, stds=(0.033, 0.033, 0.067, 0.067), weight=0.25),
)


class CascadeHeads(RegionHeads):
    """Boxes, classes and masks of proposed regions, refined twice.

    Args:
        channels: channels of the pyramid's maps, finest first.
        strides: their strides.
        num_classes: classes without the background.
        sampler: regions of an image that enter each stage's losses.

    Raises:
        ValueError: the pyramid is not one that regions can be read from.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], num_classes: int, sampler: Sampler = SAMPLER
    ) -> None:
        super().__init__()
        self.pool = RegionPool(channels, strides)
        self.learning = [stage.learning(sampler, num_classes) for stage in STAGES]
        self.box_heads = nn.ModuleList(BoxHead(self.pool.channels, num_classes, convs=CONVS, fcs=FCS) for _ in STAGES)
        self.mask_heads = nn.ModuleList(MaskHead(self.pool.channels, num_classes) for _ in STAGES)

    def init_weights(self) -> None:
        """Fresh weights of all heads."""
        for head in self.modules():
            if isinstance(head, BoxHead | MaskHead):
                head.init_weights()

    def boxes(self, stage: int, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """A stage's logits (R, K + 1) and deltas (R, K, 4) of the boxes (N, 4) of every image."""
        return self.box_heads[stage](self.pool(maps, boxes, BOX_GRID))

    def masks(self, maps: Sequence[Tensor], boxes: Sequence[Tensor], labels_R: Tensor) -> Tensor:
        """Mask probabilities (R, 28, 28) of the boxes (N, 4) of every image for their labels, the mean of all heads."""
        return self._mean_masks(self.pool(maps, boxes, MASK_GRID), labels_R)

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
        """See `RegionHeads`: mean logits of all stages, boxes of the last."""
        all_logits, boxes_RK4 = [], regions.boxes
        for number, stage in enumerate(STAGES):
            logits_R, deltas_RK4 = self.box_heads[number](self.pool.of_rois(maps, rois_of(regions.boxes), BOX_GRID))
            all_logits.append(logits_R.float())
            boxes_R4 = regions.boxes.flatten(0, 1)
            if stage is not STAGES[-1]:
                moved_R4 = decode(boxes_R4, of_label(deltas_RK4, best_classes(logits_R)), stage.stds)
                regions = regions._replace(boxes=cut(moved_R4.view(regions.boxes.shape), limits_B14))
            else:
                boxes_RK4 = decode(boxes_R4[:, None], deltas_RK4, stage.stds)
        probabilities_RK = torch.stack(all_logits).mean(0).softmax(1)[:, :-1]
        found = best_of(probabilities_RK, boxes_RK4, regions, limits_B14, threshold, most=most, is_fixed=is_fixed)
        pooled, labels_R = self.pool.of_rois(maps, rois_of(found.boxes), MASK_GRID), found.labels.flatten()
        masks_Rhw = self._mean_masks(pooled, labels_R)
        return found, masks_Rhw.view(*found.scores.shape, *masks_Rhw.shape[1:])

    def _mean_masks(self, pooled: Tensor, labels_R: Tensor) -> Tensor:
        return torch.stack([of_label(head(pooled), labels_R).float().sigmoid() for head in self.mask_heads]).mean(0)

    def losses(
        self,
        maps: Sequence[Tensor],
        proposals: Sequence[Tensor],
        objects: Sequence[Objects],
        sizes: Sequence[Size],
        divisor: Divisor = own_count,
    ) -> dict[str, Tensor]:
        """`s0.loss_cls`, `s0.loss_bbox`, `s0.loss_mask`, then `s1.…`, `s2.…`: scalars, the stages' weights in them."""
        losses, boxes = {}, list(proposals)
        for number, stage in enumerate(STAGES):
            drawn = self.learning[number].draw(boxes, objects)
            logits_R, deltas_RK4 = self.boxes(number, maps, [one.boxes for one in drawn])
            count = divisor(count_drawn(drawn))
            masks_P = self.mask_heads[number](self.pool(maps, [one.positives for one in drawn], MASK_GRID))
            terms = {
                "loss_cls": class_loss(logits_R, drawn, count),
                "loss_bbox": _box_loss(deltas_RK4, drawn, objects, stage) / count,
                "loss_mask": mask_loss(masks_P, drawn, objects, divisor),
            }
            losses |= {f"s{number}.{name}": stage.weight * value for name, value in terms.items()}
            boxes = _next_boxes(drawn, logits_R, deltas_RK4, stage, sizes)
        return losses


def best_classes(logits_R: Tensor) -> Tensor:
    """The likeliest class of each region (R,), never the background."""
    return logits_R[:, :-1].argmax(1)


@torch.no_grad()
def refine(
    boxes: Sequence[Tensor], labels_R: Tensor, deltas_RK4: Tensor, stage: Stage, sizes: Sequence[Size]
) -> list[Tensor]:
    """Move each image's boxes (N, 4) by the deltas of their labels and cut them to the image."""
    moved = decode(torch.cat(list(boxes)), of_label(deltas_RK4, labels_R), stage.stds)
    return [clip(one, size) for one, size in zip(split_like(moved, boxes), sizes, strict=True)]


def _next_boxes(
    drawn: Sequence[Drawn], logits_R: Tensor, deltas_RK4: Tensor, stage: Stage, sizes: Sequence[Size]
) -> list[Tensor]:
    """The drawn regions, moved; labeled boxes are left out, since every stage adds them itself."""
    moved = refine([one.boxes for one in drawn], best_classes(logits_R), deltas_RK4, stage, sizes)
    return [boxes[~one.is_given] for boxes, one in zip(moved, drawn, strict=True)]


def _box_loss(deltas_RK4: Tensor, drawn: Sequence[Drawn], objects: Sequence[Objects], stage: Stage) -> Tensor:
    """Summed 1 − GIoU of the positives' decoded boxes, times 10."""
    labels_P = torch.cat([one.positive_labels for one in drawn])
    deltas_P4 = of_label(deltas_RK4[positive_rows(drawn)], labels_P)
    moved_P4 = decode(torch.cat([one.positives for one in drawn]), deltas_P4, stage.stds)
    targets_P4 = torch.cat([found.boxes[one.objects] for one, found in zip(drawn, objects, strict=True)])
    return BOX_WEIGHT * (1 - giou(moved_P4, targets_P4)).sum()

"""Mask R-CNN's second stage: one box head and one mask head on the regions that the RPN proposes.

Paper: He et al., ICCV 2017, arXiv 1703.06870. Legend: `R` regions of all images · `K` classes · `P` positive regions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from globalvit.detectors.assign import Assigner, Sampler
from globalvit.detectors.boxes import Size, decode, encode
from globalvit.detectors.found import Found, rois_of
from globalvit.detectors.limits import MOST_DETECTIONS
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
)
from globalvit.detectors.roi import BOX_GRID, MASK_GRID, BoxHead, MaskHead, RegionPool

STDS = (0.1, 0.1, 0.2, 0.2)
ASSIGNER = Assigner(positive=0.5, negative=0.5, lowest_match=0.5)
SAMPLER = Sampler(number=512, positive_fraction=0.25)


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxLayers:
    """Depth of a box head: 3×3 convolutions, then fully connected layers."""

    convs: int
    fcs: int


class MaskRCNNHeads(RegionHeads):
    """Boxes, classes and masks of proposed regions.

    Args:
        channels: channels of the pyramid's maps, finest first.
        strides: their strides.
        num_classes: classes without the background.
        layers: depth of the box head.
        sampler: regions of an image that enter the losses.

    Raises:
        ValueError: the pyramid is not one that regions can be read from.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        layers: BoxLayers,
        sampler: Sampler = SAMPLER,
    ) -> None:
        super().__init__()
        self.pool = RegionPool(channels, strides)
        self.learning = Learning(assigner=ASSIGNER, sampler=sampler, num_classes=num_classes)
        self.box_head = BoxHead(self.pool.channels, num_classes, convs=layers.convs, fcs=layers.fcs)
        self.mask_head = MaskHead(self.pool.channels, num_classes)

    def init_weights(self) -> None:
        """Fresh weights of both heads."""
        self.box_head.init_weights()
        self.mask_head.init_weights()

    def boxes(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (R, K + 1) and deltas (R, K, 4) of the boxes (N, 4) of every image."""
        return self.box_head(self.pool(maps, boxes, BOX_GRID))

    def masks(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Mask logits (R, K, 28, 28) of the boxes (N, 4) of every image."""
        return self.mask_head(self.pool(maps, boxes, MASK_GRID))

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
        """See `RegionHeads`."""
        logits_R, deltas_RK4 = self.box_head(self.pool.of_rois(maps, rois_of(regions.boxes), BOX_GRID))
        probabilities_RK = logits_R.float().softmax(1)[:, :-1]
        boxes_RK4 = decode(regions.boxes.flatten(0, 1)[:, None], deltas_RK4, STDS)
        found = best_of(probabilities_RK, boxes_RK4, regions, limits_B14, threshold, most=most, is_fixed=is_fixed)
        logits_RKhw = self.mask_head(self.pool.of_rois(maps, rois_of(found.boxes), MASK_GRID))
        masks_Rhw = of_label(logits_RKhw, found.labels.flatten()).float().sigmoid()
        return found, masks_Rhw.view(*found.scores.shape, *masks_Rhw.shape[1:])

    def losses(
        self,
        maps: Sequence[Tensor],
        proposals: Sequence[Tensor],
        objects: Sequence[Objects],
        sizes: Sequence[Size],  # noqa: ARG002 - the cascade's heads need them
        divisor: Divisor = own_count,
    ) -> dict[str, Tensor]:
        """`loss_cls`, cross-entropy, `loss_bbox`, L1, and `loss_mask`, binary cross-entropy: scalars.

        Classes and boxes are divided by the regions drawn, masks by the positives.
        """
        drawn = self.learning.draw(proposals, objects)
        logits_R, deltas_RK4 = self.boxes(maps, [one.boxes for one in drawn])
        count = divisor(count_drawn(drawn))
        masks_P = self.masks(maps, [one.positives for one in drawn])
        return {
            "loss_cls": class_loss(logits_R, drawn, count),
            "loss_bbox": _box_loss(deltas_RK4, drawn, objects) / count,
            "loss_mask": mask_loss(masks_P, drawn, objects, divisor),
        }


def _box_loss(deltas_RK4: Tensor, drawn: Sequence[Drawn], objects: Sequence[Objects]) -> Tensor:
    """Summed L1 distance of the positives' deltas for their own class."""
    labels_P = torch.cat([one.positive_labels for one in drawn])
    deltas_P4 = of_label(deltas_RK4[positive_rows(drawn)], labels_P)
    targets_P4 = torch.cat(
        [encode(one.positives, found.boxes[one.objects], STDS) for one, found in zip(drawn, objects, strict=True)]
    )
    return F.l1_loss(deltas_P4.float(), targets_P4, reduction="sum")

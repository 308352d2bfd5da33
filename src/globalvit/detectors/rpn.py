"""Region proposal network: class-agnostic object proposals.

Paper: Ren et al., NeurIPS 2015, arXiv 1506.01497, on a feature pyramid (arXiv 1612.03144).
Legend: `B` images · `C` channels · `H W` grid · `L` levels · `A` anchors a cell · `N` anchors of all levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from globalvit.detectors.anchors import Anchors, flatten
from globalvit.detectors.assign import Assigner, Sampler
from globalvit.detectors.boxes import Size, decode, encode, has_area
from globalvit.detectors.found import Found, cut, join, limits_of, suppress, take, top
from globalvit.detectors.objects import (
    Detections,
    Divisor,
    Objects,
    level_indices,
    own_count,
    sum_by_level,
)

WIDTH = 256
SCALE = 8.0
INIT_STD = 0.01
ASSIGNER = Assigner(positive=0.7, negative=0.3, lowest_match=0.3)
SAMPLER = Sampler(number=256, positive_fraction=0.5)


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Which boxes become proposals.

    Attributes:
        per_level: best ones of each level that are looked at.
        most: proposals of an image.
        overlap: IoU over which the lesser of two of a level is dropped.
    """

    per_level: int
    most: int
    overlap: float = 0.7


@dataclass(frozen=True, kw_only=True, slots=True)
class RPNTraining:
    """How proposals are learned; Mask R-CNN's values are the defaults.

    Attributes:
        choice: the proposals that the RoI heads train on.
        beta: where the box loss turns from squares to absolute values; 0 is L1.
        is_inside_only: anchors that cross the image's border learn nothing.
        assigner: objects to anchors.
        sampler: anchors of an image that enter the losses.
    """

    choice: Choice = Choice(per_level=2000, most=1000)
    beta: float = 0.0
    is_inside_only: bool = False
    assigner: Assigner = ASSIGNER
    sampler: Sampler = SAMPLER


EVALUATION = Choice(per_level=1000, most=1000)
MASK_RCNN = RPNTraining()
CASCADE = RPNTraining(choice=Choice(per_level=2000, most=2000), beta=1 / 9, is_inside_only=True)


class RPN(nn.Module):
    """Logits and deltas of every anchor, from maps of equal channels.

    Args:
        channels: channels of every map.
        strides: strides of the maps, finest first.
        training: how it is trained.

    Raises:
        ValueError: the maps differ in channels.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], training: RPNTraining = MASK_RCNN) -> None:
        super().__init__()
        self.anchors = Anchors(strides=tuple(strides), scales=(SCALE,))
        self.how = training
        self.conv = nn.Conv2d(one_width(channels), WIDTH, 3, padding=1)
        self.logits = nn.Conv2d(WIDTH, self.anchors.per_cell, 1)
        self.deltas = nn.Conv2d(WIDTH, 4 * self.anchors.per_cell, 1)

    def init_weights(self) -> None:
        """Normal 0.01, biases 0 (Faster R-CNN)."""
        for layer in (self.conv, self.logits, self.deltas):
            nn.init.normal_(layer.weight, std=INIT_STD)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, maps_BCHW: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Maps → logits (B, A, H, W) and deltas (B, 4A, H, W) of each, anchor after anchor."""
        hidden = [F.relu(self.conv(x)) for x in maps_BCHW]
        return [self.logits(x) for x in hidden], [self.deltas(x) for x in hidden]

    @torch.no_grad()
    def propose(
        self, logits: Sequence[Tensor], deltas: Sequence[Tensor], sizes: Sequence[Size], choice: Choice = EVALUATION
    ) -> list[Detections]:
        """Return the proposals of each image, their `labels` the levels.

        Args:
            logits: as `forward` gives them.
            deltas: as `forward` gives them.
            sizes: (height, width) of each image without its padding, to which proposals are cut.
            choice: how many.
        """
        return self.find(logits, deltas, limits_of(sizes, logits[0].device), choice).split()

    def find(
        self,
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        limits_B14: Tensor,
        choice: Choice = EVALUATION,
        *,
        is_fixed: bool = False,
    ) -> Found:
        """Return the proposals of all images together; `is_fixed` as in `suppress`."""
        found = []
        for level, anchors_N4 in enumerate(self.anchors.of_maps(logits)):
            scores_BN = flatten(logits[level], self.anchors.per_cell)[..., 0].float().sigmoid()
            best = top(scores_BN, choice.per_level)
            deltas_BT4 = take(flatten(deltas[level], self.anchors.per_cell), best.indices)
            boxes_BT4 = cut(decode(anchors_N4[best.indices], deltas_BT4), limits_B14)
            scores_BT = torch.where(has_area(boxes_BT4), best.values, 0.0)
            found.append(Found(boxes_BT4, scores_BT, torch.full_like(best.indices, level)))
        return suppress(join(found), overlap=choice.overlap, most=choice.most, is_fixed=is_fixed)

    def losses(
        self,
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        objects: Sequence[Objects],
        sizes: Sequence[Size],
        divisor: Divisor = own_count,
    ) -> dict[str, Tensor]:
        """`loss_rpn_cls`, binary cross-entropy, and `loss_rpn_bbox`, (smooth) L1: (L,) each, a term for every level.

        Both are sums over the anchors drawn, divided by the number drawn.
        """
        anchors = self.anchors.of_maps(logits)
        anchors_N4, levels_N = torch.cat(anchors), level_indices(anchors)
        logits_BN = torch.cat([flatten(x, self.anchors.per_cell)[..., 0] for x in logits], 1).float()
        deltas_BN4 = torch.cat([flatten(x, self.anchors.per_cell) for x in deltas], 1).float()
        entropies, distances, drawn = [], [], 0
        for image, (found, size) in enumerate(zip(objects, sizes, strict=True)):
            positives, negatives, targets = self._targets(anchors_N4, found, size)
            drawn += len(positives) + len(negatives)
            chosen = torch.cat([positives, negatives])
            is_object = (torch.arange(len(chosen), device=chosen.device) < len(positives)).float()
            entropy = F.binary_cross_entropy_with_logits(logits_BN[image, chosen], is_object, reduction="none")
            distance = F.smooth_l1_loss(
                deltas_BN4[image, positives], targets, reduction="none", beta=self.how.beta
            ).sum(1)
            entropies.append(sum_by_level(entropy, levels_N[chosen], len(anchors)))
            distances.append(sum_by_level(distance, levels_N[positives], len(anchors)))
        count = divisor(torch.tensor(drawn, device=anchors_N4.device))
        return {
            "loss_rpn_cls": torch.stack(entropies).sum(0) / count,
            "loss_rpn_bbox": torch.stack(distances).sum(0) / count,
        }

    def _targets(self, anchors_N4: Tensor, objects: Objects, size: Size) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of the positives and negatives drawn, and the positives' deltas."""
        used = torch.arange(len(anchors_N4), device=anchors_N4.device)
        if self.how.is_inside_only:
            used = _is_inside(anchors_N4, size).nonzero()[:, 0]
        assigned = self.how.assigner(anchors_N4[used], objects.boxes)
        positives, negatives = self.how.sampler(assigned)
        targets = encode(anchors_N4[used[positives]], objects.boxes[assigned[positives]])
        return used[positives], used[negatives], targets


def one_width(channels: Sequence[int]) -> int:
    """The number of channels that all maps have.

    Raises:
        ValueError: they differ.
    """
    if len(set(channels)) != 1:
        raise ValueError(f"maps of {tuple(channels)} channels came; a detector's head serves maps of equal channels")
    return channels[0]


def _is_inside(boxes_N4: Tensor, size: Size) -> Tensor:
    height, width = size
    left, top, right, bottom = boxes_N4.unbind(1)
    return (left >= 0) & (top >= 0) & (right < width) & (bottom < height)

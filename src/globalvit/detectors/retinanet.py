"""RetinaNet's head: classes and boxes of every anchor in one step, without proposals.

Paper: Lin et al., ICCV 2017, arXiv 1708.02002. Legend: `B` images · `C` channels · `H W` grid · `L` levels ·
`A` anchors a cell · `N` anchors of a level or of all · `K` classes · `G` objects.
"""

from collections.abc import Sequence
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from globalvit.detectors.anchors import Anchors, flatten
from globalvit.detectors.assign import IGNORED, Assigner
from globalvit.detectors.boxes import Size, decode, encode
from globalvit.detectors.found import OVERLAP, Found, above, cut, join, limits_of, suppress, take, top
from globalvit.detectors.limits import MOST_DETECTIONS
from globalvit.detectors.objects import (
    Detections,
    Divisor,
    Objects,
    level_indices,
    own_count,
    sum_by_level,
)
from globalvit.detectors.rpn import one_width

WIDTH = 256
CONVS = 4
SCALES = (4.0, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3))
ASSIGNER = Assigner(positive=0.5, negative=0.4, lowest_match=0.0)
FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2
INIT_STD = 0.01
# At first every anchor is of each class with this probability, so that the many negatives do not drown the rest.
PRIOR = 0.01
PER_LEVEL = 1000


class RetinaNetHead(nn.Module):
    """Class logits and deltas of every anchor, from maps of equal channels.

    Args:
        channels: channels of every map.
        strides: strides of the maps, finest first.
        num_classes: classes without the background.

    Raises:
        ValueError: the maps differ in channels.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.anchors = Anchors(strides=tuple(strides), scales=SCALES)
        self.num_classes = num_classes
        self.class_convs = _convs(one_width(channels))
        self.box_convs = _convs(one_width(channels))
        self.logits = nn.Conv2d(WIDTH, self.anchors.per_cell * num_classes, 3, padding=1)
        self.deltas = nn.Conv2d(WIDTH, self.anchors.per_cell * 4, 3, padding=1)

    def init_weights(self) -> None:
        """Normal 0.01, biases 0, those of the classes at a probability of 0.01."""
        for layer in (*self.class_convs, *self.box_convs, self.logits, self.deltas):
            assert isinstance(layer, nn.Conv2d)
            assert layer.bias is not None
            nn.init.normal_(layer.weight, std=INIT_STD)
            nn.init.constant_(layer.bias, log(PRIOR / (1 - PRIOR)) if layer is self.logits else 0.0)

    def forward(self, maps_BCHW: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Maps → logits (B, A·K, H, W) and deltas (B, A·4, H, W) of each, anchor after anchor."""
        logits = [self.logits(_run(self.class_convs, x)) for x in maps_BCHW]
        return logits, [self.deltas(_run(self.box_convs, x)) for x in maps_BCHW]

    def losses(
        self,
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        objects: Sequence[Objects],
        divisor: Divisor = own_count,
    ) -> dict[str, Tensor]:
        """`loss_cls`, focal, and `loss_bbox`, L1: (L,) each, a term for every level.

        Both are sums over the anchors that are assigned, divided by the number of positives.
        """
        anchors = self.anchors.of_maps(logits)
        anchors_N4, levels_N = torch.cat(anchors), level_indices(anchors)
        assigned_BN = torch.stack([ASSIGNER(anchors_N4, one.boxes) for one in objects])
        count = divisor((assigned_BN >= 0).sum())
        classes = self._class_losses(logits, _labels(assigned_BN, objects, self.num_classes))
        deltas_BN4 = torch.cat([flatten(x, self.anchors.per_cell) for x in deltas], 1).float()
        distances = []
        for image, (assigned_N, found) in enumerate(zip(assigned_BN, objects, strict=True)):
            positives = (assigned_N >= 0).nonzero()[:, 0]
            targets = encode(anchors_N4[positives], found.boxes[assigned_N[positives]])
            distance = F.l1_loss(deltas_BN4[image, positives], targets, reduction="none").sum(1)
            distances.append(sum_by_level(distance, levels_N[positives], len(anchors)))
        return {"loss_cls": classes / count, "loss_bbox": torch.stack(distances).sum(0) / count}

    def _class_losses(self, logits: Sequence[Tensor], labels_BN: Tensor) -> Tensor:
        """Summed focal loss of each level: (L,). Level by level, because logits are the largest tensors here."""
        flat = [flatten(x, self.anchors.per_cell).float() for x in logits]
        labels = labels_BN.split([x.shape[1] for x in flat], dim=1)
        return torch.stack([_focal_sum(x, y) for x, y in zip(flat, labels, strict=True)])

    @torch.no_grad()
    def detect(
        self,
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        sizes: Sequence[Size],
        threshold: float,
        most: int = MOST_DETECTIONS,
    ) -> list[Detections]:
        """Detections of each image.

        Args:
            logits: as `forward` gives them.
            deltas: as `forward` gives them.
            sizes: (height, width) of each image without its padding, to which boxes are cut.
            threshold: the score that a detection has to exceed.
            most: detections of an image.
        """
        return self.find(logits, deltas, limits_of(sizes, logits[0].device), threshold, most=most).split()

    def find(
        self,
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        limits_B14: Tensor,
        threshold: float,
        *,
        most: int = MOST_DETECTIONS,
        is_fixed: bool = False,
    ) -> Found:
        """Return the detections of all images together; `most` and `is_fixed` as in `suppress`."""
        found = []
        anchors = self.anchors.of_maps(logits)
        for logits_BCHW, deltas_BCHW, anchors_N4 in zip(logits, deltas, anchors, strict=True):
            scores_BS = flatten(logits_BCHW, self.anchors.per_cell).float().sigmoid().flatten(1)
            best = top(scores_BS, PER_LEVEL)
            rows_BT = best.indices // self.num_classes
            deltas_BT4 = take(flatten(deltas_BCHW, self.anchors.per_cell), rows_BT)
            boxes_BT4 = cut(decode(anchors_N4[rows_BT], deltas_BT4), limits_B14)
            found.append(Found(boxes_BT4, above(best.values, threshold), best.indices % self.num_classes))
        return suppress(join(found), overlap=OVERLAP, most=most, is_fixed=is_fixed)


def focal_loss(logits: Tensor, is_class: Tensor) -> Tensor:
    """Focal loss (equation 5) with γ = 2 and α = 0.25 of every logit by itself.

    Args:
        logits: of any shape, float32.
        is_class: bool of the same shape.
    """
    # The logit of being wrong: σ of it is the published 1 − p_t, and softplus of it −log p_t.
    wrong = torch.where(is_class, -logits, logits)
    alpha = torch.where(is_class, FOCAL_ALPHA, 1 - FOCAL_ALPHA)
    return alpha * wrong.sigmoid() ** FOCAL_GAMMA * F.softplus(wrong)


def _focal_sum(logits_BNK: Tensor, labels_BN: Tensor) -> Tensor:
    """The sum over all anchors but the ignored ones."""
    classes_K = torch.arange(logits_BNK.shape[-1], device=logits_BNK.device)
    losses_BN = focal_loss(logits_BNK, labels_BN[..., None] == classes_K).sum(-1)
    return torch.where(labels_BN == IGNORED, 0.0, losses_BN).sum()


def _labels(assigned_BN: Tensor, objects: Sequence[Objects], background: int) -> Tensor:
    """The class of every anchor, `background` for none: (B, N) int64; ignored ones stay `IGNORED`."""
    labels_BN = torch.where(assigned_BN == IGNORED, IGNORED, background)
    for labels_N, assigned_N, found in zip(labels_BN, assigned_BN, objects, strict=True):
        positives = assigned_N >= 0
        labels_N[positives] = found.labels[assigned_N[positives]]
    return labels_BN


def _convs(channels: int) -> nn.ModuleList:
    widths = [channels] + [WIDTH] * (CONVS - 1)
    return nn.ModuleList(nn.Conv2d(width, WIDTH, 3, padding=1) for width in widths)


def _run(convs: nn.ModuleList, x_BCHW: Tensor) -> Tensor:
    for conv in convs:
        x_BCHW = F.relu(conv(x_BCHW))
    return x_BCHW

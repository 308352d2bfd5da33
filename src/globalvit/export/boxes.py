"""Finding objects inside a graph: what detectors do image by image, for any batch at once.

Every step gives each image the same number of rows; those that stand for nothing have a score of 0. Objects of several
images and labels meet in one suppression, each label and each image moved to a place of its own.

Legend: `B` images · `T` candidates an image · `K` classes · `R` regions of all images · `L` levels · `h w` grid of a
mask within its box.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms

from globalvit.detectors import retinanet
from globalvit.detectors.anchors import flatten
from globalvit.detectors.boxes import Size, decode, has_area
from globalvit.detectors.cascade import STAGES, CascadeHeads, best_classes
from globalvit.detectors.mask_rcnn import STDS
from globalvit.detectors.regions import OVERLAP, of_label
from globalvit.detectors.retinanet import RetinaNetHead
from globalvit.detectors.roi import BOX_GRID, MASK_GRID
from globalvit.detectors.rpn import EVALUATION, RPN
from globalvit.tasks.detect import DenseDetector, Detector, RegionDetector

# Best boxes of an image that enter the last suppression, whose time grows with the square of their number: with a low
# threshold a thousand regions of 80 classes would be 80,000. RetinaNet looks at as many at most by its own rule.
CANDIDATES = 5000


class Found(NamedTuple):
    """The best candidates of each image: boxes (B, T, 4), scores (B, T), and their `labels` (B, T)."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def find_objects(
    detector: Detector, maps: dict[str, list[Tensor]], size: Size, threshold: float, most: int
) -> tuple[Tensor, ...]:
    """Boxes (B, N, 4), scores (B, N), labels (B, N) and, where the detector has some, masks (B, N, h, w).

    Args:
        detector: its raw maps were computed.
        maps: what its forward gave.
        size: (height, width) of the images without padding.
        threshold: the score that a detection has to exceed.
        most: N, the detections of each image.
    """
    if isinstance(detector, DenseDetector):
        return tuple(_dense(detector.dense, maps, size, threshold, most))
    assert isinstance(detector, RegionDetector)
    proposals = _propose(detector.rpn, maps["rpn_logits"], maps["rpn_deltas"], size)
    features, roi = maps["features"], detector.roi
    if isinstance(roi, CascadeHeads):
        probabilities, boxes = _cascade(roi, features, proposals.boxes, size)
        heads = list(roi.mask_heads)
    else:
        logits_R, deltas_RK4 = roi.box_head(roi.pool.of_rois(features, _rois(proposals.boxes), BOX_GRID))
        probabilities = logits_R.float().softmax(1)[:, :-1]
        boxes = clip(decode(proposals.boxes.flatten(0, 1)[:, None], deltas_RK4, STDS), size)
        heads = [roi.mask_head]
    found = _detect(probabilities, boxes, proposals, threshold, most)
    pooled = roi.pool.of_rois(features, _rois(found.boxes), MASK_GRID)
    labels_R = found.labels.flatten()
    masks_Rhw = torch.stack([of_label(head(pooled), labels_R).float().sigmoid() for head in heads]).mean(0)
    return *found, masks_Rhw.unflatten(0, (-1, most))


def clip(boxes: Tensor, size: Size) -> Tensor:
    """Cut boxes (…, 4) to images of `size`, which may be symbols."""
    height, width = (torch.full((), side, dtype=torch.float32, device=boxes.device) for side in size)
    return torch.minimum(boxes.clamp(min=0), torch.stack([width, height, width, height]))


def _dense(head: RetinaNetHead, maps: dict[str, list[Tensor]], size: Size, threshold: float, most: int) -> Found:
    found = []
    anchors = head.anchors.of_maps(maps["logits"])
    for logits, deltas, anchors_N4 in zip(maps["logits"], maps["deltas"], anchors, strict=True):
        scores_BT = flatten(logits, head.anchors.per_cell).float().sigmoid().flatten(1)
        deltas_BN4 = flatten(deltas, head.anchors.per_cell)
        best = _top(scores_BT, retinanet.PER_LEVEL)
        rows_BT = best.indices // head.num_classes
        boxes = clip(decode(anchors_N4[rows_BT], _take(deltas_BN4, rows_BT)), size)
        found.append(Found(boxes, _above(best.values, threshold), best.indices % head.num_classes))
    return _suppress(_join(found), retinanet.OVERLAP, most)


def _propose(rpn: RPN, logits: Sequence[Tensor], deltas: Sequence[Tensor], size: Size) -> Found:
    """Proposals, their `labels` the levels."""
    found = []
    for level, anchors_N4 in enumerate(rpn.anchors.of_maps(logits)):
        scores_BN = flatten(logits[level], rpn.anchors.per_cell)[..., 0].float().sigmoid()
        best = _top(scores_BN, EVALUATION.per_level)
        moved = decode(anchors_N4[best.indices], _take(flatten(deltas[level], rpn.anchors.per_cell), best.indices))
        boxes = clip(moved, size)
        scores = torch.where(has_area(boxes), best.values, 0.0)
        found.append(Found(boxes, scores, torch.full_like(best.indices, level)))
    return _suppress(_join(found), EVALUATION.overlap, EVALUATION.most)


def _cascade(heads: CascadeHeads, features: Sequence[Tensor], boxes_BT4: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """Probabilities (R, K) as the mean of all stages' logits, and boxes (R, K, 4) of the last."""
    all_logits, boxes, deltas_RK4 = [], boxes_BT4, None
    for stage, box_head in zip(STAGES, heads.box_heads, strict=True):
        logits_R, deltas_RK4 = box_head(heads.pool.of_rois(features, _rois(boxes), BOX_GRID))
        all_logits.append(logits_R.float())
        if stage is not STAGES[-1]:
            moved = decode(boxes.flatten(0, 1), of_label(deltas_RK4, best_classes(logits_R)), stage.stds)
            boxes = clip(moved, size).view(boxes_BT4.shape)
    assert deltas_RK4 is not None
    probabilities = torch.stack(all_logits).mean(0).softmax(1)[:, :-1]
    return probabilities, clip(decode(boxes.flatten(0, 1)[:, None], deltas_RK4, STAGES[-1].stds), size)


def _detect(probabilities_RK: Tensor, boxes_RK4: Tensor, proposals: Found, threshold: float, most: int) -> Found:
    """The best of every region and class."""
    regions, classes = proposals.scores.shape[1], probabilities_RK.shape[1]
    # What stands for no proposal is no candidate.
    scores_BTK = probabilities_RK.unflatten(0, (-1, regions)) * (proposals.scores > 0)[..., None]
    best = _top(_above(scores_BTK.flatten(1), threshold), CANDIDATES)
    boxes_BS4 = boxes_RK4.unflatten(0, (-1, regions)).flatten(1, 2)
    candidates = Found(_take(boxes_BS4, best.indices), best.values, best.indices % classes)
    return _suppress(candidates, OVERLAP, most)


def _suppress(found: Found, overlap: float, most: int) -> Found:
    """Non-maximum suppression within each image and label, then the `most` best of each image."""
    boxes_BT4, scores_BT, labels_BT = (F.pad(one, (0, 0, 0, most) if one.ndim == 3 else (0, most)) for one in found)
    batch, count = scores_BT.shape
    span = boxes_BT4.flatten().amax(0) + 1
    images_BT = torch.arange(batch, device=span.device)[:, None].expand(batch, count)
    # A label moves to the right, an image down: large numbers would cost boxes their last digits.
    places_BT4 = torch.stack([labels_BT, images_BT, labels_BT, images_BT], dim=-1) * span
    scores_S = scores_BT.flatten()
    chosen = (scores_S > 0).nonzero()[:, 0]
    kept = chosen[nms((boxes_BT4 + places_BT4).flatten(0, 1)[chosen], scores_S[chosen], overlap)]
    is_kept_S = torch.zeros_like(scores_S).index_put((kept,), torch.ones_like(scores_S[kept]))
    best = (scores_BT * is_kept_S.view(batch, count)).topk(most)
    labels = labels_BT.gather(1, best.indices)
    return Found(_take(boxes_BT4, best.indices), best.values, labels)


def _join(found: Sequence[Found]) -> Found:
    boxes, scores, labels = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    return Found(boxes, scores, labels)


def _top(scores_BT: Tensor, most: int) -> torch.return_types.topk:
    return scores_BT.topk(torch.sym_min(most, scores_BT.shape[1]))


def _above(scores: Tensor, threshold: float) -> Tensor:
    return torch.where(scores > threshold, scores, 0.0)


def _take(x_BTC: Tensor, indices_BN: Tensor) -> Tensor:
    """Rows of each image: (B, T, C) → (B, N, C)."""
    return x_BTC.gather(1, indices_BN[..., None].expand(-1, -1, x_BTC.shape[2]))


def _rois(boxes_BT4: Tensor) -> Tensor:
    """Boxes with the number of their image in front: (R, 5)."""
    images_B = torch.arange(boxes_BT4.shape[0], device=boxes_BT4.device, dtype=boxes_BT4.dtype)
    images_BT1 = images_B[:, None, None].expand(-1, boxes_BT4.shape[1], 1)
    return torch.cat([images_BT1, boxes_BT4], dim=-1).flatten(0, 1)

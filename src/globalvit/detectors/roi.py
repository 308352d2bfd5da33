"""Heads that look at single regions: what is it, where exactly, which of its pixels.

Papers: Fast R-CNN (arXiv 1504.08083), Mask R-CNN (arXiv 1703.06870).
Legend: `R` regions of all images · `C` channels · `K` classes · `h w` grid of a region.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from globalvit.detectors.rpn import one_width
from globalvit.necks.fpn import ConvNorm

BOX_GRID = 7
MASK_GRID = 14
POOLED_LEVELS = 4
# Regions of up to twice this side are read from the finest level; every further doubling goes one level up.
FINEST_SIDE = 56
WIDTH = 256
FC_WIDTH = 1024
MASK_CONVS = 4
LOGITS_STD = 0.01
DELTAS_STD = 0.001


class RegionPool:
    """Cut regions out of a pyramid's maps by RoIAlign, from the level that suits their size.

    Args:
        channels: channels of the pyramid's maps.
        strides: strides of its maps, finest first; regions are read from the first four.

    Raises:
        ValueError: the maps differ in channels, there are under four, or one stride is not twice the one before.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int]) -> None:
        self.channels = one_width(channels)
        self.strides = tuple(strides[:POOLED_LEVELS])
        doubling = tuple(self.strides[0] * 2**level for level in range(POOLED_LEVELS)) if strides else ()
        if self.strides != doubling:
            raise ValueError(
                f"maps of strides {tuple(strides)} came; RoI heads read four levels of doubling strides such as "
                f"(4, 8, 16, 32)"
            )

    def __call__(self, maps_BCHW: Sequence[Tensor], boxes: Sequence[Tensor], side: int) -> Tensor:
        """Boxes (N, 4) of each image → (R, C, side, side), one image's regions after another's."""
        boxes_R4 = torch.cat(list(boxes))
        images_R = level_of_image(boxes).to(boxes_R4)
        return self.of_rois(maps_BCHW, torch.cat([images_R[:, None], boxes_R4], 1), side)

    def of_rois(self, maps_BCHW: Sequence[Tensor], rois_R5: Tensor, side: int) -> Tensor:
        """Boxes with the number of their image in front (R, 5) → (R, C, side, side)."""
        levels_R = levels_of(rois_R5[:, 1:])
        first = maps_BCHW[0]
        out = first.new_zeros(rois_R5.shape[0], self.channels, side, side)
        for level, stride in enumerate(self.strides):
            chosen = (levels_R == level).nonzero()[:, 0]
            # In float32 whatever the maps are: half-precision corners of boxes would be off by pixels.
            pooled = roi_align(maps_BCHW[level].float(), rois_R5[chosen], side, 1 / stride, 0, aligned=True)
            out = out.index_copy(0, chosen, pooled.to(out.dtype))
        return out


def level_of_image(boxes: Sequence[Tensor]) -> Tensor:
    """The image of each box, all images' boxes in a row: (R,) int64."""
    counts = torch.tensor([len(one) for one in boxes], device=boxes[0].device)
    return torch.arange(len(boxes), device=counts.device).repeat_interleave(counts)


def levels_of(boxes_R4: Tensor) -> Tensor:
    """The pyramid level that each box is read from: (R,) int64, 0 … 3 (FPN, equation 1, with finer constants)."""
    sides = boxes_R4[:, 2:] - boxes_R4[:, :2]
    scale = sides.prod(1).clamp(min=0).sqrt() / FINEST_SIDE
    return (scale + 1e-6).log2().floor().clamp(0, POOLED_LEVELS - 1).long()


class BoxHead(nn.Module):
    """Class logits and, for every class, deltas of a region.

    Args:
        channels: channels of the pooled maps.
        num_classes: classes without the background, which is the last logit.
        convs: 3×3 convolutions with batch norm and ReLU.
        fcs: fully connected layers of 1024 with ReLU.
    """

    def __init__(self, channels: int, num_classes: int, *, convs: int, fcs: int) -> None:
        super().__init__()
        widths = [channels] + [WIDTH] * convs
        self.convs = nn.ModuleList(ConvNorm(a, b, 3, norm=True) for a, b in pairwise(widths))
        features = [widths[-1] * BOX_GRID**2] + [FC_WIDTH] * fcs
        self.fcs = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(features))
        self.logits = nn.Linear(FC_WIDTH, num_classes + 1)
        self.deltas = nn.Linear(FC_WIDTH, 4 * num_classes)

    def forward(self, x_RChw: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled maps (R, C, 7, 7) → logits (R, K + 1) and deltas (R, K, 4)."""
        if x_RChw.shape[0] == 0:
            return self._of_nothing(x_RChw)
        x = x_RChw
        for conv in self.convs:
            x = F.relu(conv(x))
        x = x.flatten(1)
        for fc in self.fcs:
            x = F.relu(fc(x))
        return self.logits(x), self.deltas(x).unflatten(1, (-1, 4))

    def _of_nothing(self, x_RChw: Tensor) -> tuple[Tensor, Tensor]:
        """No logits and deltas of no regions, of which a batch norm would take NaN for the mean.

        They hang on every parameter all the same: data-parallel training waits for a gradient of each.
        """
        zero = torch.stack([0.0 * parameter.sum() for parameter in self.parameters()]).sum()
        empty = x_RChw.new_zeros(0, 1) + zero
        return empty.expand(0, self.logits.out_features), empty[..., None].expand(0, self.deltas.out_features // 4, 4)

    def init_weights(self) -> None:
        """Kaiming for convolutions, Xavier for hidden layers, normal 0.01 for logits and 0.001 for deltas; biases 0."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.logits.weight, std=LOGITS_STD)
        nn.init.normal_(self.deltas.weight, std=DELTAS_STD)


class MaskHead(nn.Module):
    """Mask logits of a region for every class."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        widths = [channels] + [WIDTH] * MASK_CONVS
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.upsample = nn.ConvTranspose2d(WIDTH, WIDTH, 2, stride=2)
        self.logits = nn.Conv2d(WIDTH, num_classes, 1)

    def forward(self, x_RChw: Tensor) -> Tensor:
        """Pooled maps (R, C, 14, 14) → (R, K, 28, 28)."""
        x = x_RChw
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.logits(F.relu(self.upsample(x)))

    def init_weights(self) -> None:
        """Kaiming normal, biases 0 (Mask R-CNN)."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

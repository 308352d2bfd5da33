"""UPerNet: a feature pyramid on top of a pyramid of pools.

Paper: Xiao et al., ECCV 2018, arXiv 1807.10221; the pools: Zhao et al., CVPR 2017, arXiv 1612.01105.

Legend: `B` images · `C` channels · `H W` grid · `K` classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from globalvit.heads.dense import ConvNormReLU, DenseHead, resize_like

WIDTH = 512
# Sides of the grids that the last map is pooled to.
POOLS = (1, 2, 3, 6)


def pool(x_BCHW: Tensor, side: int) -> Tensor:
    """Means of side × side cells that cover the map and may overlap by a step: (B, C, side, side)."""
    if not torch.compiler.is_exporting():
        return F.adaptive_avg_pool2d(x_BCHW, side)
    # The same as two products: ONNX knows no such pooling of maps of any size.
    rows, columns = (_cells(x_BCHW.shape[axis], side, x_BCHW) for axis in (2, 3))
    return rows @ x_BCHW @ columns.transpose(0, 1)


def _cells(steps: int, side: int, like: Tensor) -> Tensor:
    """How much each step of an axis counts for each cell: (side, steps)."""
    number = torch.arange(side, device=like.device)[:, None]
    step = torch.arange(steps, device=like.device)
    is_in = (step >= number * steps // side) & (step < ((number + 1) * steps + side - 1) // side)
    return is_in.to(like.dtype) / is_in.sum(1, keepdim=True)


class PoolPyramid(nn.Module):
    """A map beside what it looks like in 1, 4, 9 and 36 cells, merged by a convolution."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(ConvNormReLU(channels, width, 1) for _ in POOLS)
        self.merge = ConvNormReLU(channels + len(POOLS) * width, width, 3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) → (B, width, H, W)."""
        pooled = (pool(x_BCHW, side) for side in POOLS)
        levels = (level(pool) for level, pool in zip(self.levels, pooled, strict=True))
        return self.merge(torch.cat([x_BCHW, *(resize_like(level, x_BCHW) for level in levels)], dim=1))


class UPerNetHead(DenseHead):
    """Maps of any grids → logits on the finest one's grid.

    Args:
        channels: channels of the backbone's maps, finest first.
        strides: their strides, equal ones (GPViT) or growing ones (GC ViT).
        num_classes: channels of the logits.
        width: channels inside.

    Raises:
        ValueError: `channels` and `strides` are not those of several maps, finest first.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], num_classes: int, *, width: int = WIDTH
    ) -> None:
        super().__init__(channels, strides, width, num_classes)
        *finer, last = channels
        self.pyramid = PoolPyramid(last, width)
        self.laterals = nn.ModuleList(ConvNormReLU(dim, width, 1) for dim in finer)
        self.outputs = nn.ModuleList(ConvNormReLU(width, width, 3) for _ in finer)
        self.merge = ConvNormReLU(len(channels) * width, width, 3)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """NCHW maps, finest first → (B, K, H, W) on the grid of the first."""
        finer = [lateral(x) for lateral, x in zip(self.laterals, maps[:-1], strict=True)]
        sums = [self.pyramid(maps[-1])]
        for lateral in reversed(finer):
            sums.insert(0, lateral + resize_like(sums[0], lateral))
        outputs = [*(output(x) for output, x in zip(self.outputs, sums[:-1], strict=True)), sums[-1]]
        return self.classify(self.merge(torch.cat([resize_like(x, outputs[0]) for x in outputs], dim=1)))

"""SegFormer's head: maps brought to one width and one grid, and merged pixel by pixel.

Paper: Xie et al., NeurIPS 2021, arXiv 2105.15203.

Legend: `B` images · `C` channels · `H W` grid · `K` classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from globalvit.heads.dense import ConvNormReLU, DenseHead, resize_like

WIDTH = 256


class SegFormerHead(DenseHead):
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
        self.projections = nn.ModuleList(ConvNormReLU(dim, width, 1) for dim in channels)
        self.fusion = ConvNormReLU(len(channels) * width, width, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """NCHW maps, finest first → (B, K, H, W) on the grid of the first."""
        projected = [projection(x) for projection, x in zip(self.projections, maps, strict=True)]
        return self.classify(self.fusion(torch.cat([resize_like(x, projected[0]) for x in projected], dim=1)))

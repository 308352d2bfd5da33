"""A fully convolutional head on one map, which helps a backbone to learn beside another head (arXiv 1411.4038).

Legend: `B` images · `C` channels · `H W` grid · `K` classes.
"""

from collections.abc import Sequence

from torch import Tensor

from globalvit.heads.dense import ConvNormReLU, DenseHead

WIDTH = 256


class FCNHead(DenseHead):
    """One of the maps → logits on its grid.

    Args:
        channels: channels of the backbone's maps, finest first.
        strides: their strides.
        num_classes: channels of the logits.
        index: which of the maps.
        width: channels inside.

    Raises:
        ValueError: `channels` and `strides` are not those of several maps, finest first, or `index` is none of them.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], num_classes: int, *, index: int, width: int = WIDTH
    ) -> None:
        super().__init__(channels, strides, width, num_classes)
        if not 0 <= index < len(channels):
            raise ValueError(f"index={index} must be that of one of the {len(channels)} maps, counted from 0")
        self.index = index
        self.conv = ConvNormReLU(channels[index], width, 3)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """NCHW maps, finest first → (B, K, H, W) on the grid of map `index`."""
        return self.classify(self.conv(maps[self.index]))

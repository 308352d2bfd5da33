"""Anchors: the boxes that a detector's maps are relative to, and the order in which maps are read.

Legend: `B` images · `H W` grid · `A` anchors a cell · `N` = H·W·A anchors of a map · `C` numbers an anchor.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Anchors:
    """Anchors of every size and shape on every cell of every level.

    Attributes:
        strides: pixels between the cells of each level.
        scales: sides of the square anchors as multiples of the stride.
        ratios: heights over widths; an anchor's area does not depend on it.
    """

    strides: tuple[int, ...]
    scales: tuple[float, ...]
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)

    @property
    def per_cell(self) -> int:
        """Anchors of one cell."""
        return len(self.scales) * len(self.ratios)

    def of_level(self, level: int, height: int, width: int, device: torch.device | None = None) -> Tensor:
        """Anchors (H·W·A, 4) of a map of height × width cells, in the order y, x, ratio, scale.

        Cell (x, y) has its anchors' centers at (x · stride, y · stride), the corner of the pixels it stands for.
        """
        stride = self.strides[level]
        cell_A4 = self._cell(stride).to(device)
        x, y = torch.arange(width, device=device) * stride, torch.arange(height, device=device) * stride
        y_HW, x_HW = torch.meshgrid(y, x, indexing="ij")
        shifts_HW4 = torch.stack([x_HW, y_HW, x_HW, y_HW], dim=-1).float()
        return (shifts_HW4[:, :, None] + cell_A4).view(-1, 4)

    def of_maps(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Anchors of the given maps (B, …, H, W), one tensor a level.

        Raises:
            ValueError: there are not as many maps as strides.
        """
        if len(maps) != len(self.strides):
            raise ValueError(f"expected one map for each of the anchors' strides {self.strides}, got {len(maps)}")
        return [self.of_level(level, *one.shape[-2:], device=one.device) for level, one in enumerate(maps)]

    def _cell(self, stride: int) -> Tensor:
        """Anchors (A, 4) around the origin."""
        halves = [
            (0.5 * scale * stride / ratio**0.5, 0.5 * scale * stride * ratio**0.5)
            for ratio in self.ratios
            for scale in self.scales
        ]
        return torch.tensor([(-x, -y, x, y) for x, y in halves])


def flatten(map_BCHW: Tensor, per_cell: int) -> Tensor:
    """A head's map (B, A·C, H, W), channels anchor by anchor, in the order of its anchors: (B, H·W·A, C)."""
    batch, channels, height, width = map_BCHW.shape
    split = map_BCHW.view(batch, per_cell, channels // per_cell, height, width)
    return split.permute(0, 3, 4, 1, 2).reshape(batch, height * width * per_cell, -1)

"""What was found in one look at a model, and where it lies in the picture."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from globalvit.explain.scene import Box, Pixel, Region, Size


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """One map of a picture.

    Attributes:
        kind: as asked for.
        stage: of the view, None where it has none.
        block: of the view, None where it has none.
        head: None for the mean over heads.
        title: what is shown, for a caption.
        values: (rows, columns) of the token grid that stand for the picture, float32 or float64. Attention sums to 1
            minus `padding_share`; `global` does so in the mean over its windows; Grad-CAM is 0 or more.
        padding_share: part of the attention that fell on tokens that are padding.
        stride: pixels of the input to a cell.
        input_size: height and width of what the model got.
        crop: left, top, right, bottom of what it saw of the picture, in the picture's pixels.
        picture_size: height and width of the picture.
        pixel: that the look started from, or None.
        region: likewise.
        group: token of the group propagation, or None.
        target: class whose score was explained, or None.
        name: of that class.
        outlines: windows that the look was confined to, as cells left, top, right, bottom.
    """

    kind: str
    title: str
    values: np.ndarray
    stride: int
    input_size: Size
    crop: Box
    picture_size: Size
    padding_share: float = 0.0
    stage: int | None = None
    block: int | None = None
    head: int | None = None
    pixel: Pixel | None = None
    region: Region | None = None
    group: int | None = None
    target: int | None = None
    name: str | None = None
    outlines: tuple[tuple[int, int, int, int], ...] = field(default=())

    @cached_property
    def map(self) -> np.ndarray:
        """The values over the picture in its own size: float32 (H, W), 0 where the model saw nothing."""
        return self.placed(*self.picture_size)

    @property
    def peak(self) -> float:
        """How many times the mean the largest value is; 0 where all are 0."""
        mean = float(self.values.mean())
        return float(self.values.max()) / mean if mean > 0 else 0.0

    def placed(self, height: int, width: int) -> np.ndarray:
        """The values over the picture reduced or enlarged to a size, bilinear between centres of cells: float32."""
        left, top, right, bottom = self.crop
        rows = _weights(height, self.picture_size[0], (top, bottom), self.input_size[0] / self.stride, len(self.values))
        columns = _weights(
            width, self.picture_size[1], (left, right), self.input_size[1] / self.stride, self.values.shape[1]
        )
        return rows @ self.values.astype(np.float32) @ columns.T

    def seen(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns that the model saw of the picture reduced or enlarged to a size."""
        left, top, right, bottom = self.crop
        down, across = height / self.picture_size[0], width / self.picture_size[1]
        return (
            slice(round(top * down), max(round(bottom * down), round(top * down) + 1)),
            slice(round(left * across), max(round(right * across), round(left * across) + 1)),
        )

    def box_of(self, cells: tuple[int, int, int, int]) -> Box:
        """Cells left, top, right, bottom as a box in the picture's pixels, cut to what the model saw."""
        left, top, right, bottom = self.crop
        height, width = self.input_size
        across, down = (right - left) / width * self.stride, (bottom - top) / height * self.stride
        return (
            left + cells[0] * across,
            top + cells[1] * down,
            min(left + cells[2] * across, right),
            min(top + cells[3] * down, bottom),
        )


def _weights(total: int, side: int, kept: tuple[float, float], extent: float, cells: int) -> np.ndarray:
    """How each of `total` pixels along a side mixes the cells: float32 (total, cells), rows of 0 outside what is kept.

    Args:
        total: pixels wanted along the side.
        side: the picture's own pixels along it.
        kept: first and last of those that the model saw.
        extent: cells that these make, which the last cell may overhang.
        cells: of the grid.
    """
    place = (np.arange(total) + 0.5) * (side / total)
    cell = (place - kept[0]) / (kept[1] - kept[0]) * extent - 0.5
    near = cell.clip(0, cells - 1)
    first = np.minimum(near.astype(np.int64), max(cells - 2, 0))
    weights = np.zeros((total, cells), np.float32)
    pixels = np.arange(total)
    weights[pixels, first] = 1 - (near - first)
    weights[pixels, np.minimum(first + 1, cells - 1)] += near - first
    weights[(place < kept[0]) | (place > kept[1])] = 0
    return weights

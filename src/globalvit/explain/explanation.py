"""What was found in one look at a model, and where it lies in the picture."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from globalvit.explain.scene import Box, Pixel, Region, Size

# Smaller parts on the padding would be printed as 0.
LEAST_SAID = 0.0005


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """One map of a picture.

    Attributes:
        kind: as asked for.
        stage: of the view, None where it has none.
        block: of the view, None where it has none.
        heads: number of heads of the view, 0 where there is none to choose.
        head: None for the mean over heads.
        title: what is shown and where, for a caption.
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
        window: rows and columns of the windows that attention is confined to, None where it is not.
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
    heads: int = 0
    head: int | None = None
    pixel: Pixel | None = None
    region: Region | None = None
    group: int | None = None
    target: int | None = None
    name: str | None = None
    window: Size | None = None
    outlines: tuple[tuple[int, int, int, int], ...] = field(default=())

    @cached_property
    def map(self) -> np.ndarray:
        """The values over the picture in its own size: float32 (H, W), 0 where the model saw nothing."""
        return self.placed(*self.picture_size)

    @property
    def spread(self) -> tuple[float, float]:
        """The smallest and the largest value shown as multiples of the mean; 0 where all are 0."""
        mean = float(self.shown.mean())
        return (float(self.shown.min()) / mean, float(self.shown.max()) / mean) if mean > 0 else (0.0, 0.0)

    @cached_property
    def shown(self) -> np.ndarray:
        """The values as they are drawn: (rows, columns), those of `global` in multiples of the mean of their window.

        Every window has a sum of its own there, and one that is mostly padding would outshine all others.
        """
        if self.kind != "global" or self.window is None:
            return self.values
        rows, columns = (np.arange(0, side, step) for side, step in zip(self.values.shape, self.window, strict=True))
        ends = ((*starts[1:], side) for starts, side in zip((rows, columns), self.values.shape, strict=True))
        down, across = (np.subtract(end, start) for end, start in zip(ends, (rows, columns), strict=True))
        sums = np.add.reduceat(np.add.reduceat(self.values, rows, 0), columns, 1)
        means = (sums / np.outer(down, across)).repeat(down, 0).repeat(across, 1)
        return self.values / means

    @property
    def note(self) -> str:
        """What the colours cannot say: which heads, how uneven the map is, and what of it is lost."""
        low, high = self.spread
        said = [f"{low:.1f}–{high:.1f}× mean"]
        if self.heads:
            said.insert(0, "all heads" if self.head is None else f"head {self.head} of {self.heads}")
        if self.padding_share >= LEAST_SAID:
            said.append(f"{100 * self.padding_share:.1f} % padding")
        return " · ".join(said)

    def placed(self, height: int, width: int) -> np.ndarray:
        """What is shown over the picture reduced or enlarged to a size, bilinear within windows: float32."""
        left, top, right, bottom = self.crop
        window = self.window or self.shown.shape
        rows, columns = (
            _weights(total, side, kept, extent / self.stride, cells, step)
            for total, side, kept, extent, cells, step in zip(
                (height, width),
                self.picture_size,
                ((top, bottom), (left, right)),
                self.input_size,
                self.shown.shape,
                window,
                strict=True,
            )
        )
        return rows @ self.shown.astype(np.float32) @ columns.T

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


def _weights(total: int, side: int, kept: tuple[float, float], extent: float, cells: int, window: int) -> np.ndarray:
    """How each of `total` pixels along a side mixes the cells: float32 (total, cells), rows of 0 outside what is kept.

    Args:
        total: pixels wanted along the side.
        side: the picture's own pixels along it.
        kept: first and last of those that the model saw.
        extent: cells that these make, which the last cell may overhang.
        cells: of the grid.
        window: cells of a window, whose borders nothing is mixed across.
    """
    place = (np.arange(total) + 0.5) * (side / total)
    cell = (place - kept[0]) / (kept[1] - kept[0]) * extent - 0.5
    start = (cell + 0.5).clip(0, cells - 1).astype(np.int64) // window * window
    near = cell.clip(start, np.minimum(start + window, cells) - 1)
    first = near.astype(np.int64)
    weights = np.zeros((total, cells), np.float32)
    pixels = np.arange(total)
    weights[pixels, first] = 1 - (near - first)
    weights[pixels, np.minimum(first + 1, cells - 1)] += near - first
    weights[(place < kept[0]) | (place > kept[1])] = 0
    return weights

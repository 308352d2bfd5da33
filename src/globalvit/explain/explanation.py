"""What was found in one look at a model, and where it lies in the image."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from globalvit.explain.scene import Box, Pixel, Region, Size

# Smaller parts on the padding would be printed as 0.
LEAST_SAID = 0.0005


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """One map of an image.

    Attributes:
        kind: as asked for.
        stage: of the view, None where it has none.
        block: of the view, None where it has none.
        heads: number of heads of the view, 0 where there is none to choose.
        head: None for the mean over heads.
        title: what is shown and where, for a caption.
        values: (rows, columns) of the token grid that stand for the image, float32 or float64. Attention sums to 1
            minus `padding_share`; `global` does so in the mean over its windows; Grad-CAM is 0 or more.
        padding_share: part of the attention that fell on tokens that are padding.
        stride: pixels of the input from a cell's center to the next.
        offset: pixels of the input from its edge to the first cell's center.
        input_size: height and width of what the model got.
        crop: left, top, right, bottom of what it saw of the image, in the image's pixels.
        original_size: height and width of the image.
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
    offset: float
    input_size: Size
    crop: Box
    original_size: Size
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
        """The values over the image in its own size: float32 (H, W), 0 where the model saw nothing."""
        return self.placed(*self.original_size)

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
        """What the colors cannot say: which heads, how uneven the map is, and what of it is lost."""
        low, high = self.spread
        digits = 1 if high - low > 0.2 else 3
        said = [f"{low:.{digits}f}–{high:.{digits}f}× mean"]
        if self.window == (1, 1):
            # Of a single token there is nothing to choose from, as at small image sizes.
            said = ["one token per window"]
        if self.heads:
            said.insert(0, "all heads" if self.head is None else f"head {self.head} of {self.heads}")
        if self.padding_share >= LEAST_SAID:
            said.append(f"{100 * self.padding_share:.1f} % padding")
        return " · ".join(said)

    def placed(self, height: int, width: int) -> np.ndarray:
        """What is shown over the image reduced or enlarged to a size, bilinear within windows: float32."""
        window = self.window or self.shown.shape
        rows, columns = (
            _weights(self._in_cells(total, axis), self.shown.shape[axis], window[axis])
            for axis, total in enumerate((height, width))
        )
        return rows @ self.shown.astype(np.float32) @ columns.T

    def _in_cells(self, total: int, axis: int) -> np.ndarray:
        """Where `total` pixels along an axis of the image lie, counted in cells; NaN where the model saw nothing."""
        first, last = self.crop[1 - axis], self.crop[3 - axis]
        place = (np.arange(total) + 0.5) * (self.original_size[axis] / total)
        seen = np.where((place >= first) & (place <= last), place, np.nan)
        return ((seen - first) / (last - first) * self.input_size[axis] - self.offset) / self.stride

    def seen(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns that the model saw of the image reduced or enlarged to a size."""
        left, top, right, bottom = self.crop
        down, across = height / self.original_size[0], width / self.original_size[1]
        return (
            slice(round(top * down), max(round(bottom * down), round(top * down) + 1)),
            slice(round(left * across), max(round(right * across), round(left * across) + 1)),
        )

    def box_of(self, cells: tuple[int, int, int, int]) -> Box:
        """Cells left, top, right, bottom as a box in the image's pixels, cut to what the model saw."""
        left, top, right, bottom = self.crop
        across, down = (right - left) / self.input_size[1], (bottom - top) / self.input_size[0]
        rows, columns = self.values.shape

        def edge(cell: int, most: int, first: float, last: float, scale: float) -> float:
            # Halfway between two centers; the outer cells reach to the border.
            inner = first + ((cell - 0.5) * self.stride + self.offset) * scale
            return first if cell == 0 else last if cell >= most else min(inner, last)

        return (
            edge(cells[0], columns, left, right, across),
            edge(cells[1], rows, top, bottom, down),
            edge(cells[2], columns, left, right, across),
            edge(cells[3], rows, top, bottom, down),
        )


def _weights(place: np.ndarray, cells: int, window: int) -> np.ndarray:
    """How each pixel along a side mixes the cells: float32 (total, cells), rows of 0 where its place is NaN.

    Args:
        place: of each pixel, counted in cells from the first one's center.
        cells: of the grid.
        window: cells of a window, whose borders nothing is mixed across.
    """
    is_seen = ~np.isnan(place)
    cell = np.where(is_seen, place, 0)
    start = (cell + 0.5).clip(0, cells - 1).astype(np.int64) // window * window
    near = cell.clip(start, np.minimum(start + window, cells) - 1)
    first = near.astype(np.int64)
    weights = np.zeros((len(place), cells), np.float32)
    pixels = np.arange(len(place))
    weights[pixels, first] = 1 - (near - first)
    weights[pixels, np.minimum(first + 1, cells - 1)] += near - first
    weights[~is_seen] = 0
    return weights

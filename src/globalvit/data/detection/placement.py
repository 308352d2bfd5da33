"""Where the pixels of an image go: resizing, cropping and flipping gathered, then done in one go.

A chain such as resize, crop, resize touches every pixel once, never makes a larger image than the last one, and
moves pixels, boxes and masks alike.

Legend: `N` objects · `h w` pixels of the result · `H W` pixels of the image.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from PIL import Image


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """A part of an image and the size it is resized to.

    Attributes:
        left: of the part, in the image's own pixels.
        top: likewise.
        right: likewise.
        bottom: likewise.
        height: of the result in pixels.
        width: of the result in pixels.
        is_flipped: left and right are exchanged at last.
    """

    left: float
    top: float
    right: float
    bottom: float
    height: int
    width: int
    is_flipped: bool = False

    @classmethod
    def whole(cls, height: int, width: int) -> Self:
        """An image of this height and width as it is."""
        return cls(left=0, top=0, right=width, bottom=height, height=height, width=width)

    def resized(self, height: int, width: int) -> Self:
        """The same part in another size."""
        return replace(self, height=height, width=width)

    def cropped(self, top: int, left: int, height: int, width: int) -> Self:
        """Of the result so far, `height` × `width` pixels from (left, top) on; cropping comes before flipping."""
        assert not self.is_flipped
        down, across = (self.bottom - self.top) / self.height, (self.right - self.left) / self.width
        return replace(
            self,
            left=self.left + left * across,
            top=self.top + top * down,
            right=self.left + (left + width) * across,
            bottom=self.top + (top + height) * down,
            height=height,
            width=width,
        )

    def flipped(self) -> Self:
        """The same with left and right exchanged."""
        return replace(self, is_flipped=not self.is_flipped)

    def image(self, image: Image.Image, interpolation: Image.Resampling) -> Image.Image:
        """The image's part in its new size."""
        # Rounding may lead a hair beyond the image, which Pillow refuses.
        box = (self.left, self.top, min(self.right, image.width), min(self.bottom, image.height))
        if image.size != (self.width, self.height) or box != (0, 0, image.width, image.height):
            image = image.resize((self.width, self.height), interpolation, box)
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.is_flipped else image

    def boxes(self, boxes_N4: np.ndarray) -> np.ndarray:
        """Boxes xyxy of the image in the pixels of the result, float64 (N, 4); they may reach beyond it."""
        across, down = self.width / (self.right - self.left), self.height / (self.bottom - self.top)
        x_N2 = (boxes_N4[:, 0::2].astype(np.float64) - self.left) * across
        y_N2 = (boxes_N4[:, 1::2].astype(np.float64) - self.top) * down
        if self.is_flipped:
            x_N2 = self.width - x_N2[:, ::-1]
        return np.stack([x_N2[:, 0], y_N2[:, 0], x_N2[:, 1], y_N2[:, 1]], axis=1)

    def bitmap(self, bitmap_HW: np.ndarray) -> np.ndarray:
        """A mask of the image as one of the result, bool (h, w): each pixel is the one its center comes from."""
        rows = _sources(self.top, self.bottom, self.height, bitmap_HW.shape[0])
        columns = _sources(self.left, self.right, self.width, bitmap_HW.shape[1])
        # Objects are small: only the rows and columns they are in are gathered.
        down, across = _reached(rows, bitmap_HW.max(axis=1)), _reached(columns, bitmap_HW.max(axis=0))
        placed_hw = np.zeros((self.height, self.width), bool)
        placed_hw[down, across] = bitmap_HW[rows[down]][:, columns[across]]
        return placed_hw[:, ::-1] if self.is_flipped else placed_hw


def _sources(start: float, end: float, total: int, side: int) -> np.ndarray:
    """Of `total` pixels that stand for `start` … `end` of a side, the pixels of it that their centers lie in."""
    centers = start + (np.arange(total) + 0.5) * ((end - start) / total)
    return centers.astype(np.int64).clip(0, side - 1)


def _reached(sources: np.ndarray, is_filled: np.ndarray) -> slice:
    """The part of ascending `sources` that lies between the first and the last of what is filled."""
    filled = np.flatnonzero(is_filled)
    if not len(filled):
        return slice(0, 0)
    return slice(*np.searchsorted(sources, [filled[0], filled[-1] + 1]).tolist())

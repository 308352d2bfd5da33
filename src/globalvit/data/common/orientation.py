"""EXIF's eight orientations: what turns a stored image, and the boxes and masks drawn on it, upright.

Legend: `N` boxes · `H W` pixels of the stored image · `h w` pixels of the upright one.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

# Height and width in pixels.
Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Turn:
    """A rotation or reflection: rows and columns change places, then columns and rows are reversed.

    Attributes:
        swaps: rows become columns.
        mirrors: left becomes right.
        flips: top becomes bottom.
        method: Pillow's name of it; None where nothing changes.
    """

    swaps: bool
    mirrors: bool
    flips: bool
    method: Image.Transpose | None

    def size(self, size: Size) -> Size:
        """Return height and width of a turned image of this height and width."""
        return (size[1], size[0]) if self.swaps else size

    def image(self, image: Image.Image) -> Image.Image:
        """Return the image turned; the image itself where nothing changes."""
        return image if self.method is None else image.transpose(self.method)

    def pixels(self, values_HW: np.ndarray) -> np.ndarray:
        """Return an array (H, W, …) turned to (h, w, …), as a view."""
        turned = values_HW.swapaxes(0, 1) if self.swaps else values_HW
        return turned[:: -1 if self.flips else 1, :: -1 if self.mirrors else 1]

    def boxes(self, boxes_N4: np.ndarray, size: Size) -> np.ndarray:
        """Return boxes (N, 4) xyxy of an image of height and width `size` as boxes of the turned image."""
        left, top, right, bottom = boxes_N4.T
        if self.swaps:
            left, top, right, bottom = top, left, bottom, right
        height, width = self.size(size)
        if self.mirrors:
            left, right = width - right, width - left
        if self.flips:
            top, bottom = height - bottom, height - top
        return np.stack([left, top, right, bottom], 1)


AS_STORED = Turn(False, False, False, None)
# EXIF's orientation → what makes the stored image upright.
UPRIGHT = {
    1: AS_STORED,
    2: Turn(False, True, False, Image.Transpose.FLIP_LEFT_RIGHT),
    3: Turn(False, True, True, Image.Transpose.ROTATE_180),
    4: Turn(False, False, True, Image.Transpose.FLIP_TOP_BOTTOM),
    5: Turn(True, False, False, Image.Transpose.TRANSPOSE),
    6: Turn(True, True, False, Image.Transpose.ROTATE_270),
    7: Turn(True, True, True, Image.Transpose.TRANSVERSE),
    8: Turn(True, False, True, Image.Transpose.ROTATE_90),
}


Frame = Literal["upright", "stored"]
# So many images that show the rule are enough; the headers of no more are read.
ENOUGH = 25


class Sight(NamedTuple):
    """What an image that EXIF turns shows of the frame its annotations are for.

    Attributes:
        name: of the image.
        frame: as `shown_frame` gives it.
        is_ambiguous: as `is_ambiguous` gives it.
    """

    name: str
    frame: Frame | None
    is_ambiguous: bool


def shown_frame(orientation: int, stored: Size, stated: Size) -> Frame | None:
    """Return the frame that one image shows its annotations to be for.

    Args:
        orientation: of the image, as EXIF has it, 1 … 8.
        stored: the image's height and width as it is stored.
        stated: height and width that its annotations are for.

    Returns:
        None where both frames have one size, or neither has the one stated.
    """
    upright = UPRIGHT[orientation].size(stored)
    if upright == stored or stated not in (upright, stored):
        return None
    return "stored" if stated == stored else "upright"


def is_ambiguous(orientation: int, stored: Size) -> bool:
    """Return whether EXIF turns an image without changing its size, so that no size shows the annotations' frame."""
    return orientation != 1 and UPRIGHT[orientation].size(stored) == stored


def rule_of(shown: Iterable[Frame | None]) -> Frame:
    """Return the frame of a set of annotations from what its images show, in order; upright where they show nothing."""
    votes = Counter(islice((frame for frame in shown if frame), ENOUGH))
    return "stored" if votes["stored"] > votes["upright"] else "upright"


def turn_of(orientation: int, frame: Frame) -> Turn:
    """Return what turns annotations that are for a frame upright."""
    return UPRIGHT[orientation] if frame == "stored" else AS_STORED

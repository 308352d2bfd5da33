"""EXIF's eight orientations: what turns a stored image, and the boxes and masks drawn on it, upright.

Legend: `N` boxes · `H W` pixels of the stored image · `h w` pixels of the upright one.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

logger = logging.getLogger(__name__)
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
# Images whose headers are read when a training starts, from the first to the last.
MOST_LOOKED = 2000


class Sight(NamedTuple):
    """What an image that EXIF turns shows of the frame its annotations are for.

    Attributes:
        name: of the image.
        frame: as `shown_frame` gives it.
        is_ambiguous: EXIF turns it without changing its size, so that no size shows the annotations' frame.
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


def sight_of(name: str, orientation: int, stored: Size, stated: Size) -> Sight | None:
    """Return what one image shows of its annotations' frame, or None if EXIF does not turn it.

    Args:
        name: of the image.
        orientation: as in `shown_frame`, like the others.
        stored: the image's height and width as it is stored.
        stated: height and width that its annotations are for.
    """
    if orientation == 1:
        return None
    is_ambiguous = UPRIGHT[orientation].size(stored) == stored
    return Sight(name, shown_frame(orientation, stored, stated), is_ambiguous)


def votes_of(sights: Iterable[Sight | None]) -> Counter[Frame]:
    """Return how many images show each frame; of those that show one, the first 25 are counted."""
    votes: Counter[Frame] = Counter()
    votes.update(islice((sight.frame for sight in sights if sight and sight.frame), ENOUGH))
    return votes


def rule_of(votes: Counter[Frame]) -> Frame:
    """Return the frame of a set of annotations from what its images show; upright where they show nothing."""
    return "stored" if votes["stored"] > votes["upright"] else "upright"


def turn_of(orientation: int, frame: Frame) -> Turn:
    """Return what turns annotations that are for a frame upright."""
    return UPRIGHT[orientation] if frame == "stored" else AS_STORED


class Question(NamedTuple):
    """Annotations of which nothing, or too much, shows which frame they are for, and the images concerned."""

    kind: str
    text: str
    images: tuple[str, ...]


def questions(sights: Sequence[Sight], what: str) -> Iterator[Question]:
    """Name the images that EXIF turns where nothing, or too much, shows which frame their annotations are for.

    Args:
        sights: of images of one set of annotations that EXIF turns, in order.
        what: the annotations, for messages.
    """
    shown: dict[Frame, tuple[str, ...]] = {
        frame: tuple(one.name for one in sights if one.frame == frame) for frame in ("stored", "upright")
    }
    if shown["stored"] and shown["upright"]:
        yield Question(
            "mixed frames",
            f"{what} are for the stored pixels of {len(shown['stored'])} images that EXIF turns and for the upright "
            f"pixels of {len(shown['upright'])}, such as {shown['stored'][0]} and {shown['upright'][0]}; images whose "
            f"size does not show it count as {rule_of(votes_of(sights))}: write all annotations the same way",
            shown["stored"] + shown["upright"],
        )
    unclear = tuple(one.name for one in sights if one.is_ambiguous)
    if unclear and not (shown["stored"] or shown["upright"]):
        yield Question(
            "unclear frame",
            f"EXIF turns or mirrors {len(unclear)} images without changing their size, such as {unclear[0]}, and no "
            f"image turned by 90° shows whether {what} are for the stored or the upright pixels; upright is assumed: "
            "look at these with `globalvit data preview`, or remove the EXIF orientation from the files",
            unclear,
        )


def warn_of_frames(source: Any) -> None:
    """Log in one line if it is not clear which pixels some annotations of a source are for.

    Args:
        source: with `sight(index)`, `votes` and `annotated_by` where its annotations have a frame; of more than 2000
            images, so many are looked at.
    """
    if not hasattr(source, "sight") or not len(source):
        return
    chosen = np.unique(np.linspace(0, len(source) - 1, MOST_LOOKED, dtype=int)).tolist()
    sights = [sight for index in chosen if (sight := source.sight(index))]
    if not any(sight.is_ambiguous for sight in sights):
        return
    for kind, text, _ in questions(sights, source.annotated_by):
        if kind == "mixed frames" or not source.votes:
            logger.warning("%s", text if len(chosen) == len(source) else f"{text} ({len(chosen)} images looked at)")


class FramedLabels:
    """The rule of a split's label maps, found from all of its images; for classes with `sight` and a length."""

    def __len__(self) -> int:
        raise NotImplementedError

    def sight(self, index: int) -> Sight | None:
        """What image `index` shows of the labels' frame; None where EXIF does not turn it."""
        raise NotImplementedError

    @cached_property
    def frame(self) -> Frame:
        """What the labels are for where EXIF turns an image: its stored pixels, or the upright ones."""
        return rule_of(self.votes)

    @cached_property
    def votes(self) -> Counter[Frame]:
        """How many images show each frame of the labels, as `votes_of` counts them."""
        return votes_of(map(self.sight, range(len(self))))

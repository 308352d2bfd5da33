"""Which pixels annotations are for where EXIF turns their image: those it is stored with, or the upright ones.

Every set of annotations (a COCO file, a split's folder of label maps) follows one rule. Images that EXIF turns by 90°
show it: only one of the two frames has the size that the annotations state. Images whose size EXIF leaves as it is
(turned by 180°, mirrored, or square) follow the rule that most of the others show, and count as upright where there
are none. Images always come out upright; annotations for stored pixels are turned with them.
"""

from collections import Counter
from collections.abc import Iterable
from itertools import islice
from typing import Literal, NamedTuple

from globalvit.data.orientation import AS_STORED, UPRIGHT, Size, Turn

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

"""What every format of images with objects offers; `registry` lists them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from globalvit.data.common.formats import Format
from globalvit.data.detection.coco_json import CocoTable, Labels


class Annotated(NamedTuple):
    """The labels of one split.

    Attributes:
        table: what they say.
        find_root: finds the folder that the images' names are relative to; raises what `DetectionFormat.open` does.
        labels: the same in COCO's form, where files of another form state them.
    """

    table: CocoTable
    find_root: Callable[[], Path]
    labels: Labels | None = None


class DetectionFormat(Format, Protocol):
    """A format of images with boxes and, perhaps, masks."""

    def splits(self, folder: Path) -> Sequence[str]:
        """Names of the splits in a folder that matches."""
        ...

    def open(
        self, folder: Path, split: str, classes: Sequence[str] | None = None, *, crowd_as_instances: bool = False
    ) -> Annotated:
        """Read the labels of one split.

        Args:
            folder: of the data set.
            split: one of `splits`.
            classes: names of the labels; a format whose files name only the classes that occur takes these.
            crowd_as_instances: read regions that are to be ignored as single objects.

        Raises:
            FileNotFoundError: none of its images is found.
            ValueError: the labels cannot be used; the text names file and line or id.
        """
        ...

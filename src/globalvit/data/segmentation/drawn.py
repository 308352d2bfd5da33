"""Outlines and run lengths of objects, drawn as label maps.

`background` is class 0, and the categories follow in the order of their ids; where objects overlap, the smaller one is
on top. Crowds are drawn as their category.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from globalvit.data.common.folders import listed
from globalvit.data.common.orientation import Frame, Sight
from globalvit.data.detection.dataset import CocoSource, open_detection
from globalvit.data.segmentation.class_masks import BACKGROUND
from globalvit.data.segmentation.class_table import ClassTable, palette_of
from globalvit.data.segmentation.label_images import IGNORE


class DrawnMasks:
    """One split of a set of images with objects.

    Args:
        source: the objects, which have masks.
        classes: the classes expected, such as those of the training split.
        ignore_background: pixels without an object are ignored, and `background` is not a class.

    Raises:
        ValueError: the objects have other classes than those expected.
    """

    is_binary = False

    def __init__(
        self, source: CocoSource, classes: Sequence[str] | None = None, *, ignore_background: bool = False
    ) -> None:
        categories = [name for name in source.classes if name != BACKGROUND]
        table = ClassTable(tuple(classes or ([] if ignore_background else [BACKGROUND]) + categories))
        unknown = [name for name in categories if name not in table.names]
        if unknown:
            raise ValueError(
                f"{source.annotated_by} are of {unknown[0]!r}, which is not among the {len(table.names)} classes of "
                "the training split; export both with one list of categories"
            )
        self.source, self.root, self.annotations = source, source.root, source.annotations
        self.classes, self.palette = table.names, palette_of(table)
        known = {name: label for label, name in enumerate(table.names)}
        self._rest = known.get(BACKGROUND, IGNORE)
        self._label_of = np.array([known.get(name, self._rest) for name in source.classes], np.uint8)

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.source.channels

    @channels.setter
    def channels(self, channels: int) -> None:
        self.source.channels = channels

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        """The path of image `index`."""
        return self.source.name(index)

    def labels(self, index: int) -> list[int]:
        """The labels of the objects in image `index`, ascending, and that of the background."""
        found = {self._rest, *self._label_of[self.source.labels(index)].tolist()}
        return sorted(found - {IGNORE})

    def read(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Image `index` as RGB, and its labels; raises what `CocoSource.read` raises."""
        image, objects = self.source.read(index)
        labels_HW = np.full((image.height, image.width), self._rest, np.uint8)
        assert objects.masks is not None
        for place in np.argsort(-objects.areas, kind="stable"):
            labels_HW[objects.masks[place].bitmap() > 0] = self._label_of[objects.labels[place]]
        return image, labels_HW

    @property
    def frame(self) -> Frame:
        """What the annotations are for where EXIF turns an image."""
        return self.source.frame

    @property
    def votes(self) -> Counter[Frame]:
        """How many images show each frame of the annotations."""
        return self.source.votes

    @property
    def annotated_by(self) -> str:
        """What to call the annotations in messages."""
        return self.source.annotated_by

    def sight(self, index: int) -> Sight | None:
        """What image `index` shows of the annotations' frame."""
        return self.source.sight(index)


def open_drawn(
    data_dir: Path,
    split: str,
    form: str,
    *,
    classes: Sequence[str] | None = None,
    num_classes: int | None = None,
    class_file: str | None = None,
    reduce_zero_label: bool = False,
    ignore_label: int | None = None,
    is_binary: bool | None = None,  # noqa: ARG001 - labels are drawn
    exact: bool = False,
) -> DrawnMasks:
    """Open one split of a set of images with objects, whose outlines are drawn; arguments as in `open_masks`.

    Raises:
        NoSplitError, FileNotFoundError, ValueError: what `open_detection` and `DrawnMasks` refuse, or options that are
            for label maps in files.
    """
    for flag, value in (("--class-file", class_file), ("--ignore-label", ignore_label)):
        if value is not None:
            raise ValueError(f"{flag} is for label maps in files, and --format {form} draws objects; leave it out")
    objects = open_detection(data_dir, split, form=form, need_masks=True, exact=exact)
    assert isinstance(objects, CocoSource)
    source = DrawnMasks(objects, classes, ignore_background=reduce_zero_label)
    if num_classes not in (None, len(source.classes)):
        raise ValueError(
            f"{objects.annotated_by} give {len(source.classes)} classes, {listed(source.classes)}, and "
            f"{num_classes} are expected; they must agree"
        )
    return source

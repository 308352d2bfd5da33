"""The formats of images with a label for each pixel."""

from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from globalvit.data.common.folders import SHAPES, is_built_in, is_database, split_folders
from globalvit.data.common.formats import Format, choose_format
from globalvit.data.detection.coco import CocoFormat
from globalvit.data.detection.yolo import YoloFormat
from globalvit.data.segmentation.class_masks import holds_class_masks, holds_pairs, open_class_masks
from globalvit.data.segmentation.dataset import MaskSource, find_folders, find_splits, may_hold_maps, open_masks
from globalvit.data.segmentation.drawn import open_drawn


class MaskFormat(Format, Protocol):
    """A format of images with a label for each pixel.

    Attributes:
        is_automatic: it is found by what a folder holds; else only `--format` chooses it.
    """

    is_automatic: bool

    def open(self, folder: Path, split: str, **options: Any) -> MaskSource:
        """Open one split; options and errors as in `open_masks`."""
        ...


class LabelMaps:
    """One label map per image."""

    name = "masks"
    is_automatic = True

    def matches(self, folder: Path) -> bool:
        """Whether a folder holds images and label maps; where names do not show it, unless there are masks by class."""
        found = [find_folders(folder, split, exact=True) for split in find_splits(folder)]
        # Text files of boxes are not label maps.
        pairs = [one for one in found if may_hold_maps(one.labels)]
        return any(map(holds_pairs, pairs)) or (bool(pairs) and not any(map(holds_class_masks, pairs)))

    def describe(self, folder: Path) -> str:
        """The folder of label maps of the first split."""
        return f"one label map per image, {_labels(folder)}"

    def open(self, folder: Path, split: str, **options: Any) -> MaskSource:
        """See `open_masks`."""
        return open_masks(folder, split, **options)


class MasksByClass:
    """One mask per image and class."""

    name = "class-masks"
    is_automatic = True

    def matches(self, folder: Path) -> bool:
        """Whether a folder holds images and masks in folders or files named after classes."""
        splits = find_splits(folder)
        return any(holds_class_masks(find_folders(folder, split, exact=True)) for split in splits)

    def describe(self, folder: Path) -> str:
        """The folder of masks of the first split."""
        return f"one mask per class, {_labels(folder)}"

    def open(self, folder: Path, split: str, **options: Any) -> MaskSource:
        """See `open_class_masks`."""
        return open_class_masks(folder, split, **options)


class Objects:
    """Outlines of objects in a detection format, drawn as label maps."""

    is_automatic = False

    def __init__(self, form: CocoFormat | YoloFormat) -> None:
        self._form, self.name = form, form.name

    def matches(self, folder: Path) -> bool:
        """Whether a folder is in the detection format."""
        return self._form.matches(folder)

    def describe(self, folder: Path) -> str:
        """What the detection format says."""
        return self._form.describe(folder)

    def open(self, folder: Path, split: str, **options: Any) -> MaskSource:
        """See `open_drawn`."""
        return open_drawn(folder, split, self.name, **options)


FORMATS: list[MaskFormat] = [LabelMaps(), MasksByClass(), Objects(CocoFormat()), Objects(YoloFormat())]


def register(form: MaskFormat) -> None:
    """Add a format of your own; one of the same name is replaced."""
    FORMATS[:] = [one for one in FORMATS if one.name != form.name] + [form]


def find_format(data_dir: Path, form: str | None = None) -> MaskFormat | None:
    """Return the format of a folder, or None if it has none.

    Raises:
        ValueError: several formats fit and none was named, or the one named is unknown or does not fit.
    """
    return choose_format([one for one in FORMATS if form is not None or one.is_automatic], data_dir, form)


def open_labeled(data_dir: str | PathLike[str], split: str, *, form: str | None = None, **options: Any) -> MaskSource:
    """Open one split of a set for segmentation in any of the formats.

    Args:
        data_dir: as `open_masks` takes it.
        split: likewise.
        form: name of the format; None finds it.
        options: those of `open_masks`.

    Raises:
        NoSplitError, FileNotFoundError, ValueError: what the format's `open` and `find_format` refuse.
    """
    root = Path(data_dir)
    is_packed = is_built_in(data_dir, SHAPES) or any(is_database(root / name) for name in split_folders(root))
    chosen = None if is_packed else find_format(root, form)
    if chosen is not None:
        return chosen.open(root, split, **options)
    if form is not None:
        raise ValueError(f"{data_dir} is read as it is, so --format {form} does not apply; leave it out")
    return open_masks(data_dir, split, **options)


def _labels(folder: Path) -> str:
    split = find_splits(folder)[0]
    return find_folders(folder, split, exact=True).labels.relative_to(folder).as_posix()

"""Images with a label for each pixel, in folders, in an LMDB database, or built in.

    DATA_DIR/images/{training,validation}   DATA_DIR/annotations/{training,validation}    as ADE20K has it
    DATA_DIR/{train,val}/images             DATA_DIR/{train,val}/masks

Either goes with `train` and `val` or `training` and `validation`. A label map is the PNG file of its image's
stem. Images are turned upright by EXIF; labels may be for the stored or the upright image, as `data.frames` has it.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from globalvit.data import shapes
from globalvit.data.class_table import ClassTable, resolve_classes
from globalvit.data.frames import Frame, rule_of
from globalvit.data.image_folder import is_built_in, is_database, list_images, listed, split_folders
from globalvit.data.label_images import LabelReader, look_at_pair, read_labeled
from globalvit.data.names import Names
from globalvit.data.palette import default_palette
from globalvit.data.shapes import SegmentShapes

logger = logging.getLogger(__name__)

SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "validation", "test")}
# Where images and label maps lie.
LAYOUTS = (("images/{}", "annotations/{}"), ("{}/images", "{}/masks"), ("{}/images", "{}/annotations"))
LABEL_SUFFIX = ".png"


class MaskSource(Protocol):
    """Images with labels by position 0 … len − 1; picklable, so that workers can hold it."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels 0 … K−1."""
        ...

    @property
    def palette(self) -> np.ndarray:
        """A color for each class, uint8 (K, 3)."""
        ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What to call image `index` in messages: its path where it has one."""
        ...

    def read(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Image `index` as RGB, and its labels, uint8 (H, W), 0 … K−1 or 255.

        Raises:
            UnreadableImage, OversizedImage, WrongLabels, OSError: see `read_labeled`.
        """
        ...


class Folders(NamedTuple):
    """The folders of one split: images, and label maps."""

    images: Path
    labels: Path


class MaskFolder:
    """One split of a folder of images and label maps.

    Hidden files and files that do not end as images do are left out; the latter are counted in `other_files`, label
    images without an image in `unused_labels`.

    Args:
        folders: where they lie.
        table: names and colors of the classes.
        reduce_zero_label: 0 in a file is to be ignored, and every other label is one less than the file says.

    Raises:
        ValueError: no images, images without labels, or two images of one stem.
    """

    def __init__(self, folders: Folders, table: ClassTable, *, reduce_zero_label: bool = False) -> None:
        self.folders = folders
        self.classes, self.palette = table.names, palette_of(table)
        self.reader = reader_of(table, reduce_zero_label)
        listing = MaskListing(folders)
        listing.check()
        self.other_files, self.unused_labels = listing.other_files, len(listing.unused)
        if self.unused_labels:
            logger.warning("%s: %d label maps have no image", folders.labels, self.unused_labels)
        self._names = Names(listing.images)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """The path of image `index`."""
        return str(self.folders.images / self._names[index])

    def label_name(self, index: int) -> str:
        """The path of the label map of image `index`."""
        return str(self.folders.labels / label_file(self._names[index]))

    def read(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Image `index` as RGB, and its labels; raises what `read_labeled` raises, or OSError."""
        name, label_name = self.name(index), self.label_name(index)
        image, labels = Path(name).read_bytes(), Path(label_name).read_bytes()
        return read_labeled(image, labels, self.reader, name, label_name, frame=lambda: self.frame)

    @cached_property
    def frame(self) -> Frame:
        """What the split's labels are for where EXIF turns an image: its stored pixels, or the upright ones."""
        pairs = ((Path(self.name(index)), Path(self.label_name(index))) for index in range(len(self)))
        return rule_of(look_at_pair(*pair) for pair in pairs)


class MaskListing:
    """What lies in the folders of one split; nothing is opened.

    Attributes:
        images: paths of the images below their folder, sorted.
        without: those that have no label map.
        unused: label maps below their folder that have no image.
        doubled: stems, below the folder, that several images have.
        other_files: files that are no images.
    """

    def __init__(self, folders: Folders) -> None:
        self.folders = folders
        self.images, self.other_files = list_images(folders.images, "")
        labels = {name for name in list_images(folders.labels, "")[0] if name.endswith(LABEL_SUFFIX)}
        wanted = [label_file(name) for name in self.images]
        self.without = [name for name, label in zip(self.images, wanted, strict=True) if label not in labels]
        self.unused = sorted(labels.difference(wanted))
        self.doubled = _repeated(wanted)

    def check(self) -> None:
        """Refuse what cannot be trained on.

        Raises:
            ValueError: no images, images without labels, or two images of one stem.
        """
        images, labels = self.folders
        if not self.images:
            raise ValueError(f"no images in {images}; expected {images}/NAME.jpg and {labels}/NAME.png")
        if self.without:
            raise ValueError(
                f"{len(self.without)} of {len(self.images)} images in {images} have no label map in {labels}: "
                f"{listed(self.without)}; expected NAME.png for each NAME.jpg, so add them or remove the images"
            )
        if self.doubled:
            raise ValueError(
                f"several images in {images} share the label map {listed(self.doubled)}; rename all but one"
            )


def open_masks(
    data_dir: str | PathLike[str],
    split: str,
    *,
    classes: Sequence[str] | None = None,
    num_classes: int | None = None,
    reduce_zero_label: bool = False,
    class_file: str | None = None,
) -> MaskSource:
    """Open one split of a data set for segmentation.

    Args:
        data_dir: a folder as described above, a folder with an LMDB database for each split, or `shapes`.
        split: `train` and `val` also stand for `training` and `validation`.
        classes: the classes expected, such as those of the training split.
        num_classes: how many are expected; where nothing names them, the classes are called by their numbers.
        reduce_zero_label: 0 in the files is to be ignored, and every other label is one less than they say.
        class_file: names and perhaps colors of the classes, if not in `data_dir`; or `ade20k` for its 150.

    Raises:
        FileNotFoundError: no such folder; the text says which there are.
        ValueError: what `MaskFolder` and `resolve_classes` refuse, or a database that is not complete.
    """
    if is_built_in(data_dir, shapes.BUILT_IN):
        return _open_shapes(split, classes, num_classes, reduce_zero_label)
    root = Path(data_dir)
    there = split_folders(root)
    for name in SPLIT_NAMES.get(split, (split,)):
        if name in there and is_database(root / name):
            # Imported here, since the package lmdb is an extra.
            from globalvit.data.lmdb_masks import open_mask_database

            expected = {"classes": classes, "num_classes": num_classes, "class_file": class_file}
            return open_mask_database(root / name, reduce_zero_label=reduce_zero_label, **expected)
    # A folder that is none of these is told of before its classes are missed.
    folders = find_folders(root, split)
    table = resolve_classes(root, classes=classes, num_classes=num_classes, class_file=class_file)
    return MaskFolder(folders, table, reduce_zero_label=reduce_zero_label)


def find_folders(data_dir: Path, split: str) -> Folders:
    """The folders of one split.

    Raises:
        FileNotFoundError: there are none; the text says what was expected.
    """
    for name in SPLIT_NAMES.get(split, (split,)):
        for folders in _layouts(data_dir, name):
            if folders.images.is_dir() and folders.labels.is_dir():
                if name != split:
                    logger.info("the split %r of %s is taken from %r", split, data_dir, name)
                return folders
    half = next((found for found in _layouts(data_dir, split) if found.images.is_dir()), None)
    if half:
        raise FileNotFoundError(f"no folder {half.labels} of label maps beside {half.images}; add it")
    raise FileNotFoundError(
        f"no split {split!r} in {data_dir}; it holds {listed(find_splits(data_dir)) or 'none'}. Expected "
        f"{data_dir}/images/{split} and {data_dir}/annotations/{split}; other names of the splits are given by "
        "--train-split and --val-split"
    )


def find_splits(data_dir: Path) -> list[str]:
    """Names of the splits in a folder of images and label maps.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
    """
    names = split_folders(data_dir)
    inner = split_folders(data_dir / "images") if "images" in names else []
    candidates = dict.fromkeys([*inner, *names])
    return [
        name
        for name in candidates
        if any(images.is_dir() and labels.is_dir() for images, labels in _layouts(data_dir, name))
    ]


def label_file(image: str) -> str:
    """The label map of an image, both below their folders."""
    return os.path.splitext(image)[0] + LABEL_SUFFIX  # noqa: PTH122 (a million)


def reader_of(table: ClassTable, reduce_zero_label: bool) -> LabelReader:
    """What reads the label maps of these classes."""
    return LabelReader(total=len(table.names), reduce_zero_label=reduce_zero_label, colors=table.colors)


def palette_of(table: ClassTable) -> np.ndarray:
    """The classes' own colors, or the default ones: uint8 (K, 3)."""
    return default_palette(len(table.names)) if table.colors is None else np.array(table.colors, np.uint8)


def _layouts(data_dir: Path, split: str) -> Iterator[Folders]:
    for images, labels in LAYOUTS:
        yield Folders(data_dir / images.format(split), data_dir / labels.format(split))


def _open_shapes(
    split: str, classes: Sequence[str] | None, num_classes: int | None, reduce_zero_label: bool
) -> SegmentShapes:
    source = SegmentShapes(split)
    if reduce_zero_label:
        raise ValueError("the built-in shapes have the background as class 0; leave reduce_zero_label off")
    is_other = classes is not None and tuple(classes) != source.classes
    if is_other or num_classes not in (None, len(source.classes)):
        raise ValueError(
            f"the built-in shapes have {len(source.classes)} classes, {', '.join(source.classes)}, and not the "
            f"{num_classes if classes is None else len(classes)} expected"
        )
    return source


def _repeated(names: Sequence[str]) -> list[str]:
    seen: set[str] = set()
    repeated: set[str] = set()
    for name in names:
        (repeated if name in seen else seen).add(name)
    return sorted(repeated)

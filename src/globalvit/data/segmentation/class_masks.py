"""Images with one mask per class: LABELS/CLASS/NAME.png or LABELS/NAME_CLASS.png, where 0 is not the class.

A class without a file does not occur in the image. Pixels that no mask marks are of the class `background` where there
is one without masks, as there is if no file names the classes; else they are ignored. Masks must not overlap.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from globalvit.data.common.folders import listed
from globalvit.data.common.images import (
    SUFFIXES,
    OversizedImage,
    UnreadableImage,
    WrongLabels,
    decode_image,
    read_image,
    upright,
)
from globalvit.data.common.walk import is_visible, search
from globalvit.data.segmentation.class_table import ClassTable, find_class_file, resolve_classes
from globalvit.data.segmentation.dataset import Folders, MaskPairs, find_folders
from globalvit.data.segmentation.label_images import FORMATS, IGNORE, WrongSize, read_labeled, shown
from globalvit.data.segmentation.pairing import is_map, marked_stem, stem_of

BACKGROUND = "background"
MOST_TRIED = 50


@dataclass(frozen=True)
class ClassMaskReader:
    """Reads the masks of one image as one label map.

    Args:
        masks: label and file of each class that has one.
        rest: the label of pixels that no mask marks.
    """

    masks: tuple[tuple[int, str], ...]
    rest: int

    def read(self, data: bytes, name: str) -> np.ndarray:  # noqa: ARG002 - the files are `masks`
        """The labels, uint8 (H, W), 0 … K−1 or 255.

        Raises:
            UnreadableImage, OversizedImage, OSError: a file cannot be read.
            WrongLabels: a file holds more than two values, is of another size, or marks pixels that another marks.
        """
        labels_HW, owner_HW = np.zeros((0, 0), np.uint8), np.zeros((0, 0), np.int64)
        for number, (label, path) in enumerate(self.masks):
            marked_HW = _read_mask(path)
            if number == 0:
                labels_HW = np.full(marked_HW.shape, self.rest, np.uint8)
                owner_HW = np.full(marked_HW.shape, -1, np.int64)
            if marked_HW.shape != labels_HW.shape:
                sizes = [f"{len(found_HW[0])}×{len(found_HW)}" for found_HW in (marked_HW, labels_HW)]
                raise WrongSize(f"{path} is {sizes[0]}, but {self.masks[0][1]} is {sizes[1]}: all need one size")
            both_HW = marked_HW & (owner_HW >= 0)
            if both_HW.any():
                row, column = (int(found[0]) for found in np.nonzero(both_HW))
                raise WrongLabels(
                    f"{self.masks[owner_HW[row, column]][1]} and {path} both mark {int(both_HW.sum())} pixels, the "
                    f"first at {column},{row}; expected one class per pixel, so correct one of the masks"
                )
            labels_HW[marked_HW] = label
            owner_HW[marked_HW] = number
        return labels_HW


def _read_mask(path: str) -> np.ndarray:
    """The pixels that a mask marks, bool (H, W)."""
    return decode_image(path, lambda image: _marked(upright(image), path), path, FORMATS)


def _marked(image: Image.Image, path: str) -> np.ndarray:
    values_HW = np.asarray(image)
    if values_HW.ndim == 3 and image.mode == "RGB" and (values_HW == values_HW[..., :1]).all():
        values_HW = values_HW[..., 0]
    if values_HW.ndim != 2:
        raise WrongLabels(f"{path} has mode {image.mode}; expected a black and white mask of its class")
    values = np.unique(values_HW).tolist()
    if len([value for value in values if value]) > 1:
        raise WrongLabels(
            f"{path} holds the values {shown(values)}; expected a mask of one class, 0 and one other value: export it "
            "without smoothing"
        )
    return values_HW != 0


class ClassMasks(MaskPairs):
    """One split of a folder of images and one mask per class.

    Args:
        folders: where they lie.
        table: names and colors of the classes; None takes the names of the masks, after `background`.

    Raises:
        ValueError: no images, images without a mask, or masks of other classes.
    """

    def __init__(self, folders: Folders, table: ClassTable | None) -> None:
        images, found = search(folders.images), search(folders.labels)
        names = images.images
        if not names:
            raise ValueError(f"no images in {folders.images}; expected {folders.images}/NAME.jpg")
        files = dict(_by_image({stem_of(name) for name in names}, found.images))
        without = [name for name in names if stem_of(name) not in files]
        if without:
            raise ValueError(
                f"{len(without)} of {len(names)} images in {folders.images} have no mask of any class in "
                f"{folders.labels}: {listed(without)}; add masks, all black where no class occurs, or remove the images"
            )
        seen = sorted({name for masks in files.values() for name, _ in masks})
        if table is None:
            table = ClassTable((*(() if BACKGROUND in seen else (BACKGROUND,)), *seen))
        unknown = [name for name in seen if name not in table.names]
        if unknown:
            raise ValueError(
                f"{folders.labels} holds masks of {listed(unknown)}, but the classes are {listed(table.names)}; rename "
                "the masks or correct the class file"
            )
        is_rest = BACKGROUND in table.names and BACKGROUND not in seen
        self._rest = table.names.index(BACKGROUND) if is_rest else IGNORE
        super().__init__(folders, names, [files[stem_of(name)][0][1] for name in names], table)
        label_of = {name: label for label, name in enumerate(table.names)}
        self._masks = [
            tuple((label_of[name], str(folders.labels / path)) for name, path in files[stem_of(image)])
            for image in names
        ]

    def reader(self, index: int) -> ClassMaskReader:
        """What reads the masks of image `index`."""
        return ClassMaskReader(self._masks[index], self._rest)

    def labels(self, index: int) -> list[int]:
        """The labels in the masks of image `index`, ascending; none where they cannot be read."""
        try:
            found = np.unique(self.reader(index).read(b"", "")).tolist()
        except (UnreadableImage, OversizedImage, WrongLabels, OSError):
            return []
        return [label for label in found if label != IGNORE]

    def read(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Image `index` as RGB, and its labels; raises what `read_labeled` and `ClassMaskReader.read` raise."""
        name, label_name = self.name(index), self.label_name(index)
        data, label_data = Path(name).read_bytes(), Path(label_name).read_bytes()
        decode, reader = partial(read_image, channels=self.channels), self.reader(index)
        return read_labeled(data, label_data, reader, name, label_name, frame=lambda: self.frame, decode=decode)


def open_class_masks(
    data_dir: Path,
    split: str,
    *,
    classes: Sequence[str] | None = None,
    num_classes: int | None = None,
    class_file: str | None = None,
    reduce_zero_label: bool = False,
    ignore_label: int | None = None,
    is_binary: bool | None = None,  # noqa: ARG001 - every mask is of two values
    exact: bool = False,
) -> ClassMasks:
    """Open one split of a set with one mask per class; arguments as in `open_masks`.

    Raises:
        NoSplitError: no such split.
        ValueError: what `ClassMasks` refuses, other classes than those expected, or options for class numbers.
    """
    for flag, is_given in (("--reduce-zero-label", reduce_zero_label), ("--ignore-label", ignore_label is not None)):
        if is_given:
            raise ValueError(
                f"{flag} is for files of class numbers, and {data_dir} holds one mask per class; leave it out"
            )
    is_known = classes is not None or class_file is not None or find_class_file(data_dir) is not None
    table = resolve_classes(data_dir, classes=classes, class_file=class_file) if is_known else None
    source = ClassMasks(find_folders(data_dir, split, exact=exact), table)
    if num_classes not in (None, len(source.classes)):
        raise ValueError(
            f"{data_dir} has {len(source.classes)} classes, {listed(source.classes)}, and {num_classes} are expected; "
            "they must agree"
        )
    return source


def _by_image(stems: set[str], files: Sequence[str]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Class and file of each mask, by the stem of its image."""
    masks: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(filter(is_map, files)):
        folder, _, inner = path.partition("/")
        if stem_of(inner) in stems:
            masks.setdefault(stem_of(inner), []).append((folder, path))
            continue
        stem = stem_of(path)
        # The longest image name counts: of a_1_car.png that of a_1 before that of a.
        cut = next((at for at in range(len(stem) - 2, 0, -1) if stem[at] == "_" and stem[:at] in stems), None)
        if cut:
            masks.setdefault(stem[:cut], []).append((stem[cut + 1 :], path))
    yield from masks.items()


def holds_pairs(folders: Folders) -> bool:
    """Whether one of the first label maps is of an image by its name."""
    if folders.images == folders.labels:
        return True
    stems = [(stem_of(name), marked_stem(name)) for name in _maps(folders.labels)]
    return any(_has_image(folders.images, stem) for pair in stems for stem in pair if stem)


def holds_class_masks(folders: Folders) -> bool:
    """Whether one of the first label maps is of an image and a class by its name or folder."""
    if folders.images == folders.labels:
        return False
    inner = [entry for entry in _entries(folders.labels) if entry.is_dir() and is_visible(entry.name)]
    # Images in folders of the same names have label maps in them.
    parts = [entry for entry in inner if not (folders.images / entry.name).is_dir()]
    if any(_has_image(folders.images, stem_of(name)) for entry in parts for name in _maps(Path(entry.path))):
        return True
    stems = [stem_of(name) for name in _maps(folders.labels) if marked_stem(name) is None]
    cuts = ((stem, at) for stem in stems for at in range(1, len(stem) - 1) if stem[at] == "_")
    return any(_has_image(folders.images, stem[:at]) for stem, at in cuts)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(islice(entries, MOST_TRIED))


def _maps(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if is_map(entry.name)]


def _has_image(folder: Path, stem: str) -> bool:
    return any((folder / f"{stem}{suffix}").is_file() for suffix in SUFFIXES)

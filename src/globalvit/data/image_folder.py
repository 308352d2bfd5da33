"""Labeled images in folders: DATA_DIR/SPLIT/CLASS/**/IMAGE, or a built-in set by its name."""

import logging
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from globalvit.data import digits
from globalvit.data.class_folders import (
    BUILT_IN,
    alike,
    listed,
    match_classes,
    question_folders,
    scan_classes,
    similar_folders,
    split_folders,
)
from globalvit.data.coco_folder import YEAR
from globalvit.data.digits import Digits
from globalvit.data.imagenet import is_devkit
from globalvit.data.images import SUFFIXES, read_image
from globalvit.data.names import Names
from globalvit.data.shapes import ClassifyShapes
from globalvit.data.splits import NoSplitError, choose_split, flag_of, role_of
from globalvit.data.walk import Found, is_image, visible_folders

logger = logging.getLogger(__name__)

# The file in the folder of an LMDB database.
DATABASE = "data.mdb"


class Source(Protocol):
    """Labeled images by position 0 … len − 1; picklable, so that workers can hold it."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels 0 … K−1."""
        ...

    def __len__(self) -> int: ...

    def label(self, index: int) -> int:
        """The label of image `index`."""
        ...

    def name(self, index: int) -> str:
        """What to call image `index` in messages: its path where it has one."""
        ...

    def read(self, index: int) -> Image.Image:
        """Image `index` as RGB; raises `UnreadableImage`, `OversizedImage` or OSError."""
        ...


class LabeledFiles:
    """Images in files below one folder, each with a label; a `Source`.

    Args:
        root: the folder.
        classes: names of the labels.
        names: paths of the images below `root`.
        labels: of these images, int (len,).
    """

    def __init__(self, root: Path, classes: Iterable[str], names: Iterable[str], labels: ArrayLike) -> None:
        self.root, self.classes = root, tuple(classes)
        self._names, self._labels = Names(names), np.array(labels, dtype=np.int32)

    def __len__(self) -> int:
        return len(self._names)

    def label(self, index: int) -> int:
        """The label of image `index`."""
        return int(self._labels[index])

    def name(self, index: int) -> str:
        """The path of image `index`."""
        return str(self.root / self._names[index])

    def read(self, index: int) -> Image.Image:
        """Image `index` as RGB; raises what `read_image` raises."""
        return read_image(self.name(index))


class ImageFolder(LabeledFiles):
    """A folder with one folder of images for each class; images may lie in folders below these.

    Class folders are sorted by value if all are numbers, else by code point. Hidden files and folders, and files that
    do not end as images do, are left out; the latter are counted in `other_files`.

    Args:
        root: the folder of one split.
        classes: the classes expected, in the order of their labels; None takes the folders' names. Names of ImageNet's
            classes stand for folders named by WordNet ids. Expected classes that have no images are logged.
        nested: every folder that directly holds images is a class, named by its path below `root`; expected classes
            that are paths imply it.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no class folders, an empty one where no classes are expected, or classes that are not expected.
    """

    def __init__(
        self, root: str | PathLike[str], classes: Sequence[str] | None = None, *, nested: bool = False
    ) -> None:
        root = Path(root)
        found = scan_classes(root, nested=nested or any("/" in name for name in classes or ()))
        empty = [name for name, inside in found.items() if not inside.images]
        for inside in found.values():
            inside.warn()
        if len(empty) == len(found) or (empty and classes is None):
            raise _empty_classes(root, empty, is_all=len(empty) == len(found))
        filled = {name: inside for name, inside in found.items() if inside.images}
        if classes is None:
            _ask(filled, root)
        classes = tuple(classes or filled)
        label_of = match_classes(list(filled), classes, str(root))
        ordered = sorted(filled, key=label_of.__getitem__)
        self.other_files = sum(inside.others for inside in found.values())
        names = (name for folder in ordered for name in filled[folder].images)
        counts = [len(filled[folder].images) for folder in ordered]
        super().__init__(root, classes, names, np.repeat([label_of[folder] for folder in ordered], counts))


def open_split(
    data_dir: str | PathLike[str],
    split: str,
    classes: Sequence[str] | None = None,
    *,
    exact: bool = False,
    nested: bool = False,
) -> Source:
    """Open one split of a data set.

    Args:
        data_dir: a folder with a folder or an LMDB database for each split, or `digits` or `shapes`.
        split: the split's folder; `train`, `val` and `test` also stand for the other names in `splits.ROLES`.
        classes: the classes expected, such as those of the training split.
        exact: the user named this folder, so that it is taken though others may be meant too.
        nested: as in `ImageFolder`.

    Raises:
        NoSplitError: no such folder; the text says which there are.
        ValueError: several folders may be meant, what `ImageFolder` refuses, or a database that is not complete.
    """
    if is_built_in(data_dir, *BUILT_IN):
        source = Digits(split) if str(data_dir) == digits.BUILT_IN else ClassifyShapes(split)
        match_classes(source.classes, classes or source.classes, f"{data_dir}/{split}")
        return source
    root = _find_split(Path(data_dir), split, exact=exact)
    if is_database(root):
        # Imported here, since the package lmdb is an extra.
        from globalvit.data.lmdb_source import open_database

        return open_database(root, classes)
    if is_devkit(root):
        # It needs what this file has.
        from globalvit.data.imagenet_devkit import open_devkit

        return open_devkit(root, classes)
    return ImageFolder(root, classes, nested=nested)


def is_built_in(data_dir: str | PathLike[str], *names: str) -> bool:
    """Whether `data_dir` is one of the built-in sets `names`; that a folder is called so too is logged."""
    if str(data_dir) not in names:
        return False
    if Path(data_dir).is_dir():
        logger.warning("%s is the built-in set; for the folder of that name write ./%s", data_dir, data_dir)
    return True


def is_database(root: Path) -> bool:
    """Whether a folder is an LMDB database."""
    return (root / DATABASE).is_file()


def _find_split(data_dir: Path, split: str, *, exact: bool) -> Path:
    folders = split_folders(data_dir)
    name = choose_split(split, folders, data_dir, exact=exact)
    if name is not None:
        return data_dir / name
    if is_database(data_dir):
        raise FileNotFoundError(
            f"{data_dir} is a single LMDB database; give the folder it lies in, {data_dir.absolute().parent}, and "
            f"{data_dir.absolute().name} as the name of the split: --train-split or --val-split"
        )
    there = f"it holds {listed(folders)}" if folders else "it holds no folders"
    raise NoSplitError(
        f"no folder {split!r} in {data_dir}; {there}. Expected {data_dir}/{split}/CLASS/IMAGE.jpg; "
        f"{flag_of(split)} takes another name{other_level(data_dir) if split == 'train' else ''}"
    )


def other_level(data_dir: Path) -> str:
    """A hint at the folder that may be meant in place of `data_dir`, which holds no splits."""
    folders = split_folders(data_dir)
    if any(map(role_of, folders)):
        return ""
    if role_of(data_dir.absolute().name) is not None and folders:
        return f". {data_dir} looks like a split: did you mean its parent, {data_dir.absolute().parent}?"
    for name in folders:
        if "train" in map(role_of, _inner_folders(data_dir / name)) or (data_dir / name / "annotations").is_dir():
            return f". Did you mean {data_dir / name}?"
    if any(is_image_folder(data_dir / name) for name in folders):
        return f". If these folders are classes, make the splits with: globalvit data split {data_dir} OUTPUT"
    if is_image_folder(data_dir):
        return f". To classify its images with a trained model: globalvit predict {data_dir} --checkpoint RUN"
    return ""


def _inner_folders(folder: Path) -> list[str]:
    try:
        return visible_folders(folder)
    except OSError:
        return []


def images_of_split(data_dir: Path, split: str) -> Path:
    """The folder of a split's images, whichever task the data are for; labels are not looked for.

    Raises:
        NoSplitError: there is none; the text says which there are.
        ValueError: several may be meant.
    """
    names = split_folders(data_dir)
    bases = [data_dir / "images", data_dir] if "images" in names else [data_dir]
    for base in bases:
        # COCO's folders end in the year.
        folders = {name.removesuffix(YEAR): name for name in reversed(visible_folders(base))}
        chosen = choose_split(split, folders, data_dir, exact=True)
        if chosen is not None:
            root = base / folders[chosen]
            return root / "images" if (root / "images").is_dir() else root
    raise NoSplitError(f"no folder of the split {split!r} in {data_dir}; it holds {listed(names) or 'none'}")


def is_image_folder(folder: Path) -> bool:
    """Whether images lie in a folder, not below it."""
    try:
        return any(is_image(path.name) for path in folder.iterdir())
    except OSError:
        return False


def _ask(found: dict[str, Found], root: Path) -> None:
    """Log what looks odd about the classes of a split to train on."""
    question = question_folders(found, root)
    if question:
        logger.warning("%s", question)
    for twins in similar_folders(found):
        logger.warning("%s: %s", root, alike(twins))
    if len(found) == 1:
        logger.warning("%s has a single class, %r: a classifier needs two or more to learn from", root, *found)


def _empty_classes(root: Path, empty: Sequence[str], is_all: bool) -> ValueError:
    kinds = f"files ending in {', '.join(sorted(SUFFIXES))}"
    if is_all:
        return ValueError(f"no images in the class folders of {root}; expected {kinds}")
    return ValueError(f"no images in class {listed(empty)} of {root}; add {kinds}, or remove the folder")

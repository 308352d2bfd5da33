"""Labelled images in folders: DATA_DIR/SPLIT/CLASS/**/IMAGE, or a built-in set by its name."""

import logging
import os
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from globalvit.closest import suggest
from globalvit.data import digits, shapes
from globalvit.data.digits import Digits
from globalvit.data.imagenet import readable
from globalvit.data.images import SUFFIXES, read_image
from globalvit.data.names import Names
from globalvit.data.shapes import ClassifyShapes

logger = logging.getLogger(__name__)

# Where a split goes by several names, these are tried in turn.
OTHER_NAMES = {"val": ("val", "validation", "test")}
MOST_NAMED = 10
# Names that stand for sets which come with the package.
BUILT_IN = (digits.BUILT_IN, shapes.BUILT_IN)
# The file in the folder of an LMDB database.
DATABASE = "data.mdb"


class Source(Protocol):
    """Labelled images by position 0 … len − 1; picklable, so that workers can hold it."""

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


class ImageFolder:
    """A folder with one folder of images for each class; images may lie in folders below these.

    Class folders are sorted by code point. Hidden files and folders, and files that do not end as images do, are
    left out; the latter are counted in `other_files`.

    Args:
        root: the folder of one split.
        classes: the classes expected, in the order of their labels; None takes the folders' names. Names of ImageNet's
            classes stand for folders named by WordNet ids.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no class folders, an empty one, or other classes than those expected.
    """

    def __init__(self, root: str | PathLike[str], classes: Sequence[str] | None = None) -> None:
        self.root = Path(root)
        folders = class_folders(self.root)
        self.classes = tuple(classes or folders)
        ordered = match_classes(folders, self.classes, str(root))
        names, labels = self._scan(ordered)
        self._names = Names(names)
        self._labels = np.array(labels, dtype=np.int32)

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

    def _scan(self, folders: Sequence[str]) -> tuple[list[str], list[int]]:
        """Names below `root` and labels of all images."""
        names: list[str] = []
        labels: list[int] = []
        self.other_files = 0
        empty: list[str] = []
        for label, folder in enumerate(folders):
            found, others = list_images(self.root, folder)
            names += found
            labels += [label] * len(found)
            self.other_files += others
            empty += [] if found else [folder]
        if empty:
            raise _empty_classes(self.root, empty, is_all=not names)
        return names, labels


def open_split(data_dir: str | PathLike[str], split: str, classes: Sequence[str] | None = None) -> Source:
    """Open one split of a data set.

    Args:
        data_dir: a folder with a folder or an LMDB database for each split, or `digits` or `shapes`.
        split: the split's folder; `val` also stands for `validation` and `test` where there is no `val`.
        classes: the classes expected, such as those of the training split.

    Raises:
        FileNotFoundError: no such folder; the text says which there are.
        ValueError: what `ImageFolder` refuses, or a database that is not complete.
    """
    if is_built_in(data_dir, *BUILT_IN):
        source = Digits(split) if str(data_dir) == digits.BUILT_IN else ClassifyShapes(split)
        match_classes(source.classes, classes or source.classes, f"{data_dir}/{split}")
        return source
    root = _find_split(Path(data_dir), split)
    if is_database(root):
        # Imported here, since the package lmdb is an extra.
        from globalvit.data.lmdb_source import open_database

        return open_database(root, classes)
    return ImageFolder(root, classes)


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


def split_folders(data_dir: Path) -> list[str]:
    """Names of the folders in `data_dir`, sorted.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
    """
    if not data_dir.exists():
        built_in = " or ".join(BUILT_IN)
        hint = suggest(str(data_dir), BUILT_IN) or f" Give an existing folder, or {built_in} for built-in images."
        raise FileNotFoundError(f"data folder {data_dir} does not exist.{hint}")
    if not data_dir.is_dir():
        raise NotADirectoryError(f"{data_dir} is a file; give the folder that holds train/ and val/")
    return sorted(entry.name for entry in os.scandir(data_dir) if entry.is_dir() and _is_visible(entry.name))


def class_folders(root: Path) -> list[str]:
    """Names of the class folders in the folder of one split, sorted by code point.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
        ValueError: there are none in it.
    """
    folders = split_folders(root)
    if not folders:
        loose = sum(_is_image(entry.name) for entry in os.scandir(root))
        held = f"{loose} images that lie in no class folder" if loose else "no images"
        raise ValueError(f"{root} holds no class folders, but {held}; expected {root}/CLASS/IMAGE.jpg")
    return folders


def match_classes(found: Sequence[str], expected: Sequence[str], where: str) -> list[str]:
    """The names of `found` in the order of `expected`.

    Raises:
        ValueError: the sets differ; the text names what is lacking and what is too much.
    """
    for names in (found, readable(found)):
        by_name = dict(zip(names, found, strict=True))
        if by_name.keys() == set(expected):
            return [by_name[name] for name in expected]
    lacking = [name for name in expected if name not in set(found)]
    foreign = [name for name in found if name not in set(expected)]
    parts = [f"lacks {listed(lacking)}"] * bool(lacking) + [f"has {listed(foreign)} besides"] * bool(foreign)
    raise ValueError(
        f"the classes of {where} are not the {len(expected)} expected: it {' and '.join(parts)}; "
        "give every split the same class folders, those the model was trained on"
    )


def listed(names: Sequence[str]) -> str:
    """At most ten names for a message, and how many more there are."""
    rest = len(names) - MOST_NAMED
    return ", ".join(map(repr, names[:MOST_NAMED])) + (f" and {rest} more" if rest > 0 else "")


def _find_split(data_dir: Path, split: str) -> Path:
    folders = split_folders(data_dir)
    for name in OTHER_NAMES.get(split, (split,)):
        if name in folders:
            if name != split:
                logger.info("no folder %r in %s: the split is taken from %r", split, data_dir, name)
            return data_dir / name
    if is_database(data_dir):
        raise FileNotFoundError(
            f"{data_dir} is a single LMDB database; give the folder it lies in, {data_dir.absolute().parent}, and "
            f"{data_dir.absolute().name} as the name of the split: --train-split or --val-split"
        )
    there = f"it holds {listed(folders)}" if folders else "it holds no folders"
    raise FileNotFoundError(
        f"no folder {split!r} in {data_dir}; {there}. Expected {data_dir}/{split}/CLASS/IMAGE.jpg; "
        "other names of the splits are given by --train-split and --val-split"
    )


def list_images(root: Path, folder: str) -> tuple[list[str], int]:
    """Paths relative to `root` of all images in a class folder, sorted, and the number of other files."""
    images: list[str] = []
    others = 0
    for base, folders, files in os.walk(root / folder, followlinks=True):
        folders[:] = filter(_is_visible, folders)
        chosen = [file for file in files if _is_image(file)]
        images += (os.path.relpath(os.path.join(base, file), root) for file in chosen)  # noqa: PTH118 (a million)
        others += sum(map(_is_visible, files)) - len(chosen)
    return sorted(images), others


def _is_visible(name: str) -> bool:
    # macOS leaves `._photo.jpg` beside `photo.jpg`, which is no image.
    return not name.startswith(".")


def _is_image(name: str) -> bool:
    return _is_visible(name) and os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 (a million)


def _empty_classes(root: Path, empty: Sequence[str], is_all: bool) -> ValueError:
    kinds = f"files ending in {', '.join(sorted(SUFFIXES))}"
    if is_all:
        return ValueError(f"no images in the class folders of {root}; expected {kinds}")
    return ValueError(f"no images in class {listed(empty)} of {root}; add {kinds}, or remove the folder")

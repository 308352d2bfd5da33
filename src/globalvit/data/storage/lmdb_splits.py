"""Which folders of an image folder are packed into which databases, and what speaks against it."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from globalvit.data.classification.dataset import FolderFormat, ImageFolder
from globalvit.data.classification.tables import table_files
from globalvit.data.common.folders import is_database, is_image_folder, listed, split_folders
from globalvit.data.common.splits import ROLES, role_of
from globalvit.data.segmentation import dataset as mask_folder
from globalvit.data.segmentation.class_table import ClassTable, find_class_file, read_class_file
from globalvit.data.segmentation.dataset import MaskListing, find_folders
from globalvit.data.storage.lmdb import LOCK, LONGEST_KEY
from globalvit.data.storage.lmdb_index import FORM, MASK_FORM

logger = logging.getLogger(__name__)
USUAL = tuple(name for names in ROLES.values() for name in names)
# The name of the one split of a folder that has none.
WHOLE = ""
# What the keys of images and of label maps begin with.
IMAGES, LABELS = "images/", "labels/"


def find_splits(src: Path, asked: Sequence[str] | None = None) -> list[str]:
    """Names of the splits in an image folder; one empty name where its own folders are the classes.

    Args:
        src: the image folder, or a folder of images and label maps.
        asked: the splits to take; None takes all folders that hold class folders, or label maps.

    Raises:
        FileNotFoundError, NotADirectoryError: the folder or the split does not exist.
        ValueError: it is a database or has its labels in a table, or it is unclear whether it holds splits or classes.
    """
    folders = split_folders(src)
    if is_database(src) or any(is_database(src / name) for name in folders):
        raise ValueError(f"{src} holds LMDB databases; give the folder of images")
    labeled = mask_folder.find_splits(src)
    tables = [] if labeled or FolderFormat().matches(src) else list(table_files(src).values())
    if tables:
        raise ValueError(
            f"{src} has its labels in the table {tables[0].relative_to(src).as_posix()}; LMDB databases are built of "
            "class folders or label maps; train on this folder as it is"
        )
    there = labeled or folders
    missing = [name for name in asked or () if name not in there]
    if missing:
        raise FileNotFoundError(f"no folder {listed(missing)} in {src}; it holds {listed(there)}")
    if asked:
        return list(dict.fromkeys(asked))
    if labeled:
        return labeled
    usual = [src / name for name in folders if role_of(name)]
    if usual and not any(map(is_image_folder, usual)):
        return _with_classes(src, folders)
    # A class may be called train.
    if any(is_image_folder(src / name) for name in folders) and not any(map(_holds_classes, usual)):
        return [WHOLE]
    raise ValueError(
        f"the folders of {src} may be splits or classes: expected {', '.join(USUAL)} with class folders in them, or "
        f"class folders with images in them; if they are splits, name them: --splits {','.join(folders) or 'NAME'}"
    )


def find_databases(dst: Path) -> list[str]:
    """Names of the databases in a folder; one empty name where the folder itself is one.

    Raises:
        FileNotFoundError, NotADirectoryError: the folder does not exist.
        ValueError: it holds none.
    """
    folders = split_folders(dst)
    if is_database(dst):
        return [WHOLE]
    found = [name for name in folders if is_database(dst / name)]
    if not found:
        raise ValueError(f"{dst} holds no LMDB database; make one by `globalvit data lmdb build SRC {dst}`")
    return found


def open_listing(src: Path, split: str) -> "Listing | MaskFiles":
    """What one split holds; raises what `Listing` or `MaskFiles` does."""
    return MaskFiles(src, split) if mask_folder.find_splits(src) else Listing(src / split)


class Listing:
    """What one split of an image folder holds.

    Args:
        root: the split's folder.

    Attributes:
        form: of the database.
        colors, void: none.
        classes: names of the class folders, sorted by code point.
        counts: images in each of them.
        keys: of all images, by class and sorted within it.

    Raises:
        ValueError: what `ImageFolder` refuses, or a path of more than 511 bytes.
    """

    form = FORM
    colors: tuple[str, ...] = ()
    void: tuple[str, ...] = ()

    def __init__(self, root: Path) -> None:
        self.root = root
        source = ImageFolder(root)
        if source.other_files:
            logger.info("%s: %d files that are not images are left out", root, source.other_files)
        self.classes = source.classes
        self.keys = [_as_key(source.name(index), root) for index in range(len(source))]
        labels = Counter(map(source.label, range(len(source))))
        self.counts = tuple(labels[label] for label in range(len(self.classes)))

    @property
    def images(self) -> int:
        """How many images there are."""
        return len(self.keys)

    def path(self, key: bytes) -> str:
        """The file that a key stands for."""
        return os.path.join(self.root, os.fsdecode(key))  # noqa: PTH118 (a million)


class MaskFiles:
    """What one split of a folder of images and label maps holds.

    Args:
        src: the data set's folder, whose class file is packed too.
        split: the split's name.

    Attributes:
        form: of the database.
        classes, colors, void: those of the class file, as `lmdb_index.Header` has them; none where there are none.
        counts: none.
        keys: of each image, followed by that of its labels.

    Raises:
        FileNotFoundError: no such split.
        ValueError: what `MaskListing.check` and `read_class_file` refuse, or a path of more than 511 bytes.
    """

    form = MASK_FORM
    counts: tuple[int, ...] = ()

    def __init__(self, src: Path, split: str) -> None:
        self.folders = find_folders(src, split, exact=True)
        listing = MaskListing(self.folders)
        listing.check()
        file = find_class_file(src)
        table = read_class_file(file) if file else None
        self.classes = table.names if table else ()
        self.colors = hex_colors(table)
        self.void = tuple(f"{number}#{bytes(color).hex()}" for number, color in table.void) if table else ()
        images, labels = self.folders
        pairs = (
            (
                _as_key(str(images / name), images, IMAGES),
                _as_key(str(labels / label), labels, LABELS),
            )
            for name, label in zip(listing.images, listing.labels, strict=True)
        )
        self.keys = list(chain.from_iterable(pairs))

    @property
    def images(self) -> int:
        """How many images there are, label maps not counted."""
        return len(self.keys) // 2

    def path(self, key: bytes) -> str:
        """The file that a key stands for."""
        name = os.fsdecode(key)
        root = self.folders.images if name.startswith(IMAGES) else self.folders.labels
        return os.path.join(root, name.split("/", 1)[1])  # noqa: PTH118 (a million)


def hex_colors(table: ClassTable | None) -> tuple[str, ...]:
    """The colors of a class table as `#rrggbb`."""
    colors = table.colors if table else None
    return tuple(f"#{bytes(color).hex()}" for color in colors or ())


def check_target(src: Path, dst: Path, names: Sequence[str]) -> None:
    """Refuse a target that is part of the source, or whose folders hold something else.

    Raises:
        ValueError: it is; the text names the folder.
    """
    if dst.resolve().is_relative_to(src.resolve()):
        raise ValueError(f"{dst} lies in {src}, the folder to pack; give another one")
    if WHOLE not in names and is_database(dst):
        raise ValueError(f"{dst} is a database without splits, and {src} has splits; give a new or an empty folder")
    for root in (dst / name for name in names):
        if _is_used(root) and not is_database(root):
            raise ValueError(f"{root} holds something else; give a new or an empty folder")


def _as_key(path: str, root: Path, prefix: str = "") -> bytes:
    key = os.fsencode(prefix + os.path.relpath(path, root).replace(os.sep, "/"))
    if len(key) > LONGEST_KEY:
        raise ValueError(
            f"{path}: its path below {root} has {len(key)} bytes, and a key of LMDB has at most {LONGEST_KEY}; shorten "
            "the name of the file or of its folders"
        )
    return key


def _with_classes(src: Path, folders: Sequence[str]) -> list[str]:
    """The folders that are splits: those of the usual names, and others whose own folders hold images."""
    found = [name for name in folders if role_of(name) or _holds_classes(src / name)]
    left = [name for name in folders if name not in found]
    if left:
        logger.warning("left out, since no class folders with images are in them: %s of %s", listed(left), src)
    return found


def _holds_classes(folder: Path) -> bool:
    return any(is_image_folder(folder / name) for name in split_folders(folder))


def _is_used(folder: Path) -> bool:
    # A build that was killed at once leaves no more than LMDB's lock.
    return folder.is_dir() and any(path.name != LOCK and path.name[0] != "." for path in folder.iterdir())

"""Images labeled with one class: class folders, label tables, LMDB databases, tar shards and built-in data sets."""

import logging
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from globalvit.data.built_in.digits import Digits
from globalvit.data.built_in.shapes import ClassifyShapes
from globalvit.data.classification.formats import alike, match_classes, question_folders, scan_classes, similar_folders
from globalvit.data.classification.hugging_face import HuggingFaceFormat, is_hub
from globalvit.data.classification.imagenet import is_devkit
from globalvit.data.classification.imagenet_devkit import open_devkit
from globalvit.data.classification.label_cells import MultiLabel
from globalvit.data.classification.labeled_files import LabeledFiles, MultiLabelFiles
from globalvit.data.classification.tables import read_split, splits_of, table_files
from globalvit.data.common.folders import BUILT_IN, DIGITS, is_built_in, is_database, listed, other_level, split_folders
from globalvit.data.common.formats import Format, choose_format
from globalvit.data.common.images import SUFFIXES
from globalvit.data.common.samples import Source
from globalvit.data.common.splits import NoSplitError, choose_split, flag_of, role_of
from globalvit.data.common.walk import Found, visible_folders
from globalvit.data.storage.shards import open_shards
from globalvit.data.storage.tar_files import has_shards, is_shard_list, listed_shards, shard_splits

logger = logging.getLogger(__name__)


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


class ClassificationFormat(Format, Protocol):
    """A format of images with one class each."""

    def splits(self, folder: Path) -> Sequence[str]:
        """Names of the splits in a folder that matches."""
        ...

    def open(
        self,
        folder: Path,
        split: str,
        classes: Sequence[str] | None = None,
        *,
        nested: bool = False,
        multi_label: MultiLabel = "auto",
    ) -> Source:
        """Open one split; see `open_split`.

        Raises:
            FileNotFoundError: none of its images is found.
            ValueError: the labels cannot be used; the text says where.
        """
        ...


class FolderFormat:
    """One folder per class in a folder per split, an LMDB database per split, or ImageNet's validation images."""

    name = "folders"

    def matches(self, folder: Path) -> bool:
        """Whether a folder has a split with folders in it, or a database, or ImageNet's validation images."""
        roots = (folder / name for name in split_folders(folder) if role_of(name))
        return any(is_database(root) or visible_folders(root) or is_devkit(root) for root in roots)

    def describe(self, folder: Path) -> str:
        """The folders of the splits."""
        return f"class folders in {', '.join(filter(role_of, split_folders(folder)))}"

    def splits(self, folder: Path) -> Sequence[str]:
        """Names of the folders."""
        return split_folders(folder)

    def open(
        self,
        folder: Path,
        split: str,
        classes: Sequence[str] | None = None,
        *,
        nested: bool = False,
        multi_label: MultiLabel = "auto",  # noqa: ARG002 - one label each
    ) -> Source:
        """Open a folder, a database, or ImageNet's validation images without class folders."""
        root = folder / split
        if is_database(root):
            # Imported here, since the package lmdb is an extra.
            from globalvit.data.storage.lmdb_source import open_database

            return open_database(root, classes)
        if is_devkit(root):
            return open_devkit(root, classes)
        return ImageFolder(root, classes, nested=nested)


class TableFormat:
    """Rows of image and label in `labels.csv`, or in a table per split."""

    name = "table"

    def matches(self, folder: Path) -> bool:
        """Whether a folder has a table of images and labels."""
        return bool(table_files(folder))

    def describe(self, folder: Path) -> str:
        """The first table."""
        return f"labels in {next(iter(table_files(folder).values())).relative_to(folder).as_posix()}"

    def splits(self, folder: Path) -> Sequence[str]:
        """Names of the splits that the tables state."""
        return splits_of(folder)

    def open(
        self,
        folder: Path,
        split: str,
        classes: Sequence[str] | None = None,
        *,
        nested: bool = False,  # noqa: ARG002 - labels are not folders
        multi_label: MultiLabel = "auto",
    ) -> Any:
        """Read the rows of one split."""
        found = read_split(folder, split, classes, multi_label)
        form = f"{self.name}, multi-label" if found.is_multi_label else self.name
        logger.info("%s (format %s): %d images of %r", folder, form, len(found.names), split)
        kind = MultiLabelFiles if found.is_multi_label else LabeledFiles
        return kind(folder, found.classes, found.names, found.labels)


class ShardFormat:
    """Tar shards in a folder per split, or with the split in their names."""

    name = "shards"

    def matches(self, folder: Path) -> bool:
        """Whether a folder holds shards of a split with one of the usual names."""
        return has_shards(folder)

    def describe(self, folder: Path) -> str:
        """The number of shards of each split."""
        return ", ".join(f"{len(paths)} tar shards of {name!r}" for name, paths in shard_splits(folder).items())

    def splits(self, folder: Path) -> Sequence[str]:
        """Names of the splits that have shards."""
        return list(shard_splits(folder))

    def open(
        self,
        folder: Path,
        split: str,
        classes: Sequence[str] | None = None,
        *,
        nested: bool = False,  # noqa: ARG002 - labels are not folders
        multi_label: MultiLabel = "auto",  # noqa: ARG002 - one label each
    ) -> Source:
        """Open the shards of one split."""
        return open_shards(shard_splits(folder)[split], folder / split, classes)


HUGGING_FACE = HuggingFaceFormat()
FORMATS: list[ClassificationFormat] = [FolderFormat(), TableFormat(), ShardFormat(), HUGGING_FACE]


def open_split(
    data_dir: str | PathLike[str],
    split: str,
    classes: Sequence[str] | None = None,
    *,
    form: str | None = None,
    exact: bool = False,
    nested: bool = False,
    multi_label: MultiLabel = "auto",
) -> Source:
    """Open one split of a data set.

    Args:
        data_dir: a folder in one of `FORMATS`, or `digits`, `shapes` or `hf:NAME`.
        split: the split's name; `train`, `val` and `test` also stand for the other names in `splits.ROLES`. Or a list
            of tar shards below `data_dir`, such as `train-{000..003}.tar`.
        classes: the classes expected, such as those of the training split.
        form: name of the format; None finds it.
        exact: the user named this folder, so that it is taken though others may be meant too.
        nested: as in `ImageFolder`.
        multi_label: whether images may have any number of labels, which a table states; `auto` decides by the table.

    Raises:
        NoSplitError: no such folder; the text says which there are.
        ValueError: several folders or formats may be meant, what `ImageFolder` refuses, a row of a table that cannot be
            used, or a database that is not complete.
    """
    if is_built_in(data_dir, *BUILT_IN):
        _refuse_multi_label(data_dir, multi_label)
        source = Digits(split) if str(data_dir) == DIGITS else ClassifyShapes(split)
        match_classes(source.classes, classes or source.classes, f"{data_dir}/{split}")
        return source
    root = Path(data_dir)
    if is_shard_list(split):
        return open_shards(listed_shards(root, split), root / split.rpartition("/")[0], classes)
    chosen = HUGGING_FACE if is_hub(data_dir) else choose_format(FORMATS, root, form) or FORMATS[0]
    name = choose_split(split, chosen.splits(root), root, exact=exact)
    if name is None:
        raise _no_split(root, split, chosen)
    if not isinstance(chosen, TableFormat):
        _refuse_multi_label(data_dir, multi_label)
    return chosen.open(root, name, classes, nested=nested, multi_label=multi_label)


def _refuse_multi_label(data_dir: str | PathLike[str], multi_label: MultiLabel) -> None:
    if multi_label is True:
        raise ValueError(
            f"{data_dir} has one label per image; --multi-label true requires a table of labels, such as labels.csv"
        )


def _no_split(data_dir: Path, split: str, chosen: ClassificationFormat) -> FileNotFoundError:
    """What to say of a split that a folder does not have."""
    if not isinstance(chosen, FolderFormat):
        return NoSplitError(
            f"no split {split!r} in {data_dir} ({chosen.describe(data_dir)}); it has "
            f"{listed(chosen.splits(data_dir))}; {flag_of(split)} takes another name"
        )
    folders = split_folders(data_dir)
    if is_database(data_dir):
        return FileNotFoundError(
            f"{data_dir} is a single LMDB database; give the folder it lies in, {data_dir.absolute().parent}, and "
            f"{data_dir.absolute().name} as the name of the split: --train-split or --val-split"
        )
    there = f"it holds {listed(folders)}" if folders else "it holds no folders"
    return NoSplitError(
        f"no folder {split!r} in {data_dir}; {there}. Expected {data_dir}/{split}/CLASS/IMAGE.jpg; "
        f"{flag_of(split)} takes another name{other_level(data_dir) if split == 'train' else ''}"
    )


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

"""Images with a label for each pixel, in folders, in an LMDB database, or built in.

    DATA_DIR/images/{training,validation}   DATA_DIR/annotations/{training,validation}    as ADE20K has it
    DATA_DIR/{train,val}/images             DATA_DIR/{train,val}/masks

`masks` and `labels` also stand for `annotations`, and the splits have the names that `splits.ROLES` lists. `LAYOUTS`
lists the other places, of which the last two have label maps beside their images. A label map is the file that
`pairing.pair` finds. Images are turned upright by EXIF; labels may be for the stored or the upright
image, as `data.common.orientation` has it.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from globalvit.data.built_in.shapes import SegmentShapes
from globalvit.data.common.folders import SHAPES, is_built_in, is_database, is_image_folder, listed, split_folders
from globalvit.data.common.images import read_image
from globalvit.data.common.names import Names
from globalvit.data.common.orientation import FramedLabels, Sight
from globalvit.data.common.splits import NoSplitError, choose_split, flag_of
from globalvit.data.common.walk import search
from globalvit.data.segmentation.class_table import ClassTable, palette_of, reader_of, resolve_classes
from globalvit.data.segmentation.label_images import LabelReader, read_labeled, sight_of_pair
from globalvit.data.segmentation.pairing import SUFFIXES, holds_beside, pair, split_beside, stem_of
from globalvit.data.segmentation.survey import look_over, settle_reader, warn_unlearned
from globalvit.data.storage.shard_masks import open_shard_masks
from globalvit.data.storage.tar_files import is_shard_list, listed_shards, shard_splits

logger = logging.getLogger(__name__)

# Where images and label maps lie.
LABEL_FOLDERS = ("annotations", "masks", "labels")
LAYOUTS = (
    ("images/{}", "annotations/{}"),
    ("{}/images", "{}/masks"),
    ("{}/images", "{}/annotations"),
    ("images/{}", "masks/{}"),
    ("images/{}", "labels/{}"),
    ("{}/images", "{}/labels"),
    ("{}", "{}annot"),
    ("{}", "{}_labels"),
    ("{}", "{}_masks"),
    ("images/{}", "images/{}"),
    ("{}", "{}"),
)
LABEL_SUFFIX = SUFFIXES[0]
# Labels of objects, one file per image: data for a detector.
OBJECT_SUFFIXES = (".txt", ".xml")
MOST_LOOKED_AT = 100
LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif")


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

    @property
    def is_binary(self) -> bool:
        """Whether the files hold 0 and 255 for the two classes."""
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


class MaskPairs(FramedLabels):
    """Images of a folder, each with a label map.

    Args:
        folders: where they lie.
        images: paths of the images below their folder.
        labels: those of their label maps.
        table: names and colors of the classes.
    """

    def __init__(self, folders: Folders, images: Sequence[str], labels: Sequence[str], table: ClassTable) -> None:
        self.folders, self.root = folders, folders.images
        self.classes, self.palette = table.names, palette_of(table)
        self._names, self._label_names = Names(images), Names(labels)

    # Of the images.
    channels = 3

    @property
    def is_binary(self) -> bool:
        """Whether the files hold 0 and 255 for the two classes."""
        return False

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """The path of image `index`."""
        return str(self.folders.images / self._names[index])

    def label_name(self, index: int) -> str:
        """The path of the label map of image `index`."""
        return str(self.folders.labels / self._label_names[index])

    @property
    def annotated_by(self) -> str:
        """What to call the label maps in messages."""
        return f"the label maps of {self.folders.labels}"

    def sight(self, index: int) -> Sight | None:
        """What image `index` shows of the labels' frame; None where EXIF does not turn it."""
        name = self.name(index)
        return sight_of_pair(name, Path(name), Path(self.label_name(index)))


class MaskFolder(MaskPairs):
    """One split of a folder of images and label maps.

    Hidden files and files that do not end as images do are left out; the latter are counted in `other_files`, label
    images without an image in `unused_labels`.

    Args:
        folders: where they lie.
        table: names and colors of the classes.
        reader: reads the label maps; None takes one for these classes.
        is_binary: as in `settle_reader`.

    Raises:
        ValueError: no images, images without labels, two images of one stem, or what `settle_reader` refuses.
    """

    def __init__(
        self, folders: Folders, table: ClassTable, reader: LabelReader | None = None, *, is_binary: bool | None = None
    ) -> None:
        listing = MaskListing(folders)
        listing.check()
        self.other_files, self.unused_labels = listing.other_files, len(listing.unused)
        if self.unused_labels:
            logger.warning("%s: %d label maps have no image", folders.labels, self.unused_labels)
        super().__init__(folders, listing.images, listing.labels, table)
        reader = reader or reader_of(table)
        values = look_over(reader, len(self), lambda index: Path(self.label_name(index)).read_bytes())
        self.reader = settle_reader(reader, values, folders.labels, self.classes, is_binary=is_binary)
        if is_binary is None:
            warn_unlearned(self.reader, values, len(self), folders.labels, self.classes)

    @property
    def is_binary(self) -> bool:
        """Whether the files hold 0 and 255 for the two classes."""
        return self.reader.is_binary

    def labels(self, index: int) -> list[int]:
        """The labels in the label map of image `index`, ascending; none where it cannot be read."""
        name = self.label_name(index)
        try:
            return self.reader.labels(Path(name).read_bytes(), name)
        except OSError:
            return []

    def read(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Image `index` as RGB, and its labels; raises what `read_labeled` raises, or OSError."""
        name, label_name = self.name(index), self.label_name(index)
        image, labels = Path(name).read_bytes(), Path(label_name).read_bytes()
        decode = partial(read_image, channels=self.channels)
        return read_labeled(image, labels, self.reader, name, label_name, frame=lambda: self.frame, decode=decode)


class MaskListing:
    """What lies in the folders of one split; nothing is opened.

    Attributes:
        images: paths of the images below their folder, sorted.
        labels: paths of their label maps below their folder; where there is none, that of the file expected.
        without: the images that have no label map.
        unused: label maps below their folder that have no image.
        doubled: stems, below the folder, that several images have.
        several: label maps of one image, where there are several.
        other_files: files that are not images.
        unreadable: folders that could not be read.
    """

    def __init__(self, folders: Folders) -> None:
        self.folders = folders
        images, labels = search(folders.images), search(folders.labels)
        images.warn()
        self.images, self.other_files = images.images, images.others
        self._files, self._others = labels.images, labels.others
        self.unreadable = [*images.unreadable]
        if folders.images == folders.labels:
            self.images, self._files = split_beside(images.images)
        else:
            labels.warn()
            self.unreadable += labels.unreadable
        found = pair(map(stem_of, self.images), self._files)
        self.labels = [found.labels.get(stem_of(name), label_file(name)) for name in self.images]
        self.without = [name for name in self.images if stem_of(name) not in found.labels]
        self.unused, self.several = found.unused, found.several
        self.doubled = _repeated([label_file(name) for name in self.images])

    def check(self) -> None:
        """Refuse what cannot be trained on.

        Raises:
            ValueError: no images, images without labels, two images of one stem, or two label maps of one image.
        """
        images, labels = self.folders
        if not self.images:
            raise ValueError(f"no images in {images}; expected {images}/NAME.jpg and {labels}/NAME.png")
        if self.without:
            raise ValueError(
                f"{len(self.without)} of {len(self.images)} images in {images} have no label map in {labels}: "
                f"{listed(self.without)}; expected NAME.png for each NAME.jpg, so {self.remedy()}"
            )
        if self.doubled:
            raise ValueError(
                f"several images in {images} share the label map {listed(self.doubled)}; rename all but one"
            )
        if self.several:
            raise ValueError(
                f"{len(self.several)} images in {images} have several label maps in {labels}, the first of them "
                f"{listed(self.several[0])}; expected one per image, so remove the others"
            )

    def remedy(self) -> str:
        """What to do about images without a label map, by the files that lie in its place."""
        stems = {stem_of(name) for name in self.without}
        wrong = [name for name in self._files if stem_of(name) in stems]
        if wrong:
            lossy = " (JPEG changes class numbers: export again)" if wrong[0].lower().endswith(LOSSY) else ""
            return f"save the label maps as PNG, not as {wrong[0]!r}{lossy}"
        similar = next((name for name in self.unused if stem_of(self.without[0]) in name), None)
        if similar:
            return f"rename label maps such as {similar!r}"
        if self._others and not self._files:
            return "add label maps; the files there are not images, as of boxes in text files"
        return "add them or remove the images"


def open_masks(
    data_dir: str | PathLike[str],
    split: str,
    *,
    classes: Sequence[str] | None = None,
    num_classes: int | None = None,
    reduce_zero_label: bool = False,
    class_file: str | None = None,
    ignore_label: int | None = None,
    is_binary: bool | None = None,
    exact: bool = False,
) -> MaskSource:
    """Open one split of a data set for segmentation.

    Args:
        data_dir: a folder as described above, a folder with an LMDB database or tar shards for each split, or
            `shapes`.
        split: `train`, `val` and `test` also stand for the other names in `splits.ROLES`.
        classes: the classes expected, such as those of the training split.
        num_classes: how many are expected; where nothing names them, the classes are called by their numbers.
        reduce_zero_label: 0 in the files is to be ignored, and every other label is one less than they say.
        class_file: names and perhaps colors of the classes, if not in `data_dir`; or `ade20k` for its 150.
        ignore_label: a value in the files that is to be ignored, in addition to 255.
        is_binary: whether 0 and 255 are the two classes, as found in the training split; None looks at the files.
        exact: the user named this split, so that it is taken though others may be meant too.

    Raises:
        NoSplitError: no such split; the text says which there are.
        ValueError: what `MaskFolder` and `resolve_classes` refuse, or a database that is not complete.
    """
    if is_built_in(data_dir, SHAPES):
        return _open_shapes(split, classes, num_classes, reduce_zero_label)
    root = Path(data_dir)
    expected: dict[str, Any] = {"classes": classes, "num_classes": num_classes, "class_file": class_file}
    labels: dict[str, Any] = {"reduce_zero_label": reduce_zero_label, "ignore": ignore_label}
    databases = [name for name in split_folders(root) if is_database(root / name)]
    database = choose_split(split, databases, root, exact=exact)
    if database is not None:
        # Imported here, since the package lmdb is an extra.
        from globalvit.data.storage.lmdb_masks import open_mask_database

        return open_mask_database(root / database, **expected, **labels, is_binary=is_binary)
    shards = {} if find_splits(root) else shard_splits(root)
    shard_split = None if is_shard_list(split) else choose_split(split, shards, root, exact=exact)
    if shard_split is not None or is_shard_list(split):
        paths = shards[shard_split] if shard_split else listed_shards(root, split)
        folder = root / (shard_split or split.rpartition("/")[0])
        return open_shard_masks(paths, folder, root, **expected, **labels, is_binary=is_binary)
    # A folder that is none of these is reported before its classes are missed.
    folders = find_folders(root, split, exact=exact)
    table = resolve_classes(root, **expected)
    return MaskFolder(folders, table, reader_of(table, **labels), is_binary=is_binary)


def find_folders(data_dir: Path, split: str, *, exact: bool = False) -> Folders:
    """The folders of one split.

    Raises:
        NoSplitError: there are none; the text says what was expected.
        FileNotFoundError: there are images, but no label maps.
        ValueError: several splits may be meant.
    """
    splits = find_splits(data_dir)
    name = choose_split(split, splits, data_dir, exact=exact)
    if name is not None:
        return next(filter(_is_whole, _layouts(data_dir, name)))
    half = next(filter(_is_half, _layouts(data_dir, split)), None)
    if half:
        raise FileNotFoundError(f"no folder {half.labels} of label maps beside {half.images}; add it")
    raise NoSplitError(
        f"no split {split!r} in {data_dir}; it holds {listed(splits) or 'none'}. Expected "
        f"{data_dir}/images/{split} and {data_dir}/annotations/{split}; {flag_of(split)} takes another name"
        f"{_unsplit(data_dir, split)}"
    )


def flat_folders(data_dir: Path) -> Folders | None:
    """The folders of images and label maps that are not split: DATA_DIR/images and DATA_DIR/masks."""
    images = data_dir / "images"
    labels = [data_dir / name for name in LABEL_FOLDERS if is_image_folder(data_dir / name)]
    return Folders(images, labels[0]) if labels and is_image_folder(images) else None


def _unsplit(data_dir: Path, split: str) -> str:
    if split == "train" and flat_folders(data_dir) is not None:
        return f". To split its images and label maps: globalvit data split {data_dir} OUTPUT"
    return ""


def _is_whole(folders: Folders) -> bool:
    """Whether images and label maps may lie where a layout has them."""
    images, labels = folders
    return images.is_dir() and (holds_beside(images) if images == labels else labels.is_dir())


def _is_half(folders: Folders) -> bool:
    """Whether images lie where a layout has them, and no label maps."""
    return "images" in (folders.images.name, folders.images.parent.name) and folders.images.is_dir()


def find_splits(data_dir: Path) -> list[str]:
    """Names of the splits in a folder of images and label maps.

    Raises:
        FileNotFoundError, NotADirectoryError: the folder does not exist.
    """
    names = split_folders(data_dir)
    inner = split_folders(data_dir / "images") if "images" in names else []
    candidates = dict.fromkeys([*inner, *names])
    return [name for name in candidates if any(map(_is_whole, _layouts(data_dir, name)))]


def may_hold_maps(folder: Path) -> bool:
    """Whether a folder of labels does not hold text files in place of label maps, as YOLO's and VOC's do."""
    with os.scandir(folder) as entries:
        suffixes = {Path(entry.name).suffix.lower() for _, entry in zip(range(MOST_LOOKED_AT), entries, strict=False)}
    return suffixes.isdisjoint(OBJECT_SUFFIXES) or not suffixes.isdisjoint(SUFFIXES)


def label_file(image: str) -> str:
    """The label map of an image, both below their folders."""
    return stem_of(image) + LABEL_SUFFIX


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

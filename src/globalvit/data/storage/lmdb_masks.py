"""Images and their label maps out of an LMDB database, in place of folders of them."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from globalvit.data.common.images import UnreadableImage
from globalvit.data.common.orientation import FramedLabels, Sight
from globalvit.data.segmentation.class_table import ClassTable, palette_of, reader_of, resolve_classes
from globalvit.data.segmentation.label_images import LabelReader, read_labeled, sight_of_pair
from globalvit.data.segmentation.survey import look_over, settle_reader, warn_unlearned
from globalvit.data.storage.lmdb import located, only_now, value
from globalvit.data.storage.lmdb_decode import decode
from globalvit.data.storage.lmdb_index import Header, Keys, read_header, read_keys
from globalvit.data.storage.lmdb_source import file_data


class LmdbMasks(FramedLabels):
    """Images of a database with a label for each pixel; every process opens it at its first read.

    Args:
        root: the database's folder.
        keys: of each image, followed by that of its labels.
        table: names and colors of the classes.
        reader: reads the label maps.

    Attributes:
        path: the database, as `lmdb.value` wants it called.
    """

    def __init__(self, root: Path, keys: Keys, table: ClassTable, reader: LabelReader) -> None:
        self.root = root
        self.path = located(root)
        self.classes, self.palette = table.names, palette_of(table)
        self._keys = keys
        self.reader = reader

    # Of the images.
    channels = 3

    @property
    def is_binary(self) -> bool:
        """Whether the files hold 0 and 255 for the two classes."""
        return self.reader.is_binary

    def __len__(self) -> int:
        return len(self._keys) // 2

    def key(self, index: int) -> bytes:
        """The key of image `index`."""
        return self._keys[2 * index]

    def label_key(self, index: int) -> bytes:
        """The key of the label map of image `index`."""
        return self._keys[2 * index + 1]

    def name(self, index: int) -> str:
        """The database's folder and the key of image `index`."""
        return str(self.root / os.fsdecode(self.key(index)))

    def label_name(self, index: int) -> str:
        """The database's folder and the key of the label map of image `index`."""
        return str(self.root / os.fsdecode(self.label_key(index)))

    def label_data(self, index: int) -> bytes:
        """The bytes of the label map of image `index`."""
        return file_data(self.path, self.label_key(index), self.label_name(index))

    def labels(self, index: int) -> list[int]:
        """The labels in the label map of image `index`, ascending; none where it cannot be read."""
        try:
            return self.reader.labels(self.label_data(index), self.label_name(index))
        except (UnreadableImage, OSError):
            return []

    def read(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Image `index` as RGB, and its labels; raises what `file_data` and `read_labeled` raise."""
        name, label_name = self.name(index), self.label_name(index)
        data = file_data(self.path, self.key(index), name)
        label_data = self.label_data(index)
        read = partial(decode, channels=self.channels)
        return read_labeled(
            data,
            label_data,
            self.reader,
            name,
            label_name,
            frame=lambda: self.frame,
            decode=read,
        )

    @property
    def annotated_by(self) -> str:
        """What to call the label maps in messages."""
        return f"the label maps of {self.root}"

    def sight(self, index: int) -> Sight | None:
        """What image `index` shows of the labels' frame; None where EXIF does not turn it."""
        pair = (value(self.path, key(index)) or b"" for key in (self.key, self.label_key))
        return sight_of_pair(self.name(index), *pair)


def holds_masks(root: Path) -> bool:
    """Whether a complete database holds label maps; an unknown one counts as holding none."""
    try:
        with only_now(root):
            header = read_header(root)
    except (ValueError, OSError):
        return False
    return header is not None and header.has_masks


def open_mask_database(
    root: Path,
    *,
    classes: Sequence[str] | None = None,
    num_classes: int | None = None,
    class_file: str | None = None,
    reduce_zero_label: bool = False,
    ignore: int | None = None,
    is_binary: bool | None = None,
) -> LmdbMasks:
    """Open a database that `globalvit data lmdb build` made of images and label maps.

    Args:
        root: the folder that holds `data.mdb`.
        classes: the classes expected, as in `open_masks`.
        num_classes: how many are expected, likewise.
        class_file: names of the classes in place of those in the database.
        reduce_zero_label: 0 in the files is to be ignored, and every other label is one less than they say.
        ignore: a value in the files that is to be ignored, in addition to 255.
        is_binary: as in `settle_reader`.

    Raises:
        HalfBuilt: its build was not finished.
        ValueError: it holds no label maps, or not the classes expected.
        OSError: it cannot be read.
    """
    # Whatever this process had open there may be another database by now.
    with only_now(root):
        header = read_header(root)
        if header is None or not header.has_masks:
            raise ValueError(
                f"{root} holds classes of images, and no label maps for segmentation; build it from a folder "
                "with images/ and annotations/"
            )
        keys = read_keys(root, header)
        expected: dict[str, Any] = {"classes": classes, "num_classes": num_classes, "class_file": class_file}
        table = resolve_classes(root.parent, **expected, packed=_packed_table(header))
        reader = reader_of(table, reduce_zero_label=reduce_zero_label, ignore=ignore)
        source = LmdbMasks(root, keys, table, reader)
        values = look_over(reader, len(source), source.label_data)
        source.reader = settle_reader(reader, values, root, source.classes, is_binary=is_binary)
        if is_binary is None:
            warn_unlearned(source.reader, values, len(source), root, source.classes)
    return source


def _packed_table(header: Header) -> ClassTable | None:
    """The class file that was packed, if there was one."""
    if not header.classes:
        return None
    void = [one.split("#") for one in header.void]
    return ClassTable(
        header.classes,
        tuple(_color(color[1:]) for color in header.colors) or None,
        tuple((int(number), _color(color)) for number, color in void),
    )


def _color(text: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(text)
    return red, green, blue

"""Labeled images out of an LMDB database, in place of a folder of them."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from globalvit.data.classification.formats import match_classes
from globalvit.data.common.images import UnreadableImage
from globalvit.data.storage.lmdb import located, only_now, value
from globalvit.data.storage.lmdb_decode import decode
from globalvit.data.storage.lmdb_index import Header, Keys, read_header, read_keys
from globalvit.data.storage.lmdb_published import open_labels


class LmdbImages:
    """Images of a database as a `Source`; every process opens it at its first read.

    Args:
        root: the database's folder.
        classes: names of the labels.
        keys: of all images the database holds.
        labels: of all these images.
        order: positions in `keys` of image 0, 1, …
        is_direct: whether simplejpeg decodes where it may.

    Attributes:
        order: as given.
        path: the database, as `lmdb.value` wants it called.
    """

    def __init__(
        self,
        root: Path,
        classes: Sequence[str],
        keys: Keys,
        labels: np.ndarray,
        order: np.ndarray,
        *,
        is_direct: bool = True,
    ) -> None:
        self.root = root
        self.classes = tuple(classes)
        self.is_direct = is_direct
        self.path = located(root)
        self._keys, self._labels, self.order = keys, labels[order], order

    # Of the images.
    channels = 3

    def __len__(self) -> int:
        return len(self.order)

    def label(self, index: int) -> int:
        """The label of image `index`."""
        return int(self._labels[index])

    def key(self, index: int) -> bytes:
        """The key of image `index`."""
        return self._keys[self.order[index]]

    def name(self, index: int) -> str:
        """The database's folder and the key of image `index`."""
        return str(self.root / os.fsdecode(self.key(index)))

    def data(self, index: int) -> bytes:
        """The bytes of image `index`.

        Raises:
            UnreadableImage: the image is not there any more.
            OSError: the database cannot be read.
        """
        return file_data(self.path, self.key(index), self.name(index))

    def read(self, index: int) -> Image.Image:
        """Image `index` as RGB; raises what `data` and `read_image` raise."""
        return decode(self.data(index), self.name(index), self.channels, is_direct=self.is_direct)


def file_data(path: str, key: bytes, name: str) -> bytes:
    """The bytes of a file in the database that readers call `path`; `name` is what errors call the file.

    Raises:
        UnreadableImage: it is not there any more.
        OSError: the database cannot be read.
    """
    data = value(path, key)
    if data is None:
        raise UnreadableImage(f"{name} is not in the database any more; it was built again meanwhile")
    return data


def open_database(
    root: str | os.PathLike[str], classes: Sequence[str] | None = None, *, is_direct: bool = True
) -> LmdbImages:
    """Open a database made by `globalvit data lmdb build`, or one of the old published form.

    Args:
        root: the folder that holds `data.mdb`.
        classes: the classes expected, in the order of their labels; None takes the database's.
        is_direct: whether simplejpeg decodes where it may; the pixels are the same.

    Raises:
        HalfBuilt: its build was not finished.
        FileNotFoundError: an old database has no text file of labels.
        ValueError: other classes than those expected, or another kind of database.
        OSError: it cannot be read.
    """
    root = Path(root)
    # Whatever this process had open there may be another database by now.
    with only_now(root):
        header = read_header(root)
        if header is None:
            own, keys, labels = open_labels(root, classes)
            return LmdbImages(root, own, keys, labels, np.arange(len(keys)), is_direct=is_direct)
        if header.has_masks:
            raise ValueError(
                f"{root} holds images with label maps, for segmentation, and not classes of images; give a "
                "model for segmentation, such as --model gpvit_l1_upernet"
            )
        label_of = match_classes(header.classes, classes or header.classes, str(root))
        labels, order = _arrange(header, label_of)
        keys = read_keys(root, header)
    return LmdbImages(root, classes or header.classes, keys, labels, order, is_direct=is_direct)


def _arrange(header: Header, label_of: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Labels of the images as they are packed, and their positions in the order of the labels."""
    labels = np.repeat([label_of[name] for name in header.classes], header.counts).astype(np.int32)
    return labels, np.argsort(labels, kind="stable")

"""Images in files below one folder, with one label or several each."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from globalvit.data.common.images import read_image
from globalvit.data.common.names import Names


class ImageFiles:
    """Images in files below one folder.

    Args:
        root: the folder.
        classes: names of the labels.
        names: paths of the images below `root`.
    """

    def __init__(self, root: Path, classes: Iterable[str], names: Iterable[str]) -> None:
        self.root, self.classes = root, tuple(classes)
        self._names = Names(names)

    # Of the images.
    channels = 3

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """The path of image `index`."""
        return str(self.root / self._names[index])

    def read(self, index: int) -> Image.Image:
        """Image `index` as RGB; raises what `read_image` raises."""
        return read_image(self.name(index), channels=self.channels)


class LabeledFiles(ImageFiles):
    """Images in files below one folder, each with a label; a `Source`.

    Args:
        root, classes, names: as in `ImageFiles`.
        labels: of these images, int (len,).
    """

    def __init__(self, root: Path, classes: Iterable[str], names: Iterable[str], labels: ArrayLike) -> None:
        super().__init__(root, classes, names)
        self._labels = np.array(labels, dtype=np.int32)

    def label(self, index: int) -> int:
        """The label of image `index`."""
        return int(self._labels[index])


class MultiLabelFiles(ImageFiles):
    """Images in files below one folder, each with any number of labels.

    Args:
        root, classes, names: as in `ImageFiles`.
        labels: of these images.
    """

    is_multi_label = True

    def __init__(
        self, root: Path, classes: Iterable[str], names: Iterable[str], labels: Sequence[Iterable[int]]
    ) -> None:
        super().__init__(root, classes, names)
        self._hot_NK = np.zeros((len(labels), len(self.classes)), dtype=bool)
        for row, own in enumerate(labels):
            self._hot_NK[row, list(own)] = True

    def labels(self, index: int) -> list[int]:
        """The labels of image `index`, ascending."""
        return np.flatnonzero(self._hot_NK[index]).tolist()

    def target(self, index: int) -> np.ndarray:
        """Return 1 for the labels of image `index` and 0 for the others, float32 (K,)."""
        return self._hot_NK[index].astype(np.float32)

"""Images in files below one folder, with one label each."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from globalvit.data.common.images import read_image
from globalvit.data.common.names import Names


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

    # Of the images.
    channels = 3

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
        return read_image(self.name(index), channels=self.channels)

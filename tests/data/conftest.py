"""Small data folders and sources for the tests of the data room."""

import json

import numpy as np
import pytest
from PIL import Image

from globalvit.data.images import UnreadableImage


@pytest.fixture
def make_folder(tmp_path):
    """Make data/SPLIT/CLASS/N.png with different small images, as many as {split: {class: number}} says."""

    def make(splits):
        random = np.random.default_rng(0)
        for split, classes in splits.items():
            for name, number in classes.items():
                folder = tmp_path / "data" / split / name
                folder.mkdir(parents=True)
                for index in range(number):
                    values = random.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                    Image.fromarray(values).save(folder / f"{index:03}.png")
        return tmp_path / "data"

    return make


class Toys:
    """Images 20 pixels high and 24 wide, each filled with its index; some are unreadable."""

    classes = ("a", "b", "c")

    def __init__(self, total, bad=(), error=UnreadableImage):
        self.total, self.bad, self.error = total, frozenset(bad), error

    def __len__(self):
        return self.total

    def label(self, index):
        return index % 3

    def name(self, index):
        return f"toys/{index}"

    def read(self, index):
        if index in self.bad:
            raise self.error(f"toys/{index} cannot be read")
        return Image.new("RGB", (24, 20), (index % 256, index // 256, 7))


@pytest.fixture
def toys():
    """The class `Toys`."""
    return Toys


@pytest.fixture
def make_masks(tmp_path):
    """Make images 24 wide and 20 high, and label maps of classes 0 … K−1, as many as {split: number} says."""

    def make(splits, classes=3, layout=("images/{}", "annotations/{}"), names=True):
        root, random = tmp_path / "masks", np.random.default_rng(0)
        for split, number in splits.items():
            images, labels = (root / part.format(split) for part in layout)
            images.mkdir(parents=True)
            labels.mkdir(parents=True)
            for index in range(number):
                values = random.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(values).save(images / f"{index:03}.jpg")
                Image.fromarray(random.integers(0, classes, (20, 24), dtype=np.uint8)).save(labels / f"{index:03}.png")
        if names:
            (root / "classes.json").write_text(json.dumps([f"class {number}" for number in range(classes)]))
        return root

    return make

"""Small data folders and sources for the tests of the data room."""

import json

import numpy as np
import pytest
from PIL import Image

from globalvit.data.common.images import UnreadableImage
from globalvit.data.detection.dataset import open_detection


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
            labels.mkdir(parents=True, exist_ok=True)
            # Beside their images, label maps have a mark.
            mark = "_mask" if images == labels else ""
            for index in range(number):
                values = random.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(values).save(images / f"{index:03}.jpg")
                label_map = Image.fromarray(random.integers(0, classes, (20, 24), dtype=np.uint8))
                label_map.save(labels / f"{index:03}{mark}.png")
        if names:
            (root / "classes.json").write_text(json.dumps([f"class {number}" for number in range(classes)]))
        return root

    return make


@pytest.fixture
def content():
    """A COCO file as JSON has it: four images of 64×48 with an object each, of two categories in turn."""
    images = [{"id": at, "file_name": f"{at}.png", "width": 64, "height": 48} for at in (1, 2, 3, 4)]
    rows = []
    for at, (x, y, w, h) in enumerate(([6, 5, 24, 20], [9, 7, 30, 22], [30, 20, 20, 18], [12, 9, 40, 30])):
        outline = [x, y, x + w, y, x + w, y + h, x, y + h]
        row = {"id": at + 11, "image_id": at + 1, "category_id": 1 + at % 2, "bbox": [x, y, w, h], "area": w * h}
        rows.append(row | {"iscrowd": 0, "segmentation": [outline]})
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
    return {"images": images, "annotations": rows, "categories": categories}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The data folder with its images; its file of annotations is written by each test."""
    root = tmp_path_factory.mktemp("coco") / "data"
    (root / "annotations").mkdir(parents=True)
    (root / "train" / "deep").mkdir(parents=True)
    for at in (1, 2, 3, 4):
        for place in (f"{at}.png", f"deep/{at}.png"):
            Image.new("RGB", (64, 48), (at, 0, 0)).save(root / "train" / place)
    Image.new("RGB", (64, 48)).save(root.parent / "secret.png")
    (root / "train" / "odd\\name.png").write_bytes((root / "train" / "4.png").read_bytes())
    return root


@pytest.fixture
def write(folder):
    """Write the file of annotations: a document, or its bytes."""

    def to_file(content):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / "annotations" / "instances_train.json").write_bytes(data)
        return folder

    return to_file


@pytest.fixture
def refused():
    """Open a COCO data folder that is refused, and return the one line that says why."""

    def text_of(folder):
        with pytest.raises(ValueError, match="instances_train") as caught:
            open_detection(folder, "train")
        text = str(caught.value)
        assert text.startswith(str(folder / "annotations" / "instances_train.json"))
        assert "\n" not in text
        assert len(text) < 800
        return text

    return text_of

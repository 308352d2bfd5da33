"""Data sets of Hugging Face's `datasets`, with a stand-in for that library: what is read, and what is refused."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from globalvit.cli.main import main
from globalvit.data.classification.checks import check_folder
from globalvit.data.classification.dataset import open_split
from globalvit.data.common.images import UnreadableImage
from globalvit.data.storage.fingerprint import fingerprint


class FakeImage:
    """Stands for datasets.Image."""

    def __init__(self, decode=True):
        self.decode = decode


FakeImage.__name__ = "Image"


class Rows:
    """Stands for datasets.Dataset: columns by name, and what they are."""

    split = None

    def __init__(self, columns, features):
        self.columns, self.features = columns, features
        self.column_names = list(columns)

    def with_format(self, form):
        assert form is None
        return self

    def cast_column(self, name, feature):
        assert not feature.decode
        return Rows(self.columns, self.features | {name: feature})

    def __getitem__(self, key):
        return self.columns[key] if isinstance(key, str) else {name: one[key] for name, one in self.columns.items()}


def png(value):
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), (value, 0, 0)).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


def rows(labels, names=("cat", "dog"), image="image"):
    features = {image: FakeImage(), "label": SimpleNamespace(names=list(names) if names else None)}
    return Rows({image: [png(at) for at in range(len(labels))], "label": labels}, features)


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A saved data set that the stand-in loads, and a way to set what it holds."""
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    held = {}

    def load(name):
        if isinstance(held[name], Exception):
            raise held[name]
        return held[name]

    library = SimpleNamespace(load_dataset=load, load_from_disk=load)
    monkeypatch.setitem(sys.modules, "datasets", library)

    def holds(content, name=str(tmp_path)):
        held[name] = content
        return tmp_path

    return holds


def test_images_and_labels(saved):
    data = saved({"train": rows([0, 1, 1]), "test": rows([1])})
    source = open_split(data, "train")
    assert source.classes == ("cat", "dog")
    assert [source.label(at) for at in range(3)] == [0, 1, 1]
    assert np.array_equal(source.read(2), np.full((6, 8, 3), (2, 0, 0)))
    assert source.name(2) == f"{data}, split 'train', row 2"
    assert fingerprint(source).files == 3
    other = open_split(data, "test", ("dog", "cat"))
    assert (other.classes, other.label(0)) == (("dog", "cat"), 0)
    with pytest.raises(FileNotFoundError, match=r"no split 'extra' .*it has 'train', 'test'"):
        open_split(data, "extra")


def test_the_hub_and_data_without_splits(saved):
    saved({"train": rows([0, 1])}, "owner/name")
    assert len(open_split("hf:owner/name", "train")) == 2
    assert not check_folder(Path("hf:owner/name")).problems
    data = saved(rows([0, 1]))
    assert len(open_split(data, "train")) == 2


@pytest.mark.parametrize(("labels", "classes"), [([10, 9, 10], ("9", "10")), (["b", "a", "b"], ("a", "b"))])
def test_labels_without_names(saved, labels, classes):
    source = open_split(saved({"train": rows(labels, names=None)}), "train")
    assert source.classes == classes
    assert [source.label(at) for at in range(3)] == [1, 0, 1]


def test_images_in_files_and_none_at_all(saved, tmp_path):
    (tmp_path / "a.png").write_bytes(png(7)["bytes"])
    given = rows([0, 1])
    given.columns["image"] = [{"bytes": None, "path": str(tmp_path / "a.png")}, None]
    source = open_split(saved({"train": given}), "train")
    assert source.read(0).getpixel((0, 0)) == (7, 0, 0)
    with pytest.raises(UnreadableImage, match=r"row 1 has no image"):
        source.read(1)
    report = check_folder(tmp_path)
    assert [(split.images, split.unreadable) for split in report.splits] == [(2, 1)]


def text_column():
    given = rows([0])
    given.features["image"] = SimpleNamespace()
    return given


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            rows([0], image="img"),
            r"columns 'img' \(Image\), 'label' \(SimpleNamespace\); expected 'image' \(Image\) and 'label': use",
        ),
        (
            text_column(),
            r"the columns 'image' \(SimpleNamespace\), .*: use rename_column or cast_column, then",
        ),
        (rows([0, -1, -1]), r"2 of 3 rows have no class in the column 'label', the first is row 1 with -1; expected"),
        (rows([0.5], names=None), r"1 of 1 rows have no class in the column 'label', the first is row 0 with 0\.5"),
        (rows(["a", 1], names=None), r"expected ClassLabel, whole numbers or text for every row"),
        (OSError("damaged\nfile"), r"cannot be loaded by datasets: damaged file"),
    ],
)
def test_what_cannot_be_used(saved, content, text):
    data = saved(content if isinstance(content, Exception) else {"train": content})
    with pytest.raises(ValueError, match=text) as caught:
        open_split(data, "train")
    assert "\n" not in str(caught.value)


def test_without_the_library(saved, monkeypatch, capsys):
    data = saved({})
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert main(["data", "check", "--data-dir", str(data)]) == 1
    error = capsys.readouterr().err
    assert "needs the package datasets" in error
    assert error.rstrip().endswith("pip install datasets")

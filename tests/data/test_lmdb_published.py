"""Databases in the old published form, and their text files of labels."""

import io

import lmdb
import numpy as np
import pytest
from PIL import Image

from globalvit.data.classification.dataset import open_split

NAMES = {"n1/x_1.JPEG": 0, "n1/x_2.JPEG": 0, "n2/y_1.JPEG": 1}


def image(number):
    stream = io.BytesIO()
    Image.new("RGB", (12, 10), (number * 40, 100, 200)).save(stream, "JPEG", quality=95)
    return stream.getvalue()


@pytest.fixture
def published(tmp_path):
    """Make `DATA/lmdb/SPLIT` with bare names as keys, and a text of labels at `DATA/PLACE`; returns `DATA/lmdb`."""

    def make(labels, place="meta/train.txt", keys=None, text=None, split="train"):
        root = tmp_path / "lmdb" / split
        root.mkdir(parents=True)
        keys = [name.split("/")[-1] for name in labels] if keys is None else keys
        with lmdb.open(str(root)) as env, env.begin(write=True) as transaction:
            for number, key in enumerate(keys):
                transaction.put(key.encode(), image(number))
            transaction.put(b"total", str(len(keys)).encode())
        if place:
            (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
            lines = "".join(f"{name} {label}\n" for name, label in labels.items())
            (tmp_path / place).write_text(lines if text is None else text)
        return tmp_path / "lmdb"

    return make


@pytest.mark.parametrize("place", ["meta/train.txt", "lmdb/meta/train.txt", "lmdb/train.txt"])
def test_images_and_labels_come_together(published, place):
    source = open_split(published(NAMES, place), "train")
    assert source.classes == ("n1", "n2")
    assert [source.label(index) for index in range(len(source))] == [0, 0, 1]
    assert source.name(2).endswith("lmdb/train/y_1.JPEG")
    for number in range(3):
        expected = Image.open(io.BytesIO(image(number)))
        assert np.array_equal(source.read(number), expected)


def test_keys_may_lack_the_ending(published):
    source = open_split(published(NAMES, keys=["x_1", "x_2", "y_1"]), "train")
    assert source.name(2).endswith("lmdb/train/y_1")
    assert source.read(2).size == (12, 10)


def test_given_classes_decide_the_labels(published):
    source = open_split(published(NAMES), "train", ("n2", "n1"))
    assert [source.label(index) for index in range(3)] == [1, 1, 0]
    with pytest.raises(ValueError, match=r"of .*train are not the 2 expected: unexpected 'n2'; missing 'n3'"):
        open_split(source.root.parent, "train", ("n1", "n3"))


def test_names_without_folders_take_the_classes_expected(published):
    data = published({"v_1.JPEG": 1, "v_2.JPEG": 0}, "meta/val.txt", split="val")
    assert open_split(data, "val").classes == ("0", "1")
    source = open_split(data, "val", ("cat", "dog"))
    assert source.classes == ("cat", "dog")
    assert [source.label(index) for index in range(2)] == [1, 0]
    with pytest.raises(ValueError, match=r"val\.txt has labels 0 … 1, but 3 classes are expected"):
        open_split(data, "val", ("cat", "dog", "eel"))


def test_a_missing_text_names_the_places(published, tmp_path):
    text = (
        rf"old published form, whose labels lie in a text file of lines `name label`, and there is none: looked for "
        rf"{tmp_path}/lmdb/meta/train\.txt, {tmp_path}/meta/train\.txt, {tmp_path}/lmdb/train\.txt"
    )
    with pytest.raises(FileNotFoundError, match=text):
        open_split(published(NAMES, place=None), "train")


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (
            "a.jpg 0\n\nb.jpg\n",
            r"train\.txt, line 3: expected `name label`, the label a number from 0 on; got 'b\.jpg'",
        ),
        ("a.jpg -1\n", r"line 1: expected `name label`.*got 'a\.jpg -1'"),
        ("\n", r"train\.txt is empty; expected lines of `name label`"),
        ("a.jpg 0\nb.jpg 3\n", r"has labels up to 3, but no image of label 1; every class needs images"),
        ("a.jpg 0\nc.jpg 0\n", r"train\.txt names 1 images that .*train does not hold: 'c\.jpg'"),
        (
            "x/a.jpg 0\ny/a.jpg 1\n",
            r"names several images 'a\.jpg', of which the old form of .* kept one; build a",
        ),
        ("a.jpg 0\n", r"train holds 1 images that .*train\.txt does not name: 'b\.jpg'"),
        ("x/a.jpg 0\nx/b.jpg 1\n", r"train\.txt: the class folders in its names and its labels do not belong together"),
        ("x/a.jpg 0\ny/b.jpg 0\n", r"train\.txt: the class folders in its names and its labels do not belong together"),
    ],
)
def test_a_text_that_does_not_fit_is_refused(published, lines, text):
    data = published({}, keys=["a.jpg", "b.jpg"], text=lines)
    with pytest.raises(ValueError, match=text):
        open_split(data, "train")

"""The built-in set."""

import numpy as np
import pytest

from globalvit.data.classification.dataset import open_split


def test_the_splits_have_their_sizes_and_share_nothing():
    train, val = open_split("digits", "train"), open_split("digits", "val")
    assert (len(train), len(val)) == (1437, 360)
    names = [source.name(index) for source in (train, val) for index in range(len(source))]
    assert sorted(int(name.removeprefix("digits/")) for name in names) == list(range(1797))


def test_every_class_is_held_out_alike():
    val = open_split("digits", "validation")
    counts = np.bincount([val.label(index) for index in range(len(val))])
    assert len(counts) == 10
    assert counts.min() >= 34
    assert counts.max() <= 38


def test_images_are_rgb_and_use_the_whole_range():
    train = open_split("digits", "train")
    images = np.stack([np.asarray(train.read(index)) for index in range(200)])
    assert images.shape == (200, 8, 8, 3)
    assert (images.min(), images.max()) == (0, 255)


def test_another_split_is_refused():
    with pytest.raises(ValueError, match="digits have no split 'dev'; there are 'train' and 'val'"):
        open_split("digits", "dev")


def test_other_classes_are_refused():
    with pytest.raises(ValueError, match=r"the classes of digits/val are not the 2 expected"):
        open_split("digits", "val", ("cat", "dog"))


def test_a_folder_of_that_name_is_pointed_out(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    open_split("digits", "train")
    assert "for the folder of that name write ./digits" in caplog.text

"""Names of splits, and images held out of the training split."""

import json
import pickle
import shutil

import pytest

from globalvit.data.classification.dataset import open_split
from globalvit.data.common.holdout import Subset, hold_out
from globalvit.data.common.splits import choose_split
from globalvit.train.config import load_config
from globalvit.train.inputs import open_held_out, open_splits

CHOSEN = [
    ("val", ["train", "val"], False, "val"),
    ("val", ["train", "valid", "test"], False, "valid"),
    ("val", ["Train", "Validation"], False, "Validation"),
    ("val", ["train", "test"], False, None),
    ("val", ["val", "valid"], True, "val"),
    ("valid", ["val", "valid"], True, "valid"),
    ("train", ["training", "test"], False, "training"),
    ("test", ["TEST", "val"], True, "TEST"),
    ("dev", ["Dev"], True, "Dev"),
    ("dev", ["train"], True, None),
]


@pytest.mark.parametrize(("split", "names", "exact", "expected"), CHOSEN)
def test_a_split_is_found_under_its_names(split, names, exact, expected):
    assert choose_split(split, names, "data", exact=exact) == expected


@pytest.mark.parametrize(
    ("split", "names", "text"),
    [
        ("val", ["val", "valid"], r"data has 2 splits that may be meant by 'val': 'val' and 'valid'; .* --val-split"),
        ("val", ["Val", "VAL"], r"'VAL' and 'Val'; expected one, so remove or rename the others"),
        ("train", ["Train", "training"], r"by 'train': 'Train' and 'training'; .*choose one with --train-split"),
    ],
)
def test_several_splits_of_one_meaning_are_refused(split, names, text):
    with pytest.raises(ValueError, match=text):
        choose_split(split, names, "data")


def test_training_says_which_of_two_it_leaves_out(caplog):
    assert choose_split("train", ["train", "training"], "data") == "train"
    assert "data: split 'train' is used, 'training' is not" in caplog.text


def test_each_class_gives_a_tenth_and_at_least_one(make_folder):
    source = open_split(make_folder({"train": {"a": 30, "b": 4, "c": 1}}), "train")
    held = hold_out(source, 0.1, seed=0)
    assert [source.label(index) for index in held] == [0, 0, 0, 1]
    assert held == hold_out(source, 0.1, seed=0)
    assert held != hold_out(source, 0.1, seed=1)


def test_the_choice_depends_on_names_only(make_folder, tmp_path):
    data = make_folder({"train": {"a": 20, "b": 20}})
    shutil.copytree(data, tmp_path / "other" / "place")
    names = []
    for root in (data, tmp_path / "other" / "place"):
        source = open_split(root, "train", ("b", "a"))
        names.append([source.name(index).removeprefix(str(root)) for index in hold_out(source, 0.2, seed=3)])
    assert names[0] == names[1]
    assert len(names[0]) == 8


def test_too_few_images_are_refused(make_folder):
    source = open_split(make_folder({"train": {"a": 1, "b": 1}}), "train")
    with pytest.raises(ValueError, match="2 training images are too few to hold some out for validation; add a folder"):
        hold_out(source, 0.1, seed=0)


class Shown:
    """Images with several classes each, as `hold_out` takes them."""

    root, classes = "data", tuple("abcdefgh")

    def __init__(self, *shown):
        self.shown = shown

    def __len__(self):
        return len(self.shown)

    def name(self, index):
        return f"data/{index}.jpg"

    def labels(self, index):
        return [self.classes.index(letter) for letter in self.shown[index]]


@pytest.mark.parametrize("seed", range(5))
def test_the_images_held_out_show_every_class_that_two_images_have(seed, caplog):
    source = Shown(*["ab"] * 30, "abc", "abc", "ad", "bd", "e", "ae", "af", "", "")
    held = hold_out(source, 0.1, seed)
    assert {letter for index in held for letter in source.shown[index]} == set("abcde")
    rest = {letter for index in range(len(source)) if index not in held for letter in source.shown[index]}
    assert rest == set("abcdef")
    assert len(held) <= 8
    assert "1 of 6 classes have too few images to hold one out, so validation has none of them: 'f'" in caplog.text


def test_no_class_loses_its_last_image_to_validation():
    source = Shown("ac", "bc", "a", "b")
    for seed in range(8):
        held = hold_out(source, 0.5, seed)
        rest = "".join(source.shown[index] for index in range(4) if index not in held)
        assert set(rest) == set("abc")


def test_a_subset_survives_pickling(make_folder):
    source = Subset(open_split(make_folder({"train": {"a": 3, "b": 2}}), "train"), [1, 4])
    copy = pickle.loads(pickle.dumps(source))
    assert (copy.classes, len(copy), copy.label(1), copy.name(1)) == (("a", "b"), 2, 1, source.name(1))
    assert copy.read(0).size == (24, 20)
    with pytest.raises(IndexError):
        copy.name(2)


def config(folder, model="gcvit_xxtiny", **flags):
    return load_config(flags={"model": model, "data_dir": str(folder), **flags})


def names_of(source):
    return [source.name(index) for index in range(len(source))]


def test_classifiers_never_validate_on_test(make_folder, caplog):
    data = make_folder({"train": {"a": 10, "b": 10}, "test": {"a": 2, "b": 2}})
    with caplog.at_level("INFO", logger="globalvit"):
        splits = open_splits(config(data))
    assert (len(splits.train), len(splits.val), splits.val_fraction) == (18, 2, 0.1)
    assert not set(names_of(splits.train)) & set(names_of(splits.val))
    assert all("/train/" in name for name in names_of(splits.val))
    assert "2 images of 'train' are held out for validation and 18 are left" in caplog.text
    assert "(--val-fraction 0.1, seed 0)" in caplog.text
    assert names_of(open_held_out(config(data, val_fraction=0.1), splits.train.classes)) == names_of(splits.val)


def test_a_named_test_split_is_taken_with_a_warning(make_folder, caplog):
    data = make_folder({"train": {"a": 2, "b": 2}, "test": {"a": 1, "b": 1}})
    splits = open_splits(config(data, val_split="test"))
    assert (len(splits.val), splits.val_fraction) == (2, 0.0)
    assert "--val-split test: the test split chooses the best checkpoint, so its score there will be too" in caplog.text


def test_images_may_be_held_out_beside_a_validation_split(make_folder):
    data = make_folder({"train": {"a": 10}, "val": {"a": 1}})
    splits = open_splits(config(data, val_fraction=0.3))
    assert (len(splits.train), len(splits.val)) == (7, 3)
    with pytest.raises(ValueError, match=r"expected --val-split or --val-fraction, got both \(val, 0\.3\)"):
        open_splits(config(data, val_fraction=0.3, val_split="val"))
    with pytest.raises(FileNotFoundError, match="no folder 'val'"):
        open_splits(config(make_folder({"../other/train": {"a": 2}}).parent / "other", val_fraction=0))


def test_segmenters_hold_images_out_too(make_masks):
    splits = open_splits(config(make_masks({"train": 20, "test": 2}), "gcvit_xxtiny_segformer"))
    assert (len(splits.train), len(splits.val)) == (18, 2)
    assert splits.val.label_name(0).endswith(splits.val.name(0)[-7:-4] + ".png")
    assert splits.val.read(0)[1].shape == (20, 24)


def test_detectors_hold_images_of_every_class_out(tmp_path):
    images, annotations = [], []
    (tmp_path / "annotations").mkdir()
    for number in range(20):
        images.append({"id": number, "file_name": f"{number}.png", "width": 30, "height": 20})
        if number < 12:
            box = {"bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
            annotations.append({"id": number, "image_id": number, "category_id": 1 + (number >= 10), **box})
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content))
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "0.png").touch()
    splits = open_splits(config(tmp_path, "gpvit_l1_retinanet"))
    # One of ten cats, one of two dogs, one of eight images without objects, which training leaves out.
    assert (len(splits.val), len(splits.train)) == (3, 10)
    labels = sorted(label for index in splits.val.indices for label in splits.val.source.labels(index))
    assert labels == [0, 1]
    assert splits.val.sizes.shape == (3, 2)

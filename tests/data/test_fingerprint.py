"""Fingerprints of data: equal wherever the same files lie, different when names, sizes or labels change."""

import json
import shutil

import pytest
from PIL import Image

from globalvit.data.classification.dataset import ImageFolder, open_split
from globalvit.data.common.holdout import Subset
from globalvit.data.detection.dataset import open_detection
from globalvit.data.segmentation.dataset import open_masks
from globalvit.data.storage.fingerprint import ANNOTATIONS, Fingerprint, difference, fingerprint
from globalvit.data.storage.lmdb_build import build


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "data"
    for split in ("train", "val"):
        for name, side in (("apple", 8), ("pear", 9)):
            (root / split / name).mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (side, 8 + number)).save(root / split / name / f"{number}.bmp")
    return root


def taken(root, **options):
    return fingerprint(ImageFolder(root / "train", **options))


def test_only_names_sizes_and_labels_count(folder, tmp_path):
    before = taken(folder)
    shutil.copytree(folder, tmp_path / "moved")
    assert taken(tmp_path / "moved") == before
    assert difference(before, taken(tmp_path / "moved")) == ""
    assert Fingerprint.from_dict(json.loads(json.dumps(before.to_dict()))) == before
    assert before.groups["apple"][0] == 3
    assert before.files == 6


def test_a_database_has_the_fingerprint_of_its_folder(folder, tmp_path):
    build(folder, tmp_path / "packed")
    packed = open_split(tmp_path / "packed", "train")
    assert fingerprint(packed) == taken(folder)
    held_out = [0, 2, 5]
    assert fingerprint(Subset(packed, held_out)) == fingerprint(Subset(ImageFolder(folder / "train"), held_out))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda apple: shutil.copy(apple / "0.bmp", apple / "9.bmp"), "7 files, +1 ('apple' +1 files, now 4)"),
        (lambda apple: (apple / "0.bmp").unlink(), "5 files, -1 ('apple' -1 files, now 2)"),
        (lambda apple: (apple / "0.bmp").rename(apple / "8.bmp"), "6 files ('apple' has other file names or sizes)"),
        (lambda apple: (apple / "0.bmp").write_bytes(b""), "6 files ('apple' has other file names or sizes)"),
        (
            lambda apple: (apple / "0.bmp").rename(apple.parent / "pear" / "7.bmp"),
            "6 files ('apple' -1 files, now 2, 'pear' +1 files, now 4)",
        ),
    ],
)
def test_a_change_is_named_by_class_and_count(folder, change, words):
    before = taken(folder)
    change(folder / "train" / "apple")
    assert difference(before, taken(folder)) == words


def test_the_order_of_the_labels_counts(folder):
    assert difference(taken(folder), taken(folder, classes=("pear", "apple"))) == "the same files in another order"


def test_built_in_images_have_one(folder):
    assert fingerprint(open_split("digits", "val")).files == 360
    assert fingerprint(open_masks("shapes", "val")).files == 100


def test_label_maps_and_annotations_count(tmp_path):
    for part in ("images/train", "annotations/train"):
        (tmp_path / part).mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "images/train/a.bmp")
    Image.new("L", (32, 32)).save(tmp_path / "annotations/train/a.png")
    masks = fingerprint(open_masks(tmp_path, "train", num_classes=2))
    Image.new("L", (32, 32), 1).resize((32, 64)).save(tmp_path / "annotations/train/a.png")
    assert difference(masks, fingerprint(open_masks(tmp_path, "train", num_classes=2)))
    shutil.copytree(tmp_path / "images/train", tmp_path / "train")
    content = {
        "images": [{"id": 1, "file_name": "a.bmp", "height": 32, "width": 32}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    table = tmp_path / "annotations" / "instances_train.json"
    table.write_text(json.dumps(content))
    before = fingerprint(open_detection(tmp_path, "train"))
    content["annotations"][0]["bbox"] = [2, 1, 9, 9]
    table.write_text(json.dumps(content))
    assert (
        difference(before, fingerprint(open_detection(tmp_path, "train")))
        == f"1 files ('{ANNOTATIONS}' has other content)"
    )


@pytest.mark.parametrize("values", [{}, [], {"files": -1, "order": "", "groups": {}}, {"files": 1, "groups": []}])
def test_what_is_no_fingerprint_is_refused(values):
    with pytest.raises(ValueError, match="expected files, order and groups"):
        Fingerprint.from_dict(values)

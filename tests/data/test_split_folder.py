"""Train and val made of unsplit folders."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from globalvit.cli.main import main
from globalvit.data.classification.dataset import open_split
from globalvit.data.detection.dataset import open_detection
from globalvit.data.segmentation.dataset import open_masks
from globalvit.data.split_folder import split_folder


@pytest.fixture
def photos(make_folder):
    """Ten apples, four pears and a single plum, without splits."""
    return make_folder({".": {"apple": 10, "pear": 4, "plum": 1}})


def test_class_folders_are_split_class_by_class(photos, tmp_path, capsys):
    before = sorted(photos.rglob("*"))
    words = ["data", "split", str(photos), str(tmp_path / "new"), "--fraction", "0.2"]
    assert main(words) == 0
    assert f"{tmp_path}/new: 12 images in train, 3 images in val (fraction 0.2, seed 0)" in capsys.readouterr().out
    train, val = (open_split(tmp_path / "new", split) for split in ("train", "val"))
    assert train.classes == ("apple", "pear", "plum")
    assert [val.label(index) for index in range(3)] == [0, 0, 1]
    assert sorted(photos.rglob("*")) == before
    assert main(words) == 1
    assert "new already exists and is not an empty folder; give a new one" in capsys.readouterr().err


def test_the_choice_is_the_seeds(photos, tmp_path):
    def chosen(name, seed):
        split_folder(photos, tmp_path / name, fraction=0.3, seed=seed)
        return sorted(path.name for path in (tmp_path / name / "val" / "apple").iterdir())

    assert chosen("a", 0) == chosen("b", 0)
    assert chosen("c", 1) != chosen("d", 2)


@pytest.mark.parametrize(("way", "is_same"), [("copy", False), ("link", True)])
def test_files_are_copied_or_linked(photos, tmp_path, way, is_same):
    plan = split_folder(photos, tmp_path / "new", fraction=0.5, seed=0, way=way)
    assert all(source.samefile(tmp_path / "new" / name) == is_same for source, name in plan.files)


def test_label_maps_follow_their_images(make_masks, tmp_path):
    data = make_masks({"all": 10})
    flat = tmp_path / "flat"
    shutil.copytree(data / "images" / "all", flat / "images")
    shutil.copytree(data / "annotations" / "all", flat / "masks")
    shutil.copy(data / "classes.json", flat)
    with pytest.raises(FileNotFoundError, match=r"To split its images and label maps: globalvit data split .*flat"):
        open_masks(flat, "train")
    assert split_folder(flat, tmp_path / "new", fraction=0.2, seed=0).counts == {"train": 8, "val": 2}
    source = open_masks(tmp_path / "new", "val")
    assert len(source) == 2
    assert source.read(0)[1].shape == (20, 24)


def test_label_maps_of_a_rare_class_are_in_both_splits(make_masks, tmp_path, caplog):
    data = make_masks({"all": 20}, classes=2)
    for index in range(20):
        labels = np.zeros((20, 24, 3), np.uint8)
        labels[:3, :3] = (0, 0, 200) if index in (4, 11) else (0, 90, 0)
        Image.fromarray(labels).save(data / "annotations" / "all" / f"{index:03}.png")
    flat = tmp_path / "flat"
    shutil.copytree(data / "images" / "all", flat / "images")
    shutil.copytree(data / "annotations" / "all", flat / "masks")
    split_folder(flat, tmp_path / "blind", fraction=0.1, seed=0)
    assert "contain colors that no class file lists, so val is chosen regardless" in caplog.text
    colors = [("ground", [0, 0, 0]), ("grass", [0, 90, 0]), ("sky", [0, 0, 200])]
    (flat / "classes.json").write_text(json.dumps([{"name": name, "color": color} for name, color in colors]))
    split_folder(flat, tmp_path / "new", fraction=0.1, seed=0)
    for split in ("train", "val"):
        source = open_masks(tmp_path / "new", split)
        assert [2 in source.labels(index) for index in range(len(source))].count(True) == 1


def make_coco(root, names):
    content = {
        "info": {"description": "mine"},
        "images": [{"id": 7 + at, "file_name": name, "width": 30, "height": 20} for at, name in enumerate(names)],
        "annotations": [
            {"id": at, "image_id": 7 + at, "category_id": 3, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
            for at in range(len(names))
        ],
        "categories": [{"id": 3, "name": "cat"}],
    }
    (root / "images").mkdir(parents=True)
    (root / "instances.json").write_text(json.dumps(content))
    return root


def test_annotations_are_split_with_their_images(tmp_path):
    names = [f"part{at % 2}/{at}.jpg" for at in range(10)]
    root = make_coco(tmp_path / "coco", names)
    with pytest.raises(FileNotFoundError, match=r"images of .*instances.json, such as .*part0/0.jpg.* are neither in"):
        split_folder(root, tmp_path / "new", fraction=0.2, seed=0)
    for name in names:
        (root / "images" / name).parent.mkdir(exist_ok=True)
        (root / "images" / name).write_bytes(name.encode())
    assert split_folder(root, tmp_path / "new", fraction=0.2, seed=0).counts == {"train": 8, "val": 2}
    val = open_detection(tmp_path / "new", "val")
    assert len(val) == 2
    assert {Path(val.name(index)).parents[1] for index in range(2)} == {tmp_path / "new" / "val"}
    content = json.loads((tmp_path / "new" / "annotations" / "instances_train.json").read_text())
    assert content["info"] == {"description": "mine"}
    assert {row["image_id"] for row in content["annotations"]} == {row["id"] for row in content["images"]}


def test_paths_out_of_the_folder_are_refused(tmp_path):
    root = make_coco(tmp_path / "coco", ["../../secret.jpg"])
    with pytest.raises(
        ValueError, match=r"expected file_name to be a path below the image folder, got '../../secret.jpg'"
    ):
        split_folder(root, tmp_path / "new", fraction=0.5, seed=0)


@pytest.mark.parametrize(
    ("splits", "target", "message"),
    [
        (
            {"train": {"a": 2}},
            "new",
            "already has a split 'train'; to hold out images, train with --val-fraction",
        ),
        ({".": {"a": 1, "b": 1}}, "new", "2 training images are too few"),
        ({".": {"a": 0}}, "new", "no images in the class folders of"),
        ({".": {"a": 2}}, "data/new", "new is inside .*data, which must not change; give a folder outside it"),
        ({}, "new", "data folder .*data does not exist; give a folder of images to split"),
    ],
)
def test_what_cannot_be_split_is_refused(make_folder, tmp_path, splits, target, message):
    with pytest.raises((ValueError, OSError), match=message):
        split_folder(make_folder(splits), tmp_path / target, fraction=0.5, seed=0)


def test_numbers_out_of_range_are_one_line(capsys):
    assert main(["data", "split", "a", "b", "--fraction", "1"]) == 2
    assert "--fraction 1 must be more than 0 and less than 1" in capsys.readouterr().err
    assert main(["data", "split", "a"]) == 2
    assert "globalvit data split requires OUTPUT" in capsys.readouterr().err

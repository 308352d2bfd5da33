"""Images with objects as tar shards: the samples of every format, and what is said of shards that do not fit."""

import json
import pickle
import shutil
import tarfile

import numpy as np
import object_sets as sets
import pytest
from PIL import Image

from globalvit.cli.main import main
from globalvit.data.common.images import UnreadableImage
from globalvit.data.detection.checks import check_detection
from globalvit.data.detection.dataset import open_detection
from globalvit.data.storage.fingerprint import fingerprint
from globalvit.data.storage.shard_build import pack


def assert_equal(one, other):
    """Compare arrays, masks and values of two objects, part by part."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_equal(*pair)
    elif hasattr(one, "bitmap"):
        assert np.array_equal(one.bitmap(), other.bitmap())
    else:
        assert np.array_equal(one, other)


def assert_same(one, other):
    for name in ("classes", "category_ids", "has_masks", "dropped", "frame"):
        assert getattr(one, name) == getattr(other, name), name
    assert np.array_equal(one.sizes, other.sizes)
    for index in range(len(one)):
        (image, objects), (packed_image, packed) = one.read(index), other.read(index)
        assert np.array_equal(image, packed_image)
        parts = ("boxes", "labels", "masks", "is_crowd", "areas", "ids")
        assert_equal([getattr(objects, name) for name in parts], [getattr(packed, name) for name in parts])
        assert_equal(one.ground_truth(index), other.ground_truth(index))


@pytest.fixture
def packed(tmp_path):
    """A COCO set, and the same as shards."""
    sets.write_coco(tmp_path / "coco")
    pack(tmp_path / "coco", tmp_path / "shards")
    return tmp_path / "coco", tmp_path / "shards"


@pytest.mark.parametrize("name", sorted(sets.WITH_OUTLINES | sets.BOXES_ONLY))
def test_shards_give_what_every_format_gives(name, tmp_path):
    data, target = tmp_path / "data", tmp_path / "shards"
    (sets.WITH_OUTLINES | sets.BOXES_ONLY)[name](data)
    for split in pack(data, target):
        for options in ({}, {"with_empty": False}, {"crowd_as_instances": True}):
            one, other = (open_detection(root, split.split, **options) for root in (data, target))
            assert len(one) == len(other)
            assert_same(one, pickle.loads(pickle.dumps(other)))


def test_the_files_of_a_packed_set(packed):
    data, target = packed
    files = sorted(path.relative_to(target).as_posix() for path in target.rglob("*.*") if path.name[0] != ".")
    assert files == [
        "annotations/instances_train.json",
        "annotations/instances_val.json",
        "train/000000.tar",
        "val/000000.tar",
    ]
    given = data / "annotations" / "instances_train2017.json"
    assert (target / files[0]).read_bytes() == given.read_bytes()
    with tarfile.open(target / "train" / "000000.tar") as archive:
        assert archive.getnames()[:2] == ["000000000.png", "000000000.json"]
        assert json.load(archive.extractfile("000000000.json")) == {"file_name": "0.png", "image_id": 1}
    for split in ("train", "val"):
        assert fingerprint(open_detection(data, split)) == fingerprint(open_detection(target, split))


def test_crowds_run_lengths_and_turned_images(tmp_path, write, content):
    content["annotations"][1]["iscrowd"] = 1
    content["annotations"][0]["segmentation"] = {"size": [48, 64], "counts": [5 * 48, 20, 64 * 48 - 260]}
    data = shutil.copytree(write(content), tmp_path / "data")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (48, 64), (9, 0, 0)).save(data / "train" / "1.png", exif=exif)
    pack(data, tmp_path / "shards")
    one, other = open_detection(data, "train"), open_detection(tmp_path / "shards", "train")
    assert one.votes == other.votes
    assert sum(one.votes.values()) == 1
    assert_same(one, other)


def test_plain_tar_files_beside_annotations_of_coco(packed, tmp_path):
    data, _ = packed
    target = tmp_path / "plain"
    shutil.copytree(data / "annotations", target / "annotations")
    (target / "train2017").mkdir()
    with tarfile.open(target / "train2017" / "images.tar", "w") as archive:
        archive.add(data / "train2017", arcname=".")
    assert_same(open_detection(data, "train"), open_detection(target, "train"))
    with tarfile.open(target / "train2017" / "images.tar", "w") as archive:
        archive.add(data / "train2017" / "0.png", arcname="0.png")
    with pytest.raises(ValueError, match=r"3 of the 4 images of .* are in none of the 1 shards of .*'1\.png'; pack"):
        open_detection(target, "train")


def test_check_reads_the_shards(packed):
    _, target = packed
    report = check_detection(target)
    assert [(split.name, split.images, split.unreadable) for split in report.splits] == [("train", 4, 0), ("val", 2, 0)]
    assert not report.problems
    path = target / "annotations" / "instances_val.json"
    path.write_text(path.read_text().replace('"width": 60', '"width": 61'))
    kinds = {(problem.kind, problem.text.split(" has ")[0]) for problem in check_detection(target).problems}
    assert ("other size", f"{target / 'val' / '000000.tar'}, member '000000000.png'") in kinds


def test_a_damaged_image_is_named(tmp_path):
    sets.write_coco(tmp_path / "data")
    (tmp_path / "data" / "train2017" / "1.png").write_bytes(b"no image")
    pack(tmp_path / "data", tmp_path / "shards")
    with pytest.raises(UnreadableImage, match=r"000000\.tar, member '000000001\.png'"):
        open_detection(tmp_path / "shards", "train").read(1)


def test_the_command_packs_objects(packed, tmp_path, capsys):
    data, target = packed
    words = ["data", "pack", str(data)]
    assert main([*words, str(tmp_path / "out"), "--splits=val", "--format=coco"]) == 0
    assert len(open_detection(tmp_path / "out", "val")) == 2
    assert main([*words, str(tmp_path / "no"), "--splits=extra"]) == 1
    assert "no annotations of 'extra'" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "no"), "--format=yolo"]) == 1
    assert "does not hold data in the format yolo" in capsys.readouterr().err
    assert main(["data", "pack", str(target), str(tmp_path / "no")]) == 1
    assert "train is packed already; give the folder of images" in capsys.readouterr().err
    (data / "train2017" / "0.png").unlink()
    assert main([*words, str(tmp_path / "no")]) == 1
    assert "0.png" in capsys.readouterr().err

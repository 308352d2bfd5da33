"""The shapes as files: the same images, labels and objects as the built-in set has."""

import json

import numpy as np
import pytest

from globalvit.cli.main import main
from globalvit.data.built_in.shapes import ClassifyShapes, DetectShapes, SegmentShapes
from globalvit.data.built_in.shapes_files import CATEGORY_IDS, outline_of, write_shapes
from globalvit.data.classification.dataset import open_split
from globalvit.data.detection.dataset import open_detection
from globalvit.data.segmentation.dataset import open_masks

TOTALS = {"train": 7, "val": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("shapes") / "out"
    write_shapes(out, totals=TOTALS, side=64, seed=5)
    return out


@pytest.mark.parametrize("split", TOTALS)
def test_masks_read_back_are_those_drawn(folder, split):
    drawn, read = SegmentShapes(split, TOTALS[split], seed=5, side=64), open_masks(folder, split)
    assert (len(read), read.classes) == (TOTALS[split], drawn.classes)
    np.testing.assert_array_equal(read.palette, drawn.palette)
    for index in range(len(drawn)):
        (image, labels), (same_image, same_labels) = drawn.read(index), read.read(index)
        np.testing.assert_array_equal(image, same_image)
        np.testing.assert_array_equal(labels, same_labels)


@pytest.mark.parametrize("split", TOTALS)
def test_classes_read_back_are_those_drawn(folder, split):
    drawn, read = ClassifyShapes(split, TOTALS[split], seed=5, side=64), open_split(folder / "classify", split)
    assert (len(read), read.classes) == (TOTALS[split], drawn.classes)
    for index in range(len(read)):
        number = int(read.name(index)[-9:-4])
        assert read.label(index) == drawn.label(number)
        np.testing.assert_array_equal(read.read(index), drawn.read(number))


@pytest.mark.parametrize("split", TOTALS)
def test_objects_are_those_drawn_as_the_coco_tools_read_them(folder, split):
    from pycocotools import mask as tools

    coco = json.loads((folder / "annotations" / f"instances_{split}.json").read_text())
    assert [(one["id"], one["name"]) for one in coco["categories"]] == [(1, "circle"), (3, "square"), (7, "triangle")]
    drawn = DetectShapes(split, TOTALS[split], seed=5, side=64)
    assert [image["file_name"] for image in coco["images"]] == [
        f"{split}/{index:05}.png" for index in range(len(drawn))
    ]
    assert all((folder / "images" / image["file_name"]).is_file() for image in coco["images"])
    kinds = set()
    for index in range(len(drawn)):
        _, instances = drawn.read(index)
        found = [one for one in coco["annotations"] if one["image_id"] == index + 1]
        assert [CATEGORY_IDS.index(one["category_id"]) for one in found] == instances.labels.tolist()
        assert [one["id"] for one in found] == instances.ids.tolist()
        for one, box, mask in zip(found, instances.boxes, instances.masks, strict=True):
            left, top, width, height = one["bbox"]
            assert [left, top, left + width, top + height] == box.tolist()
            kinds.add(type(one["segmentation"]))
            packed = tools.merge(tools.frPyObjects(as_list(one["segmentation"]), 64, 64))
            expected = tools.encode(np.asfortranarray(mask.bitmap()))
            assert packed["counts"] == expected["counts"]
            assert one["area"] == tools.area(expected)
    assert split != "train" or kinds == {list, dict}


@pytest.mark.parametrize("split", TOTALS)
def test_objects_read_back_are_those_drawn(folder, split):
    drawn, read = DetectShapes(split, TOTALS[split], seed=5, side=64), open_detection(folder, split, need_masks=True)
    assert (read.classes, len(read)) == (drawn.classes, len(drawn))
    for index in range(len(drawn)):
        (image, wanted), (same_image, found) = drawn.read(index), read.read(index)
        np.testing.assert_array_equal(image, same_image)
        for name in ("boxes", "labels", "areas", "ids", "is_crowd"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
        for one, other in zip(found.masks, wanted.masks, strict=True):
            np.testing.assert_array_equal(one.bitmap(), other.bitmap())


def as_list(segmentation):
    return segmentation if isinstance(segmentation, list) else [segmentation]


def test_masks_with_gaps_have_no_outline():
    assert outline_of(np.array([[1, 0, 1]], np.uint8)) is None
    assert outline_of(np.array([[1], [0], [1]], np.uint8)) is None
    assert outline_of(np.array([[0, 1, 1], [0, 1, 1]], np.uint8)) == [1, 0, 1, 2, 3, 2, 3, 0]


def test_a_folder_that_holds_something_is_left_alone(folder, tmp_path):
    before = sorted(folder.rglob("*"))
    with pytest.raises(FileExistsError, match=r"holds something already; give a new or an empty folder"):
        write_shapes(folder, totals=TOTALS)
    assert sorted(folder.rglob("*")) == before
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="holds something"):
        write_shapes(tmp_path / "file")


def test_a_set_that_fails_leaves_nothing(tmp_path):
    def full():
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_shapes(tmp_path / "out", totals=TOTALS, on_image=full)
    assert not list(tmp_path.iterdir())


def test_the_command_names_what_to_do_next(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").mkdir()
    assert main(["data", "shapes", "shapes", "--train", "3", "--val", "2", "--size", "48"]) == 0
    out = capsys.readouterr().out
    assert "shapes: 3 train, 2 val images of 48 pixels. Try:" in out
    assert "--config shapes_segmentation --data-dir ./shapes\n" in out
    assert "--config shapes_detection --data-dir ./shapes\n" in out
    assert "--data-dir ./shapes/classify\n" in out
    assert len(open_masks("./shapes", "val")) == 2
    assert main(["data", "shapes", "shapes"]) == 1
    assert "shapes holds something already" in capsys.readouterr().err


def test_labels_and_objects_of_the_folder_are_checked(folder, tmp_path, capsys):
    assert (
        main(["data", "check", "--data-dir", str(folder), "--workers", "0", "--json", str(tmp_path / "found.json")])
        == 0
    )
    out = capsys.readouterr().out
    assert "label maps" in out
    assert "objects" in out
    assert "note: format: coco, COCO's JSON, annotations/instances_train.json" in out
    assert "no problems found" in out
    splits = json.loads((tmp_path / "found.json").read_text())["splits"]
    assert sorted((split["name"], split["classes"], split["images"]) for split in splits) == [
        ("train", 3, 7),
        ("train", 4, 7),
        ("val", 3, 3),
        ("val", 4, 3),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train", "0"], "--train 0 and --val 100 must be 1 or more"),
        (["--size", "16"], "--size 16 must be 32 to 4096"),
        (["--seed", "-1"], "--seed -1 0 or more"),
    ],
)
def test_numbers_out_of_range_are_bad_use(words, message, tmp_path, capsys):
    assert main(["data", "shapes", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err

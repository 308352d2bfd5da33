"""What `data check` says of data sets as a whole: splits, classes, label maps, objects; and how it is printed."""

import json

import numpy as np
import pytest
from PIL import Image

from globalvit.cli.main import main
from globalvit.data.classification.checks import check_folder
from globalvit.data.common.splits import NoSplitError
from globalvit.data.detection.checks import check_detection
from globalvit.data.detection.dataset import open_detection
from globalvit.data.segmentation.checks import check_masks


def texts(rows):
    return {row.kind: row.text for row in rows}


FOLDERS = {
    "two validation splits": (
        {"train": {"a": 1, "b": 1}, "val": {"a": 1, "b": 1}, "valid": {"a": 1, "b": 1}},
        "problems",
        "validation splits",
        "'val', 'valid' may both be meant; training refuses them: choose one with --val-split",
    ),
    "no validation split": (
        {"train": {"a": 1, "b": 1}, "test": {"a": 1, "b": 1}},
        "notes",
        "validation split",
        "no split is called val, valid or validation: training holds out a tenth of train (--val-fraction)",
    ),
    "a class that only val has": (
        {"train": {"a": 1, "b": 1}, "val": {"a": 1, "c": 1}},
        "problems",
        "other classes",
        "the classes of val are not the 2 expected: unexpected 'c'; missing 'b'; give every split the same class "
        "folders, those the model was trained on",
    ),
    "classes that val does not have": (
        {"train": {"a": 1, "b": 1, "c": 1}, "val": {"b": 1, "c": 0}},
        "notes",
        "missing classes",
        "val has no images of 2 of the 3 classes, so their recall cannot be measured: 'a', 'c'",
    ),
    "a single class": (
        {"train": {"a": 1}},
        "notes",
        "single class",
        "train has only the class 'a'; a classifier needs two",
    ),
    "classes that differ in case": (
        {"train": {"a": 1, "A": 1}},
        "notes",
        "similar classes",
        "class folders 'A', 'a' differ only in case; merge them if they are one class",
    ),
    "numbers twice": (
        {"train": {"1": 1, "01": 1}},
        "problems",
        "no classes",
        "{data}/train has class folders '01' and '1' of the same number, so their order is not known; rename or merge "
        "them",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_class_folders_are_judged_as_a_whole(make_folder, case):
    splits, where, kind, text = FOLDERS[case]
    data = make_folder(splits)
    report = check_folder(data)
    other = report.notes if where == "problems" else report.problems
    assert texts(getattr(report, where))[kind] == text.format(data=data)
    assert kind not in texts(other)


def test_nested_classes_are_asked_about_and_may_be_meant(make_folder):
    data = make_folder({"train": {"Fruit/Apple": 1, "Fruit/Pear": 1, "Milk/Oat": 1}, "val": {"Fruit/Pear": 1}})
    assert (
        "2 of 2 class folders ('Fruit', 'Milk') hold images only" in texts(check_folder(data).notes)["nested classes"]
    )
    notes = texts(check_folder(data, nested=True).notes)
    assert notes["classes"] == "train has 3: 'Fruit/Apple', 'Fruit/Pear', 'Milk/Oat'"
    assert "missing classes" in notes


def test_one_split_may_be_checked(make_folder, capsys):
    data = make_folder({"train": {"a": 2, "b": 2}, "valid": {"a": 1, "b": 1}})
    assert [split.name for split in check_folder(data, split="val").splits] == ["valid"]
    with pytest.raises(NoSplitError, match=r"no split 'test' in .*; it holds 'train', 'valid'"):
        check_folder(data, split="test")
    assert main(["data", "check", "--data-dir", str(data), "--split", "train"]) == 0
    assert "valid" not in capsys.readouterr().out


def test_a_folder_that_cannot_be_read_is_a_problem(make_folder, forbid_reading):
    data = make_folder({"train": {"a/more": 1, "b": 1}})
    forbid_reading("more")
    problems = texts(check_folder(data).problems)
    assert problems == {
        "unreadable folder": f"{data}/train/a/more cannot be read",
        "empty class": f"no images in {data}/train/a",
    }


@pytest.mark.parametrize(
    ("splits", "hint"),
    [
        ({"coco/annotations": {"x": 0}, "coco/train": {"a": 1}}, r"Did you mean .*/data/coco\?"),
        ({".": {"apple": 1, "pear": 1}}, "If these folders are classes, make the splits with: globalvit data split"),
    ],
)
def test_a_folder_without_splits_names_what_may_be_meant(make_folder, splits, hint):
    with pytest.raises(ValueError, match=r"holds no splits; expected .*/train/CLASS/IMAGE.jpg\. " + hint):
        check_folder(make_folder(splits))


def write_labels(data, split, number, values):
    Image.fromarray(np.asarray(values, np.uint8)).save(data / "annotations" / split / f"{number:03}.png")


FULL = np.zeros((20, 24), np.uint8)


@pytest.mark.parametrize(
    ("classes", "values", "where", "kind", "text"),
    [
        (3, [FULL + 255, FULL, FULL + 1], "notes", "ignored pixels", "33.3 % of the pixels of train are ignored"),
        (3, [FULL + 255, FULL], "notes", "ignored label maps", "every pixel is ignored in 1 of 2 label maps of train"),
        (3, [FULL + 255] * 2, "problems", "ignored pixels", "100.0 % of the pixels of train are ignored"),
        (3, [FULL, FULL + 2], "notes", "unused class", "train has no pixel of 'class 1'"),
        (1, [FULL, FULL], "notes", "single class", "train has only the class 'class 0'"),
        (2, [FULL, FULL + 255 * (FULL.cumsum(1) == 0)], "notes", "unused class", None),
    ],
)
def test_label_maps_are_judged_as_a_whole(make_masks, classes, values, where, kind, text):
    data = make_masks({"train": len(values)}, classes=classes)
    for number, labels in enumerate(values):
        write_labels(data, "train", number, labels)
    report = check_masks(data, workers=0)
    if text is None:
        # 0 and 255 are the two classes of this set.
        assert kind not in texts(report.notes)
        return
    assert texts(getattr(report, where))[kind] == text


def test_what_training_refuses_is_a_problem(make_masks):
    data = make_masks({"train": 2}, classes=3)
    for number in range(2):
        write_labels(data, "train", number, np.where(np.arange(24) < 9, 0, 255) + FULL)
    problems = texts(check_masks(data).problems)
    assert "hold only 0, 255, but there are 3 classes" in problems["wrong labels"]
    assert not check_masks(data, ignore_label=255).problems


def test_splits_that_mark_an_object_in_two_ways_are_a_problem(make_masks):
    data = make_masks({"train": 1, "val": 1}, classes=2)
    write_labels(data, "val", 0, np.where(np.arange(24) < 9, 0, 255) + FULL)
    text = texts(check_masks(data).problems)["wrong labels"]
    assert text.startswith(
        "val: the label maps hold 0, 255, but those of the training split do not hold only 0 and 255;"
    )


def test_a_wrong_label_does_not_hide_the_classes_beside_it(make_masks, capsys):
    data = make_masks({"train": 6}, classes=4)
    (data / "classes.json").write_text('["a", "b", "c"]')
    assert main(["data", "check", "--data-dir", str(data), "--workers", "0"]) == 1
    output = capsys.readouterr().out
    assert "unused class" not in output
    assert output.count("has label 3 but there are 3 classes") == 1
    assert "(and 5 more like it: " in output
    assert main(["data", "check", "--data-dir", str(data), "--workers", "0", "--ignore-label", "3"]) == 0


def box(number, image_id, bbox, **others):
    return {"id": number, "image_id": image_id, "category_id": 1, "bbox": bbox, "area": 9, "iscrowd": 0} | others


@pytest.fixture
def make_coco(tmp_path):
    """Write a training split of four images, 30 wide and 20 high, with these annotations."""

    def make(rows, head=""):
        (tmp_path / "annotations").mkdir()
        (tmp_path / "train").mkdir()
        images = [{"id": at, "file_name": f"{at}.png", "width": 30, "height": 20} for at in range(4)]
        for at in range(4):
            values = np.random.default_rng(at).integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(values).save(tmp_path / "train" / f"{at}.png")
        content = {"info": {"description": head}, "images": images, "annotations": rows}
        content["categories"] = [{"id": 1, "name": "cat"}]
        (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content))
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("rows", "where", "kind", "text"),
    [
        (
            [box(at, at, [2, 2, 9, 9], iscrowd=int(at < 3)) for at in range(4)],
            *("problems", "crowds", "3 of 4 annotations have iscrowd 1, so they are not learned: CVAT marks"),
        ),
        (
            [box(at, at, [0.2, 0.2, 0.3, 0.3]) for at in range(4)],
            *(
                "problems",
                "annotations",
                "annotation 0 (image 0, '0.png') has bbox [0.2, 0.2, 0.3, 0.3], and 4 of 4 boxes lie within 0 … 1: exp",
            ),
        ),
        (
            [box(at, at, [2, 2, 9, 9] if at else [2, 2, 35, 9]) for at in range(4)],
            *(
                "problems",
                "over the edge",
                "1 of 4 boxes reach beyond their images and are clipped; the first: annotation 0 (image 0, '0.png')",
            ),
        ),
        ([box(0, 0, [2, 2, 9, 9])], "notes", "tool", "train was written by Roboflow"),
        ([], "problems", "no objects", "train: the file holds no annotations"),
    ],
)
def test_objects_are_judged_as_a_whole(make_coco, rows, where, kind, text):
    report = check_detection(make_coco(rows, "exported with Roboflow"))
    assert text in texts(getattr(report, where))[kind]


def test_training_warns_of_boxes_that_cannot_be_in_pixels(make_coco, caplog):
    open_detection(make_coco([box(at, at, [2, 2, 0.3, 9]) for at in range(4)]), "train")
    assert "instances_train.json: 4 of 4 boxes are thinner than a pixel and are hardly learned; the" in caplog.text


def test_a_few_odd_objects_are_a_note(make_coco, caplog):
    rows = [box(at, at % 4, [2, 2, 9, 9]) for at in range(1, 40)] + [box(40, 0, [29, 2, 0.5, 19.5], iscrowd=1)]
    data = make_coco(rows)
    report, path = check_detection(data), data / "annotations" / "instances_train.json"
    assert not report.problems
    notes = texts(report.notes)
    assert notes["crowds"] == f"{path}: 1 of 40 annotations have iscrowd 1, so they are not learned"
    first = "the first: annotation 40 (image 0, '0.png') has bbox [29, 2, 0.5, 19.5] in an image of 30×20"
    assert notes["thin boxes"] == f"{path}: 1 of 40 boxes are thinner than a pixel and are hardly learned; {first}"
    assert notes["over the edge"] == f"{path}: 1 of 40 boxes reach beyond their images and are clipped; {first}"
    open_detection(data, "train")
    assert "boxes" not in caplog.text


def test_all_files_refused_is_no_crash(make_coco, capsys):
    data = make_coco([])
    for split in ("train", "val"):
        (data / "annotations" / f"instances_{split}.json").write_text("[]")
    assert main(["data", "check", "--data-dir", str(data), "--json", str(data / "found.json")]) == 1
    assert "(and 1 more like it: " in capsys.readouterr().out
    assert [row["kind"] for row in json.loads((data / "found.json").read_text())["problems"]] == ["annotations"] * 2


def test_annotations_beside_the_images_are_found(make_coco):
    data = make_coco([box(0, 0, [2, 2, 9, 9])])
    (data / "annotations" / "instances_train.json").rename(data / "train" / "_annotations.coco.json")
    report = check_detection(data)
    assert [(split.name, split.images) for split in report.splits] == [("train", 4)]
    assert not report.problems

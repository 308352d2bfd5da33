"""What `data check` finds in a COCO data set."""

import json

import numpy as np
import pytest
from PIL import Image

from globalvit.data.detection.checks import check_detection
from globalvit.data.detection.coco import annotation_files

CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 5, "name": "dog"}]


def annotation(number, image_id, category_id=1, **others):
    row = {"id": number, "image_id": image_id, "category_id": category_id, "bbox": [2, 2, 9, 9], "area": 81}
    return row | {"iscrowd": 0, "segmentation": [[2, 2, 11, 2, 11, 11, 2, 11]]} | others


@pytest.fixture
def make_sets(tmp_path):
    """Write COCO files with three different images each; `changes` of a split are parts of its file."""

    def make(**changes):
        (tmp_path / "annotations").mkdir()
        for number, split in enumerate(("train2017", "val2017")):
            ids = range(3 * number, 3 * number + 3)
            images = [{"id": at, "file_name": f"{at}.png", "height": 20, "width": 30} for at in ids]
            annotations = [annotation(1, ids[0]), annotation(2, ids[1], 5)]
            content = {"images": images, "annotations": annotations, "categories": CATEGORIES} | changes.get(split, {})
            (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
            (tmp_path / split).mkdir()
            for at in ids:
                values = np.random.default_rng(at).integers(0, 256, (20, 30, 3), dtype=np.uint8)
                Image.fromarray(values).save(tmp_path / split / f"{at}.png")
        return tmp_path

    return make


def found(report):
    return {problem.kind: problem.text for problem in report.problems}


def test_a_sound_set_has_no_problems(make_sets):
    seen = []
    report = check_detection(
        make_sets(), on_start=lambda total: seen.append(total), on_image=lambda: seen.append("one")
    )
    assert not report.problems
    assert seen == [6, *["one"] * 6]
    splits = [(split.name, split.classes, split.images) for split in report.splits]
    assert splits == [("train", 2, 3), ("val", 2, 3)]


def test_annotations_that_are_wrong_are_named(make_sets):
    rows = [annotation(1, 0, bbox=[5, 5, 0, 3]), annotation(2, 1, 5), annotation(3, 2, segmentation=[])]
    damaged = [annotation(1, 3), annotation(2, 4, 5, segmentation={"size": [20, 30], "counts": "c26"})]
    eels = {"categories": [*CATEGORIES, {"id": 9, "name": "eel"}]}
    data = make_sets(train2017={"annotations": rows}, val2017={"annotations": damaged} | eels)
    report = check_detection(data)
    problems = found(report)
    assert list(problems) == ["left out", "no mask", "damaged mask", "other classes"]
    assert problems["left out"].endswith("annotation 1 (image 0, '0.png'): its box [5, 5, 0, 3] has no area")
    assert problems["no mask"] == "train: 1 of 2 annotations have no mask, the first is 3"
    assert "4.png: annotation 2 has damaged run lengths" in problems["damaged mask"]
    assert "instances_val2017.json are not the 2 classes expected: unexpected 'eel'; give" in problems["other classes"]


def test_categories_that_are_missing_are_a_note_and_other_ids_a_problem(make_sets):
    data = make_sets(val2017={"annotations": [annotation(1, 3)], "categories": CATEGORIES[:1]})
    report = check_detection(data)
    text = "val does not list 1 of the 2 categories, so their AP cannot be measured: 'dog'"
    assert ([note.text for note in report.notes if note.kind == "missing classes"], report.problems) == ([text], [])
    path = data / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"categories": [{"id": 1, "name": "dog"}]}))
    assert "lists 1 of the 2 categories, and 'dog' has id 1, but 5 in" in found(check_detection(data))["other classes"]


def test_categories_of_other_ids_are_matched_by_name_with_a_note(make_sets):
    swapped = [{"id": 1, "name": "dog"}, {"id": 5, "name": "cat"}]
    report = check_detection(make_sets(val2017={"categories": swapped}))
    text = "val has other ids than the training split for 2 of 2 categories, such as 1 for 'dog', which is 5 there; "
    assert ([note.text.startswith(text) for note in report.notes if note.kind == "other ids"], report.problems) == (
        [True],
        [],
    )


@pytest.mark.parametrize(
    ("box", "is_found"),
    [([6.5, 6.5, 9, 9], True), ([2, 8, 9, 4], True), ([1, 1, 11, 11], False), ([2, 2, 9, 9], False)],
)
def test_boxes_that_are_elsewhere_than_their_polygons_are_named(make_sets, box, is_found):
    rows = [annotation(1, 0, bbox=box), annotation(2, 1, 5)]
    problems = found(check_detection(make_sets(train2017={"annotations": rows})))
    assert list(problems) == ["other outlines"] * is_found
    if is_found:
        assert (
            "1 of 2 boxes are elsewhere than their polygons; the first: annotation 1 (image 0"
            in problems["other outlines"]
        )
        assert "its polygons reach from 2, 2 to 11, 11; expected [x, y, width, height]" in problems["other outlines"]


def test_a_pipe_among_the_images_is_not_waited_for(make_sets, make_pipe):
    data = make_sets()
    (data / "train2017" / "0.png").unlink()
    make_pipe(data / "train2017" / "0.png")
    assert "0.png is a pipe (FIFO), expected a regular file" in found(check_detection(data))["unreadable"]


def test_images_that_are_wrong_are_named(make_sets):
    data = make_sets()
    (data / "train2017" / "0.png").write_bytes(b"")
    (data / "train2017" / "1.png").unlink()
    Image.new("RGB", (20, 30)).save(data / "train2017" / "2.png")
    (data / "val2017" / "4.png").write_bytes((data / "val2017" / "3.png").read_bytes())
    report = check_detection(data)
    kinds = [problem.kind for problem in report.problems]
    assert kinds == ["unreadable", "unreadable", "other size"]
    assert report.problems[2].text.startswith(f"{data}/train2017/2.png has 20×30 pixels, but {data}/annotations/")
    assert [split.unreadable for split in report.splits] == [2, 0]
    assert report.repeated == 1


def test_files_that_cannot_be_used_are_problems_and_the_rest_is_checked(make_sets):
    data = make_sets()
    (data / "annotations" / "instances_train2017.json").write_text("{")
    for at in (3, 4, 5):
        (data / "val2017" / f"{at}.png").unlink()
    problems = found(check_detection(data))
    assert "instances_train2017.json: this is not JSON" in problems["annotations"]
    assert "none of the 3 images of" in problems["no images"]


def test_the_same_image_in_two_splits(make_sets):
    data = make_sets()
    (data / "val2017" / "3.png").write_bytes((data / "train2017" / "0.png").read_bytes())
    (problem,) = check_detection(data).problems
    assert (problem.kind, problem.text) == ("leak", "the same image is in train and val")
    assert problem.files == (f"{data}/train2017/0.png", f"{data}/val2017/3.png")


def test_folders_without_annotations(tmp_path):
    assert annotation_files(tmp_path) == {}
    with pytest.raises(ValueError, match=r"holds no annotations; expected .*/annotations/instances_train\.json"):
        check_detection(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        check_detection(tmp_path / "gone")

"""COCO's files: what comes out of every form they take, and what is said of those that are broken."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as tools

from globalvit.data.common.images import UnreadableImage
from globalvit.data.detection.dataset import open_detection
from globalvit.data.detection.packed_masks import PackedMasks
from globalvit.metrics.coco_ap import CocoAP

# Ids with gaps, out of order in the file.
CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 90, "name": "eel"}]
SQUARE = [10.0, 5, 30, 5, 30, 20, 10, 20]


def make_image(number, name=None, height=40, width=60):
    return {"id": number, "file_name": name or f"{number:04}.png", "height": height, "width": width}


def annotation(number, image_id=1, category_id=18, bbox=(10, 5, 20, 15), **others):
    row = {"id": number, "image_id": image_id, "category_id": category_id, "bbox": list(bbox), "area": 300.0}
    return row | {"iscrowd": 0, "segmentation": [SQUARE]} | others


def content(annotations=None, images=None, categories=CATEGORIES):
    images = [make_image(1), make_image(2)] if images is None else images
    annotations = [annotation(1)] if annotations is None else annotations
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def make_coco(tmp_path):
    """Write a data set with one split, images and all, and return its folder."""

    def make(data, split="train", images="images", file=None):
        folder = tmp_path / "data"
        (folder / "annotations").mkdir(parents=True, exist_ok=True)
        text = data if isinstance(data, str) else json.dumps(data)
        (folder / "annotations" / (file or f"instances_{split}.json")).write_text(text)
        (folder / images).mkdir(parents=True, exist_ok=True)
        for row in data["images"] if isinstance(data, dict) else ():
            color = (row["id"] % 256, 0, 0)
            Image.new("RGB", (row["width"], row["height"]), color).save(folder / images / row["file_name"])
        return folder

    return make


def bitmap(*rectangles, size=(40, 60)):
    values = np.zeros(size, np.uint8)
    for left, top, right, bottom in rectangles:
        values[top:bottom, left:right] = 1
    return values


def test_every_form_of_a_mask(make_coco):
    crowd = tools.encode(np.asfortranarray(bitmap((0, 0, 9, 9))))
    plain = {"size": [40, 60], "counts": [80, 3, 2400 - 83]}
    rows = [
        annotation(5, image_id=2, segmentation=[SQUARE, [40, 2, 44, 2, 44, 8, 40, 8], [1, 1, 2, 2]]),
        annotation(7, image_id=1, segmentation=crowd | {"counts": crowd["counts"].decode()}, iscrowd=1),
        annotation(6, image_id=2, category_id=3, segmentation=plain, bbox=[2, 0, 1, 3], area=3),
    ]
    source = open_detection(make_coco(content(rows)), "train", need_masks=True)
    assert (source.classes, source.category_ids) == (("cat", "dog", "eel"), (3, 18, 90))
    image, instances = source.read(1)
    assert image.getpixel((0, 0)) == (2, 0, 0)
    assert (instances.ids.tolist(), instances.labels.tolist()) == ([5, 6], [1, 0])
    assert instances.boxes.tolist() == [[10, 5, 30, 20], [2, 0, 3, 3]]
    assert (instances.boxes.dtype, instances.areas.tolist()) == (np.float32, [300, 3])
    masks = [mask.bitmap() for mask in instances.masks]
    np.testing.assert_array_equal(masks[0], bitmap((10, 5, 30, 20), (40, 2, 44, 8)))
    np.testing.assert_array_equal(masks[1], bitmap((2, 0, 3, 3)))
    _, crowds = source.read(0)
    assert crowds.is_crowd.tolist() == [True]
    np.testing.assert_array_equal(crowds.masks[0].bitmap(), bitmap((0, 0, 9, 9)))


def test_polygons_are_rasterised_as_the_coco_tools_do(make_coco):
    random = np.random.default_rng(0)
    polygons = [random.uniform(-5, 65, 2 * points).round(2).tolist() for points in (3, 5, 9, 40)]
    rows = [annotation(number, segmentation=[polygon]) for number, polygon in enumerate(polygons, 1)]
    ground_truth = open_detection(make_coco(content(rows)), "train").ground_truth(0)
    for polygon, mask in zip(polygons, ground_truth["masks"], strict=True):
        assert mask["counts"] == tools.merge(tools.frPyObjects([polygon], 40, 60))["counts"]


def test_truth_and_metric_give_the_files_own_ids_back(make_coco):
    rows = [annotation(1, category_id=90, bbox=[1.37, 5.11, 70.03, 15.91]), annotation(2, image_id=2, category_id=3)]
    source = open_detection(make_coco(content(rows)), "train")
    metric = CocoAP(source.classes)
    for index in range(2):
        ground_truth = source.ground_truth(index)
        metric.update([dict(ground_truth) | {"scores": [0.5]}], [ground_truth])
    assert [(row["image_id"], row["category_id"]) for row in metric.results(source.category_ids)] == [(1, 90), (2, 3)]
    # The ground truth keeps what reaches over the edge; training does not.
    assert source.ground_truth(0)["boxes"].tolist() == [[1.37, 5.11, 1.37 + 70.03, 5.11 + 15.91]]
    assert source.read(0)[1].boxes[0, 2] == 60
    assert metric.compute()["ap_mask"] == pytest.approx(100)


def test_images_without_objects_are_kept_unless_told_otherwise(make_coco):
    data = content([annotation(1), annotation(2, 3, iscrowd=1)], [make_image(1), make_image(2), make_image(3)])
    folder = make_coco(data)
    source = open_detection(folder, "train")
    assert [len(source.read(index)[1]) for index in range(3)] == [1, 0, 1]
    assert source.ground_truth(1)["boxes"].shape == (0, 4)
    with_objects = open_detection(folder, "train", with_empty=False)
    assert [with_objects.name(index) for index in range(len(with_objects))] == [source.name(0)]


def test_a_set_with_boxes_only(make_coco):
    rows = [annotation(1), annotation(4, segmentation=[]), annotation(9, segmentation=None)]
    folder = make_coco(content(rows))
    source = open_detection(folder, "train")
    assert not source.has_masks
    assert source.read(0)[1].masks is None
    assert source.ground_truth(0)["masks"] is None
    message = (
        r"2 of 3 annotations of .*instances_train\.json have no mask, the first is annotation 4; this model learns"
    )
    with pytest.raises(ValueError, match=message):
        open_detection(folder, "train", need_masks=True)


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("instances_val2017.json", "val2017"),
        ("instances_val.json", "images/val"),
        ("instances_validation.json", "images"),
        ("instances_valid2017.json", "."),
    ],
)
def test_places_of_files(make_coco, file, images):
    folder = make_coco(content(), images=images, file=file)
    assert open_detection(folder, "val").read(0)[0].size == (60, 40)
    elsewhere = (folder / "annotations" / file).rename(folder / "mine.json")
    assert len(open_detection(folder, "val", annotations="mine.json")) == 2
    assert len(open_detection(folder, "val", annotations=elsewhere)) == 2


def test_labels_follow_the_classes_expected(make_coco):
    folder = make_coco(content())
    source = open_detection(folder, "train", classes=("eel", "dog", "cat"))
    assert source.category_ids == (90, 18, 3)
    assert source.read(0)[1].labels.tolist() == [1]
    message = r"are not the 3 classes expected: unexpected 'eel'; missing 'cow'; give every split the categories"
    with pytest.raises(ValueError, match=message):
        open_detection(folder, "train", classes=("dog", "cat", "cow"))


def test_a_file_may_list_fewer_categories(make_coco, caplog):
    folder = make_coco(content())
    source = open_detection(folder, "train", classes=("ape", "cat", "dog", "eel", "fox"))
    assert (source.category_ids, source.read(0)[1].labels.tolist()) == ((None, 3, 18, 90, None), [2])
    assert "does not list 2 of the 5 categories, so their AP cannot be measured: 'ape', 'fox'" in caplog.text
    seen = source.ground_truth(0)
    metric = CocoAP(source.classes)
    metric.update(
        [
            {key: np.repeat(seen[key], 2, 0) for key in ("boxes", "masks")}
            | {"labels": np.array([2, 0]), "scores": np.array([0.9, 0.8])}
        ],
        [seen],
    )
    assert [row["category_id"] for row in metric.results(source.category_ids)] == [18]
    assert [row["ap_box"] for row in metric.report()["per_class"]] == [None, None, pytest.approx(100), None, None]


def test_fewer_categories_must_have_the_ids_of_training(make_coco):
    folder, classes = make_coco(content()), ("ape", "cat", "dog", "eel")
    source = open_detection(folder, "train", classes=classes, category_ids=(1, 3, 18, 90))
    assert source.category_ids == (1, 3, 18, 90)
    message = r"lists 3 of the 4 categories, and 'dog' has id 18, but 2 in the training split; export both with one"
    with pytest.raises(ValueError, match=message):
        open_detection(folder, "train", classes=classes, category_ids=(1, 3, 2, 90))


def test_the_built_in_shapes():
    source = open_detection("shapes", "val", classes=("circle", "square", "triangle"))
    image, instances = source.read(3)
    ground_truth = source.ground_truth(3)
    assert source.sizes[3].tolist() == list(ground_truth["size"]) == [image.height, image.width]
    assert ground_truth["boxes"].tolist() == instances.boxes.tolist()
    metric = CocoAP(source.classes)
    masks = [mask.bitmap() for mask in instances.masks]
    metric.update([dict(ground_truth) | {"scores": [0.5] * len(masks), "masks": np.array(masks)}], [ground_truth])
    assert (source.has_masks, metric.compute()["ap_mask"]) == (True, pytest.approx(100))
    with pytest.raises(ValueError, match=r"the categories of shapes/val/0 are not the 1 classes expected: unexpected "):
        open_detection("shapes", "val", classes=("circle",))


def test_images_that_are_not_what_the_file_says_are_skipped_by_the_loader(make_coco):
    damaged = annotation(2, 3, segmentation={"size": [40, 60], "counts": "c26"})
    folder = make_coco(content([annotation(1), damaged], [make_image(1), make_image(2), make_image(3)]))
    Image.new("RGB", (50, 40)).save(folder / "images" / "0001.png")
    (folder / "images" / "0002.png").unlink()
    source = open_detection(folder, "train")
    with pytest.raises(
        UnreadableImage, match=r"0001\.png has 50×40 pixels, but .*train\.json says 60×40; its boxes are"
    ):
        source.read(0)
    with pytest.raises(FileNotFoundError, match=r"0002\.png"):
        source.read(1)
    with pytest.raises(UnreadableImage, match=r"annotation 2 has damaged run lengths: .*decoded 89 pixels but"):
        source.read(2)


def test_missing_files_are_told_with_what_was_looked_for(make_coco, tmp_path):
    folder = make_coco(content(), "val")
    message = (
        r"no annotations of 'train' in .* \(COCO's JSON, annotations/instances_val\.json\); it has 'val'; --train-split"
    )
    with pytest.raises(FileNotFoundError, match=message):
        open_detection(folder, "train")
    with pytest.raises(FileNotFoundError, match=r"no annotations of 'train' in .*; it holds no folders\. Expected"):
        open_detection(folder / "images", "train")
    with pytest.raises(FileNotFoundError, match=r"data folder .*gone does not exist"):
        open_detection(tmp_path / "gone", "train")
    for path in (folder / "images").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"none of the 2 images of .* looked for is there, such as '0001.png'"):
        open_detection(folder, "val")


def test_areas_that_are_not_stated_are_those_of_the_boxes(make_coco):
    row = annotation(1)
    del row["area"], row["iscrowd"]
    source = open_detection(make_coco(content([row])), "train")
    assert source.ground_truth(0)["areas"].tolist() == [300]
    assert source.ground_truth(0)["crowd"].tolist() == [False]


def test_sources_go_to_other_processes_whole(make_coco):
    source = open_detection(make_coco(content()), "train")
    other = pickle.loads(pickle.dumps(source))
    assert other.ground_truth(0)["masks"] == source.ground_truth(0)["masks"]
    assert other.classes == source.classes


@pytest.mark.parametrize("scale", [1.0, 1 / 3])
def test_packed_masks_come_back_exactly_and_take_little_room(scale):
    random = np.random.default_rng(0)
    polygons = [[(random.integers(0, 64000, 60) / 100 * scale).tolist() for _ in range(at % 3)] for at in range(500)]
    masks = [polygon or None for polygon in polygons] + [b"c26o?"]
    packed = PackedMasks(masks)
    assert packed.present.tolist() == [mask is not None for mask in masks]
    assert [packed[at] and [one.tolist() for one in packed[at]] for at in range(500)] == masks[:-1]
    assert packed[500] == b"c26o?"
    numbers = sum(len(one) for mask in polygons for one in mask)
    # COCO's two decimals fit into four bytes.
    assert len(pickle.dumps(packed)) < numbers * (4 if scale == 1 else 8) + 500 * 32 + 2000

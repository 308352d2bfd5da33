"""The forms that programs give COCO's files: each is read right, or refused in one line that names file and id."""

import copy
import logging

import numpy as np
import pytest
from pycocotools import mask as tools

from globalvit.cli.main import main
from globalvit.data.detection.checks import check_detection
from globalvit.data.detection.dataset import open_detection

HEIGHT, WIDTH = 48, 64
# x, y, width, height.
BOXES = ([6, 5, 24, 20], [9, 7, 30, 22], [30, 20, 20, 18], [12, 9, 40, 30])
CORNERS = [[x, y, x + w, y + h] for x, y, w, h in BOXES]


def outline(box):
    x, y, w, h = box
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def each(part, **values):
    """An edit that sets values in every row of a part; callables get the row."""

    def edit(content):
        for row in content[part]:
            for key, value in values.items():
                row[key] = value(row) if callable(value) else value

    return edit


def one(part, place=0, **values):
    """An edit that sets values in one row."""

    def edit(content):
        content[part][place].update(values)

    return edit


def without(part, key):
    """An edit that removes a key from the first row."""

    def edit(content):
        del content[part][0][key]

    return edit


def both(*edits):
    def edit(content):
        for one_edit in edits:
            one_edit(content)

    return edit


def replaced(**parts):
    def edit(content):
        content.update(parts)

    return edit


def run_lengths(row, compressed=False):
    x, y, w, h = row["bbox"]
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y : y + h, x : x + w] = 1
    if compressed:
        coded = tools.encode(np.asfortranarray(mask))
        return {"size": [HEIGHT, WIDTH], "counts": coded["counts"].decode()}
    flat = mask.ravel(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    return {"size": [HEIGHT, WIDTH], "counts": np.diff([0, *ends, flat.size]).tolist()}


def as_corners(row):
    return CORNERS[row["id"] - 11]


def as_parts(row):
    x, y, w, h = row["bbox"]
    return [x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT]


def text(key):
    return lambda row: str(row[key])


def decimal(key):
    return lambda row: float(row[key])


# Edits after which all is as in `document`: four objects with masks, boxes, labels and no crowd.
READ_RIGHT = {
    "as it is": lambda _: None,
    "iscrowd as text": each("annotations", iscrowd="0"),
    "iscrowd as a word": each("annotations", iscrowd="False"),
    "iscrowd as a boolean": each("annotations", iscrowd=False),
    "iscrowd as a decimal": each("annotations", iscrowd=0.0),
    "iscrowd null": each("annotations", iscrowd=None),
    "iscrowd missing": lambda content: [row.pop("iscrowd") for row in content["annotations"]],
    "area missing": lambda content: [row.pop("area") for row in content["annotations"]],
    "area null": each("annotations", area=None),
    "area as text": each("annotations", area=text("area")),
    "ids as text": both(each("annotations", id=text("id"), image_id=text("image_id")), each("images", id=text("id"))),
    "image ids as text in annotations only": each("annotations", image_id=text("image_id")),
    "image ids as decimals": each("annotations", image_id=decimal("image_id")),
    "category ids as text": each("annotations", category_id=text("category_id")),
    "category ids as decimals": each("categories", id=decimal("id")),
    "sizes as decimals": each("images", width=64.0, height=48.0),
    "sizes as text": each("images", width="64", height="48"),
    "boxes as text": each("annotations", bbox=lambda row: list(map(str, row["bbox"]))),
    "boxes with decimals": each("annotations", bbox=lambda row: list(map(float, row["bbox"]))),
    "one flat polygon": each("annotations", segmentation=lambda row: outline(row["bbox"])),
    "run lengths": each("annotations", segmentation=run_lengths),
    "run lengths as decimals": each(
        "annotations",
        segmentation=lambda row: {"size": [48.0, 64.0], "counts": list(map(float, run_lengths(row)["counts"]))},
    ),
    "compressed run lengths": each("annotations", segmentation=lambda row: run_lengths(row, compressed=True)),
    "more polygons, one of two points": each(
        "annotations", segmentation=lambda row: [outline(row["bbox"]), [1, 1, 2, 2], []]
    ),
    "a slash and a dot in front": each("images", file_name=lambda row: f"./{row['id']}.png"),
    "backslashes": each("images", file_name=lambda row: rf"deep\{row['id']}.png"),
    "a backslash in a name": one("images", 3, file_name="odd\\name.png"),
    "the folder of the split": each("images", file_name=lambda row: f"train/{row['id']}.png"),
    "dots that stay in the folder": each("images", file_name=lambda row: f"../train/{row['id']}.png"),
    "annotations in another order": lambda content: content["annotations"].reverse(),
    "categories in another order": lambda content: content["categories"].reverse(),
    "extra keys": replaced(info={"year": 2020}, licenses=[], extra=None),
    "negative ids": both(
        each("images", id=lambda row: -row["id"]), each("annotations", image_id=lambda row: -row["image_id"])
    ),
}


@pytest.mark.parametrize("name", READ_RIGHT)
def test_what_can_only_mean_one_thing_is_read_right(write, name, content):
    READ_RIGHT[name](content)
    source = open_detection(write(content), "train", need_masks=True)
    assert source.classes == ("red", "blue")
    assert len(source) == 4
    for at in range(4):
        image, objects = source.read(at)
        x, y, w, h = BOXES[at]
        assert image.size == (WIDTH, HEIGHT)
        assert objects.boxes.tolist() == [CORNERS[at]]
        assert objects.labels.tolist() == [at % 2]
        assert objects.is_crowd.tolist() == [False]
        assert objects.areas.tolist() == [w * h]
        assert objects.masks[0].bitmap().sum() == w * h
        assert objects.masks[0].bitmap()[y : y + h, x : x + w].all()


@pytest.mark.parametrize("value", [1, 1.0, True, "1", "true", " True "])
def test_crowds_in_every_form(write, value, content):
    content["annotations"][2]["iscrowd"] = value
    source = open_detection(write(content), "train")
    assert [source.read(at)[1].is_crowd.tolist() for at in range(4)] == [[False], [False], [True], [False]]


OBJECT = "annotation 11 (image 1, '1.png')"
# Edit → what the error says.
REFUSED = {
    "parts of the image": (
        each("annotations", bbox=as_parts, segmentation=None),
        f"{OBJECT} has bbox [0.09375, 0.10416666666666667, 0.375, 0.4166666666666667], and 4 of 4 boxes lie within 0 …"
        " 1: expected pixels, got parts of the image; multiply x and width",
    ),
    "one part of the image": (
        both(lambda content: content["annotations"].__delitem__(slice(1, None)), one("annotations", bbox=[0, 0, 1, 1])),
        "has bbox [0, 0, 1, 1], and 1 of 1 boxes lie within 0 … 1",
    ),
    "outlines in parts of the image": (
        each("annotations", segmentation=[[0.1, 0.1, 0.4, 0.1, 0.4, 0.5]]),
        f"{OBJECT} has the polygons [[0.1, 0.1, 0.4, 0.1, 0.4, 0.5]], and all polygons lie within 0 … 1: expected pixe",
    ),
    "corners beyond the edge": (
        each("annotations", bbox=lambda row: [value + 8 for value in as_corners(row)], segmentation=None, area=None),
        "boxes reach beyond their images as x, y, width, height: expected [x, y, width, height], got corners [x1, y1, "
        "x2, y2]; write [",
    ),
    "corners, shown by their areas": (
        each("annotations", bbox=as_corners, segmentation=None),
        "got corners [x1, y1, x2, y2]; write [",
    ),
    "corners, shown by the outlines": (
        both(
            each("annotations", bbox=as_corners, area=None),
            lambda content: content["annotations"].__delitem__(slice(1, None)),
        ),
        f"{OBJECT} has bbox [6, 5, 30, 25] in an image of 64×48; the polygons lie in boxes from corner to corner: "
        "expected [x, y, width, height], got corners [x1, y1, x2, y2]; write [6, 5, 24, 20]",
    ),
    "iscrowd 2": (one("annotations", iscrowd=2), f"{OBJECT} has iscrowd 2; expected 0 or 1"),
    "iscrowd a word": (one("annotations", iscrowd="maybe"), f"{OBJECT} has iscrowd 'maybe'; expected 0 or 1"),
    "iscrowd a list": (one("annotations", iscrowd=[1]), f"{OBJECT} has iscrowd [1]; expected 0 or 1"),
    "area a word": (one("annotations", area="large"), f"{OBJECT} has area 'large'; expected a number of pixels, 0 or"),
    "area below 0": (one("annotations", area=-4), f"{OBJECT} has area -4; expected a number of pixels, 0 or more"),
    "area no number": (one("annotations", area=float("nan")), f"{OBJECT} has area nan; expected a number of pixels"),
    "a box of three": (one("annotations", bbox=[1, 2, 3]), f"{OBJECT} has bbox [1, 2, 3]; expected four numbers [x, y"),
    "a box of five": (
        one("annotations", bbox=[1, 2, 3, 4, 5]),
        "has bbox [1, 2, 3, 4, 5]; expected four numbers [x, y",
    ),
    "boxes of three everywhere": (each("annotations", bbox=[1, 2, 3]), f"{OBJECT} has bbox [1, 2, 3]; expected four"),
    "a box of nothing": (one("annotations", bbox=[]), f"{OBJECT} has bbox []; expected four numbers"),
    "boxes of points": (
        each("annotations", bbox=lambda row: [row["bbox"][:2], row["bbox"][2:]]),
        f"{OBJECT} has bbox [[6, 5], [24, 20]]; expected four numbers [x, y, width, height] in pixels",
    ),
    "a box of names": (one("annotations", bbox={"x": 1, "y": 2}), "has bbox {'x': 1, 'y': 2}; expected four numbers"),
    "a box of null": (one("annotations", bbox=[1, None, 3, 4]), "has bbox [1, None, 3, 4]; expected four numbers"),
    "a box with a word": (one("annotations", bbox=["a", 2, 3, 4]), "has bbox ['a', 2, 3, 4]; expected four numbers"),
    "a box with NaN": (one("annotations", bbox=[1, 2, float("nan"), 3]), "has bbox [1, 2, nan, 3]; expected four"),
    "a box with text NaN": (one("annotations", bbox=["nan", 2, 3, 4]), "has bbox ['nan', 2, 3, 4]; expected four"),
    "an endless box": (one("annotations", bbox=[1, 2, float("inf"), 3]), "has bbox [1, 2, inf, 3]; expected four"),
    "a box beyond everything": (one("annotations", bbox=[1, 2, 1e300, 3]), "has bbox [1, 2, 1e+300, 3]; expected four"),
    "an area beyond everything": (one("annotations", area=1e300), f"{OBJECT} has area 1e+300; expected a number of"),
    "a box with a flag": (one("annotations", bbox=[1, True, 3, 4]), "has bbox [1, True, 3, 4]; expected four numbers"),
    "a nested box": (
        one("annotations", bbox=[[[[1]]], 2, 3, 4]),
        "has bbox [[[[...]]], 2, 3, 4]; expected four",
    ),
    "text ids": (
        one("annotations", id="a1"),
        "annotation id 'a1' is not a whole number of at most 2⁵³; number the ann",
    ),
    "broken ids": (one("images", id=1.5), "image id 1.5 is not a whole number of at most 2⁵³; number the images"),
    "boolean ids": (
        one("categories", id=True),
        "category id True is not a whole number of at most 2⁵³; number the cat",
    ),
    "huge ids": (one("annotations", id=2**60), f"annotation id {2**60} is not a whole number of at most 2⁵³"),
    "images twice": (one("images", 1, id=1), "image id 1 appears twice; give each image an id of its own"),
    "images twice, once as text": (
        one("images", 1, id="1"),
        "image id 1 appears twice; give each image an id of its own",
    ),
    "annotations twice": (
        one("annotations", 1, id=11),
        "annotation id 11 appears twice; give each annotation an id of",
    ),
    "categories twice": (
        one("categories", 1, id=1),
        "category id 1 appears twice; give each category an id of its own",
    ),
    "names twice": (
        one("categories", 1, name="red"),
        "categories 1 and 2 have the same name 'red'; expected different names: rename one, or remove the one without",
    ),
    "an unknown category": (
        one("annotations", category_id=9),
        f"{OBJECT} has category_id 9, which is not among the categories 1, 2; add the category or remove the annotatio",
    ),
    "no known category": (one("annotations", category_id="red"), f"{OBJECT} has category_id 'red', which is not among"),
    "no category": (
        without("annotations", "category_id"),
        "annotations[0] (id 11) has no category_id; every one needs",
    ),
    "no box": (without("annotations", "bbox"), "annotations[0] (id 11) has no bbox; every one needs id, image_id, cat"),
    "no id": (
        without("annotations", "id"),
        "annotations[0] has no id; every one needs id, image_id, category_id, bbox",
    ),
    "no image": (without("annotations", "image_id"), "annotations[0] (id 11) has no image_id; every one needs id"),
    "no width": (without("images", "width"), "images[0] (id 1) has no width; every one needs id, file_name, height"),
    "no file name": (without("images", "file_name"), "images[0] (id 1) has no file_name; every one needs id"),
    "no name": (without("categories", "name"), "categories[0] (id 1) has no name; every one needs id, name"),
    "an empty category": (
        one("categories", name=" "),
        "category 1 has the name ' '; expected a name that is not empty",
    ),
    "a row that is none": (
        replaced(images=[5]),
        "images[0] is 5; expected an object with id, file_name, height, width",
    ),
    "no images": (replaced(images=[]), "its list of images is empty; expected one image or more"),
    "no categories": (replaced(categories=[]), "its list of categories is empty; expected one category or more"),
    "no annotations": (
        replaced(annotations=[]),
        "holds no objects, its list of annotations is empty; give a file with",
    ),
    "a part that is missing": (
        lambda content: content.pop("categories"),
        "this is JSON without categories, and not COCO",
    ),
    "a part that is null": (replaced(annotations=None), "this is JSON without annotations, and not COCO's; expected"),
    "a part that is not a list": (
        replaced(images={"1": {}}),
        "this is JSON without images, and not COCO's; expected an obj",
    ),
    "a width of 0": (
        one("images", width=0),
        "image 1 ('1.png') has height 48 and width 0; expected whole numbers of pix",
    ),
    "a broken height": (one("images", height=0.5), "image 1 ('1.png') has height 0.5 and width 64; expected whole"),
    "a width that is NaN": (one("images", width=float("nan")), "has height 48 and width nan; expected whole numbers"),
    "a height that is huge": (
        one("images", height=2**40),
        f"has height {2**40} and width 64; expected whole numbers of",
    ),
    "an address": (
        one("images", file_name="https://images.example.org/1.png"),
        "image 1 has file_name 'https://images.example.org/1.png', which is an address; expected a path below the fold",
    ),
    "a file address": (one("images", file_name="file:///data/1.png"), "which is an address; expected a path below"),
    "an absolute path": (
        one("images", file_name="/etc/passwd"),
        "image 1 has file_name '/etc/passwd', which leads out of ",
    ),
    "a path of Windows": (
        one("images", 1, file_name="C:\\data\\2.png"),
        "image 2 has file_name 'C:\\\\data\\\\2.png', wh",
    ),
    "a network path": (one("images", file_name="\\\\server\\1.png"), "which leads out of "),
    "dots": (
        one("images", file_name="../../secret.png"),
        "image 1 has file_name '../../secret.png', which leads out of ",
    ),
    "dots everywhere": (each("images", file_name="../../secret.png"), "'../../secret.png', which leads out of "),
    "dots with backslashes": (one("images", file_name="..\\..\\secret.png"), "which leads out of "),
    "dots behind a folder": (one("images", file_name="deep/../../../secret.png"), "which leads out of "),
    "an empty name": (one("images", file_name=" "), "image 1 has file_name ' ', which is empty; expected a path below"),
    "a number as name": (one("images", file_name=7), "image 1 has file_name 7, which is not a text; expected a path"),
    "a name with a zero": (
        one("images", file_name="a\0b"),
        "image 1 has file_name 'a\\x00b', which cannot be the name",
    ),
    "half a character": (
        one("images", file_name="\ud800.png"),
        "which has a character that no file name has; expected",
    ),
    "a long name": (one("images", file_name="a" * 300), "which cannot be the name of a file; expected a path below"),
    "an odd polygon": (
        one("annotations", segmentation=[[1, 2, 3, 4, 5, 6, 7]]),
        f"{OBJECT} has a polygon of 7 numbers; expected x and y of each point, an even number",
    ),
    "a polygon of words": (
        one("annotations", segmentation=[["a"] * 6]),
        f"{OBJECT} has the segmentation [['a', 'a', 'a', 'a', 'a', 'a']]; expected polygons [[x, y, x, y, x, y, …], …]",
    ),
    "a mask in words": (
        one("annotations", segmentation="c26"),
        f"{OBJECT} has the segmentation 'c26'; expected polygons",
    ),
    "a nested polygon": (one("annotations", segmentation=[[[1, 2], [3, 4], [5, 6], [7, 8], [9, 9], [1, 1]]]), OBJECT),
    "a far polygon": (
        one("annotations", segmentation=[[1e9] * 6]),
        f"{OBJECT} has a polygon that reaches to 1e+09; expected pixels, none beyond 100000",
    ),
    "a polygon with NaN": (
        one("annotations", segmentation=[[float("nan")] * 6]),
        f"{OBJECT} has a polygon that reaches to nan; expected pixels, none beyond 100000",
    ),
    "a mask of another size": (
        one("annotations", segmentation={"size": [64, 48], "counts": "c26"}),
        f"{OBJECT} has a mask of size [64, 48], but its image has [48, 64]; expected [height, width] of the image",
    ),
    "run lengths that do not fill it": (
        one("annotations", segmentation={"size": [48, 64], "counts": [4, 5]}),
        f"{OBJECT} has run lengths of 9 pixels for a mask of [48, 64]; they must fill it",
    ),
    "run lengths below 0": (
        one("annotations", segmentation={"size": [48, 64], "counts": [-4, 48 * 64 + 4]}),
        f"{OBJECT} has the segmentation {{'counts': [-4, 3076], 'size': [48, 64]}}; expected polygons",
    ),
    "run lengths of nothing": (
        one("annotations", segmentation={"size": [48, 64]}),
        f"{OBJECT} has the segmentation {{'size': [48, 64]}}; expected polygons",
    ),
    "crowds only": (
        each("annotations", iscrowd=1, segmentation=run_lengths),
        "holds no objects: all 4 annotations have iscrowd 1; CVAT marks every brush mask so; if they are single objects"
        ", "
        "--crowd-as-instances reads them as such; give a file",
    ),
    "images that the file does not list": (
        each("annotations", image_id=77),
        "holds no objects: all 4 annotations were left out, the first: annotation 11 is of image 77, which the file doe"
        "s not list",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_nobody_can_know_is_refused_in_one_line(write, refused, name, content):
    edit, message = REFUSED[name]
    edit(content)
    folder = write(content)
    assert message in refused(folder)
    # The check goes on and says the same.
    kinds = [problem.kind for problem in check_detection(folder).problems]
    assert kinds
    assert "RecursionError" not in str(kinds)


# Edit → what is said of the annotation that is left out.
LEFT_OUT = {
    "no width": ([3, 3, 0, 5], ": its box [3, 3, 0, 5] has no area"),
    "a height below 0": ([5, 5, 5, -2], ": its box [5, 5, 5, -2] has no area"),
    "outside": ([64, 3, 4, 4], ": its box [64, 3, 4, 4] lies outside the 64×48 pixels of the image"),
    "left of the image": ([-9, 3, 4, 4], ": its box [-9, 3, 4, 4] lies outside the 64×48 pixels of the image"),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_objects_that_cannot_be_seen_are_left_out_counted_and_named(write, caplog, name, content):
    box, reason = LEFT_OUT[name]
    content["annotations"][1]["bbox"] = box
    content["annotations"].append(copy.deepcopy(content["annotations"][0]) | {"id": 99, "image_id": 98})
    with caplog.at_level(logging.WARNING):
        source = open_detection(write(content), "train")
    (record,) = caplog.records
    assert record.getMessage().endswith(
        "instances_train.json: left out 2 annotations, which `globalvit data check` lists; the first: annotation 12 "
        f"(image 2, '2.png'){reason}"
    )
    assert [len(source.read(at)[1]) for at in range(4)] == [1, 0, 1, 1]
    assert source.dropped[1] == "annotation 99 is of image 98, which the file does not list"


def test_boxes_that_reach_over_the_edge_are_clipped_and_asked_about(write, caplog, content):
    content["annotations"][1]["bbox"] = [40, 30, 30, 25]
    content["annotations"][2] |= {"bbox": [5, 5, 62, 30], "segmentation": [outline([5, 5, 62, 30])]}
    with caplog.at_level(logging.WARNING):
        source = open_detection(write(content), "train")
    assert [source.read(at)[1].boxes[0].tolist()[2] for at in (1, 2)] == [64, 64]
    # 3 pixels are rounding; 6 are not.
    (record,) = caplog.records
    assert record.getMessage().endswith(
        "instances_train.json: 1 of 4 boxes reach beyond their images and are clipped; the first: annotation 12 "
        "(image 2, '2.png') has bbox [40, 30, 30, 25] in an image of 64×48; expected [x, y, width, height] in pixels"
    )


def test_boxes_thinner_than_a_pixel_are_asked_about(write, content):
    content["annotations"][3]["bbox"] = [0.2, 0.3, 0.4, 0.5]
    (problem,) = check_detection(write(content)).problems
    assert problem.kind == "thin boxes"
    assert (
        "1 of 4 boxes are thinner than a pixel and are hardly learned; the first: annotation 14 (image 4"
        in problem.text
    )


def test_crowds_are_asked_about_and_read_as_objects_when_told_so(write, caplog, content):
    for row in content["annotations"][1:]:
        row.update(iscrowd=1, segmentation=run_lengths(row))
    with caplog.at_level(logging.INFO):
        source = open_detection(write(content), "train", with_empty=False)
    assert len(source) == 1
    warning, counts = (record.getMessage() for record in caplog.records)
    assert (
        "instances_train.json: 3 of 4 annotations have iscrowd 1, so they are not learned: CVAT marks every" in warning
    )
    assert counts.endswith("instances_train.json (format coco): 1 images, 1 objects, 3 crowds")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        source = open_detection(write(content), "train", with_empty=False, crowd_as_instances=True)
    assert not caplog.records
    assert [source.read(at)[1].is_crowd.tolist() for at in range(4)] == [[False]] * 4


def test_the_check_asks_about_crowds_and_about_files_listed_twice(write, tmp_path, capsys, content):
    for row in content["annotations"]:
        row.update(iscrowd=1, segmentation=run_lengths(row))
    content["images"][1]["file_name"] = "1.png"
    folder = write(content)
    assert main(["data", "check", "--data-dir", str(folder), "--workers", "0"]) == 1
    printed = capsys.readouterr().out
    assert "crowds: " in printed
    assert (
        "4 of 4 annotations have iscrowd 1, so they are not learned: CVAT marks every brush mask so; if they" in printed
    )
    assert "images 1 and 2 have the same file_name '1.png' (1 such names), and each has only its own objects" in printed
    main(["data", "check", "--data-dir", str(folder), "--workers", "0", "--crowd-as-instances"])
    assert "crowds: " not in capsys.readouterr().out

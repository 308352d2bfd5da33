"""Annotations of images that EXIF turns: one rule for each set, found from the images that show it."""

import json

import numpy as np
import pytest
from PIL import Image

from globalvit.data.common.orientation import UPRIGHT, Sight, rule_of, shown_frame, votes_of, warn_of_frames
from globalvit.data.common.samples import Item
from globalvit.data.detection.checks import check_detection
from globalvit.data.detection.dataset import open_detection
from globalvit.data.detection.transforms import collate_ground_truth
from globalvit.data.segmentation.checks import check_masks
from globalvit.data.segmentation.dataset import open_masks
from globalvit.train.config import load_config
from globalvit.train.inputs import open_splits

ORIENTATIONS = range(1, 9)
HEIGHT, WIDTH = 20, 32
# Left, top, right and bottom of a bright object in the upright image.
OBJECT = (3, 2, 15, 9)


def save_turned(path, orientation, size=(HEIGHT, WIDTH)):
    """Write an image with the object, stored so that EXIF turns it upright; returns the labels of the stored pixels."""
    upright = np.zeros((*size, 3), np.uint8)
    left, top, right, bottom = OBJECT
    upright[top:bottom, left:right] = 200
    # Turns by 90° are undone by each other; all others by themselves.
    away = UPRIGHT[{6: 8, 8: 6}.get(orientation, orientation)]
    stored = away.pixels(upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(stored).save(path, exif=exif)
    return away.pixels(upright[..., 0] > 100).astype(np.uint8), (upright[..., 0] > 100).astype(np.uint8)


def box_of(labels):
    rows, columns = np.flatnonzero(labels.any(1)), np.flatnonzero(labels.any(0))
    return [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]


def make_coco(folder, images, segmentation=True):
    """A set of images, each as (orientation, frame of its annotations, size)."""
    rows, annotations = [], []
    for number, (orientation, frame, size) in enumerate(images, 1):
        stored, upright = save_turned(folder / "train" / f"{number}.png", orientation, size)
        labels = stored if frame == "stored" else upright
        x, y, w, h = box_of(labels)
        rows.append({"id": number, "file_name": f"{number}.png", "height": labels.shape[0], "width": labels.shape[1]})
        annotation = {"id": number, "image_id": number, "category_id": 1, "bbox": [x, y, w, h], "area": w * h}
        outline = [x, y, x + w, y, x + w, y + h, x, y + h]
        annotations.append(annotation | {"iscrowd": 0, "segmentation": [outline] if segmentation else []})
    (folder / "annotations").mkdir(exist_ok=True)
    content = {"images": rows, "annotations": annotations, "categories": [{"id": 1, "name": "red"}]}
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return folder


def scored_with(source, index):
    """What detections in an image are compared with."""
    return collate_ground_truth(source, [Item(index, (None, None))])["annotations"][0]


def check_upright(source):
    """Boxes and masks lie on the objects of the upright images, in training and in scoring."""
    for index in range(len(source)):
        image, objects = source.read(index)
        seen = np.asarray(image)[..., 0] > 100
        expected = np.zeros_like(seen)
        left, top, right, bottom = OBJECT
        expected[top:bottom, left:right] = True
        np.testing.assert_array_equal(seen, expected)
        assert objects.boxes.tolist() == [list(OBJECT)]
        np.testing.assert_array_equal(objects.masks[0].bitmap().astype(bool), expected)
        scored = scored_with(source, index)
        assert scored["boxes"].tolist() == [list(OBJECT)]
        assert scored["size"] == seen.shape == tuple(scored["masks"][0]["size"])


@pytest.mark.parametrize("frame", ["stored", "upright"])
def test_boxes_and_masks_follow_the_frame_that_the_file_shows(tmp_path, frame):
    images = [(orientation, frame, (HEIGHT, WIDTH)) for orientation in ORIENTATIONS]
    images += [(orientation, frame, (24, 24)) for orientation in ORIENTATIONS]
    source = open_detection(make_coco(tmp_path, images), "train", need_masks=True)
    check_upright(source)
    # Scoring alone finds the frame as well.
    check_upright(open_detection(tmp_path, "train", with_empty=False))
    assert source.frame == frame
    unread = open_detection(tmp_path, "train")
    assert [scored_with(unread, index)["boxes"].tolist() for index in range(16)] == [[list(OBJECT)]] * 16


def test_without_an_image_that_shows_it_annotations_are_for_the_upright_image_and_the_check_says_so(tmp_path):
    images = [(orientation, "upright", (HEIGHT, WIDTH)) for orientation in (1, 2, 3, 4)] + [(6, "upright", (24, 24))]
    check_upright(open_detection(make_coco(tmp_path, images), "train"))
    (problem,) = check_detection(tmp_path).problems
    assert problem.kind == "unclear frame"
    assert problem.text.startswith("EXIF turns or mirrors 4 images without changing their size, such as ")
    assert "no image turned by 90° shows whether the annotations of " in problem.text
    assert "upright is assumed" in problem.text
    assert [name.rsplit("/", 1)[1] for name in problem.files] == ["2.png", "3.png", "4.png", "5.png"]


def test_a_file_of_both_kinds_follows_most_of_its_images_and_the_check_says_so(tmp_path):
    size = (HEIGHT, WIDTH)
    images = [(6, "stored", size), (8, "stored", size), (5, "upright", size), (3, "stored", size)]
    check_upright(open_detection(make_coco(tmp_path, images), "train"))
    (problem,) = check_detection(tmp_path).problems
    assert problem.kind == "mixed frames"
    assert "are for the stored pixels of 2 images that EXIF turns and for the upright pixels of 1" in problem.text


def test_annotations_that_show_their_frame_are_no_problem(tmp_path):
    size = (HEIGHT, WIDTH)
    assert not check_detection(make_coco(tmp_path, [(6, "stored", size), (3, "stored", size)])).problems


def make_masks(folder, images):
    for number, (orientation, frame, size) in enumerate(images):
        stored, upright = save_turned(folder / "images" / "train" / f"{number:02}.png", orientation, size)
        path = folder / "annotations" / "train" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(stored if frame == "stored" else upright).save(path)
    (folder / "classes.json").write_text('["ground", "thing"]')
    return folder


@pytest.mark.parametrize("frame", ["stored", "upright"])
def test_label_maps_follow_the_frame_that_their_folder_shows(tmp_path, frame):
    images = [(orientation, frame, (HEIGHT, WIDTH)) for orientation in ORIENTATIONS]
    images += [(orientation, frame, (24, 24)) for orientation in ORIENTATIONS]
    source = open_masks(make_masks(tmp_path, images), "train")
    for index in range(len(source)):
        image, labels = source.read(index)
        np.testing.assert_array_equal(labels, np.asarray(image)[..., 0] > 100)
        assert box_of(labels)[:2] == list(OBJECT[:2])
    assert not check_masks(tmp_path).problems


def test_label_maps_whose_frame_nothing_shows_are_named(tmp_path):
    size = (HEIGHT, WIDTH)
    source = open_masks(make_masks(tmp_path, [(1, "upright", size), (3, "upright", size)]), "train")
    image, labels = source.read(1)
    np.testing.assert_array_equal(labels, np.asarray(image)[..., 0] > 100)
    (problem,) = check_masks(tmp_path).problems
    assert problem.kind == "unclear frame"
    assert "shows whether the label maps of train are for the stored or the upright pixels" in problem.text


def test_a_label_map_with_exif_data_of_its_own_is_turned_by_these(tmp_path):
    stored, _ = save_turned(tmp_path / "images" / "train" / "a.png", 3)
    exif = Image.Exif()
    exif[0x0112] = 3
    (tmp_path / "annotations" / "train").mkdir(parents=True)
    Image.fromarray(stored).save(tmp_path / "annotations" / "train" / "a.png", exif=exif)
    image, labels = open_masks(tmp_path, "train", num_classes=2).read(0)
    np.testing.assert_array_equal(labels, np.asarray(image)[..., 0] > 100)


def test_the_rule_is_that_of_most_images_and_upright_for_none():
    def rule(*frames):
        return rule_of(votes_of(frame and Sight("a.jpg", frame, False) for frame in frames))

    assert rule() == rule(None, "stored", "upright") == "upright"
    assert rule("stored", None, "upright", "stored") == "stored"
    assert shown_frame(6, (20, 30), (9, 9)) is None


SIZE = (HEIGHT, WIDTH)
UNCLEAR = "EXIF turns or mirrors 2 images without changing their size, such as "


@pytest.mark.parametrize(
    ("images", "text"),
    [
        ([(1, "upright", SIZE), (3, "upright", SIZE), (2, "upright", SIZE)], UNCLEAR),
        ([(3, "stored", SIZE), (6, "stored", SIZE), (8, "upright", SIZE)], "for the stored pixels of 1 images that"),
        ([(3, "stored", SIZE), (6, "stored", SIZE)], ""),
        ([(6, "stored", SIZE), (8, "upright", SIZE)], ""),
        ([(1, "upright", SIZE)], ""),
    ],
)
@pytest.mark.parametrize("is_coco", [True, False])
def test_images_of_an_unclear_frame_are_warned_of_in_one_line(tmp_path, images, text, is_coco, caplog):
    if is_coco:
        warn_of_frames(open_detection(make_coco(tmp_path, images), "train"))
    else:
        warn_of_frames(open_masks(make_masks(tmp_path, images), "train"))
    lines = [record.message for record in caplog.records if record.levelname == "WARNING" and "EXIF" in record.message]
    assert len(lines) == bool(text)
    assert all(text in line for line in lines)


def test_label_maps_with_exif_data_of_their_own_are_not_unclear(tmp_path, caplog):
    make_masks(tmp_path, [(3, "stored", SIZE)])
    path = tmp_path / "annotations" / "train" / "00.png"
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(path).save(path, exif=exif)
    warn_of_frames(open_masks(tmp_path, "train"))
    assert not caplog.text
    assert not check_masks(tmp_path).problems


def test_a_training_names_images_of_an_unclear_frame_once(tmp_path, caplog):
    make_masks(tmp_path, [(orientation, "upright", SIZE) for orientation in (1, 2, 3, 4)])
    splits = open_splits(load_config(flags={"model": "gcvit_xxtiny_segformer", "data_dir": str(tmp_path)}))
    assert splits.val_fraction
    assert caplog.text.count("EXIF turns or mirrors 3 images without changing their size, such as ") == 1

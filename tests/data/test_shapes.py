"""The built-in set of shapes."""

import pickle

import numpy as np
import pytest

from globalvit.data.built_in.shapes import KINDS, ClassifyShapes, DetectShapes, SegmentShapes, draw_scene
from globalvit.data.classification.dataset import open_split


def test_a_image_is_a_function_of_seed_split_and_number():
    keys = [(0, "train", 0), (0, "train", 1), (0, "val", 0), (1, "train", 0)]
    drawn = [draw_scene(split, index, seed=seed).image.tobytes() for seed, split, index in keys]
    again = [draw_scene(split, index, seed=seed).image.tobytes() for seed, split, index in reversed(keys)]
    assert drawn == again[::-1]
    assert len(set(drawn)) == len(keys)


@pytest.mark.parametrize("side", [64, 128, 200])
def test_labels_masks_and_boxes_say_the_same(side):
    for index in range(30):
        scene = draw_scene("train", index, side=side)
        assert scene.image.size == scene.labels.shape[::-1] == (side, side)
        labels_HW = np.zeros((side, side), np.uint8)
        for box, label, mask in zip(scene.instances.boxes, scene.instances.labels, scene.instances.masks, strict=True):
            bitmap = mask.bitmap()
            assert not labels_HW[bitmap > 0].any()
            labels_HW[bitmap > 0] = label + 1
            left, top, right, bottom = box.astype(int)
            assert bitmap[top:bottom, left:right].sum() == bitmap.sum()
            for edge in (bitmap[top, left:right], bitmap[bottom - 1, left:right]):
                assert edge.any()
            for edge in (bitmap[top:bottom, left], bitmap[top:bottom, right - 1]):
                assert edge.any()
        np.testing.assert_array_equal(labels_HW, scene.labels)
        np.testing.assert_array_equal(scene.instances.areas, [mask.area for mask in scene.instances.masks])


def test_there_are_one_to_four_shapes_of_the_stated_sizes_some_of_them_covered():
    scenes = [draw_scene("train", index).instances for index in range(200)]
    counts = np.bincount([len(scene) for scene in scenes], minlength=5)
    assert counts[0] == 0
    assert counts[1:].min() > 20
    assert len(counts) == 5
    boxes = np.concatenate([scene.boxes for scene in scenes])
    longer = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    assert longer.max() <= 56
    # Only shapes that are partly covered are smaller than any is drawn.
    assert 0 < (longer < 20).mean() < 0.05
    labels = np.bincount(np.concatenate([scene.labels for scene in scenes]))
    assert labels.min() > 0.25 * labels.sum()


def test_ids_are_those_of_no_other_image():
    ids = np.concatenate([draw_scene("val", index).instances.ids for index in range(50)])
    assert len(set(ids)) == len(ids)
    assert ids.min() > 0


@pytest.mark.parametrize(("view", "total"), [(SegmentShapes, 4), (DetectShapes, 3), (ClassifyShapes, 3)])
def test_every_view_shows_the_set(view, total):
    source = view("train")
    assert (len(source), len(view("val")), len(view("train", 7))) == (800, 100, 7)
    assert len(source.classes) == total
    assert source.name(3) == "shapes/train/3"
    assert pickle.loads(pickle.dumps(source)).scene(3).image == source.scene(3).image


def test_segmentation_has_the_background_as_a_class_and_detection_does_not():
    (image, labels_HW), (same, instances) = SegmentShapes("val").read(5), DetectShapes("val").read(5)
    assert image == same
    assert set(np.unique(labels_HW)) == {0, *(instances.labels + 1)}
    assert SegmentShapes.classes == ("background", *DetectShapes.classes)


def test_images_to_classify_show_one_shape_as_many_of_each():
    source = open_split("shapes", "train")
    assert source.classes == KINDS
    assert [source.label(index) for index in range(4)] == [0, 1, 2, 0]
    for index in range(6):
        assert source.scene(index).instances.labels.tolist() == [source.label(index)]
        assert source.read(index).size == (128, 128)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "shapes have no split 'dev'; there are 'train' and 'val'"),
        ({"split": "val", "total": 0}, "0 shapes images of 128 pixels with seed 0: expected 1 or more"),
        ({"split": "val", "side": 8}, "of 8 pixels with seed 0: expected 1 or more, of 32 pixels or more"),
    ],
)
def test_other_splits_and_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SegmentShapes(**arguments)

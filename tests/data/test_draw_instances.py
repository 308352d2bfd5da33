"""Boxes, masks and names over images."""

import numpy as np
import pytest
import torch
from PIL import Image

from globalvit.data.built_in.shapes import DetectShapes
from globalvit.data.common.loading import to_device, train_loader
from globalvit.data.detection.transforms import DetectTrainTransform, collate_targets
from globalvit.drawing.instances import draw_instances, instance_sheet
from globalvit.drawing.palette import default_palette
from globalvit.drawing.samples import MARGIN

NAMES = ("circle", "square", "triangle")
COLORS = default_palette(4)[1:].astype(int)
GRAY = Image.new("RGB", (400, 400), (100, 100, 100))
BOX = [[100.0, 100, 300, 300]]


def drawn(*arguments, **options):
    return np.asarray(draw_instances(*arguments, **options)).astype(int)


def has_color(values, color):
    return (values == np.array(color)).all(-1)


@pytest.mark.parametrize("label", range(3))
def test_a_box_has_its_class_color_and_a_name_above(label):
    values = drawn(GRAY, BOX, [label], NAMES)
    in_color = has_color(values, COLORS[label])
    assert in_color[200, 99:103].any()
    assert in_color[299:303, 200].any()
    assert in_color[88:99, 100:110].any(), "the name's ground stands on the box"
    assert has_color(values[120:280, 120:280], (100, 100, 100)).all()


def test_a_mask_is_blended_in_and_nothing_else_changes():
    mask = np.zeros((1, 400, 400), bool)
    mask[0, 150:250, 150:250] = True
    values = drawn(GRAY, BOX, [1], NAMES, masks=torch.from_numpy(mask))
    np.testing.assert_allclose(values[200, 200], 0.55 * 100 + 0.45 * COLORS[1], atol=1.01)
    assert has_color(values[110:140, 110:290], (100, 100, 100)).all()


def test_scores_and_numpy_arrays_are_taken_and_the_image_is_left_alone():
    plain = drawn(GRAY, np.array(BOX), np.array([0]), NAMES)
    scored = drawn(GRAY, np.array(BOX), np.array([0]), NAMES, scores=np.array([0.93]))
    assert (plain != scored).any()
    assert has_color(np.asarray(GRAY), (100, 100, 100)).all()
    assert (drawn(GRAY, np.array(BOX), np.array([0]), NAMES) == plain).all()


def test_nothing_found_draws_nothing():
    empty = torch.zeros(0, 4)
    assert (drawn(GRAY, empty, empty[:, 0], NAMES, scores=empty[:, 0]) == 100).all()


def test_small_images_are_enlarged_with_their_objects():
    mask = np.zeros((1, 60, 100), bool)
    mask[0, 10:30, 20:60] = True
    image = draw_instances(Image.new("RGB", (100, 60)), [[20, 10, 60, 30]], [2], NAMES, masks=mask)
    assert image.size == (400, 240)
    values = np.asarray(image)
    assert values[44:118, 84:236].any(-1).all()
    assert not values[124:, :].any()


def test_names_stay_within_the_image_and_do_not_cover_one_another():
    boxes = [[390.0, 0, 399, 40], [388, 0, 399, 42]]
    one, both = drawn(GRAY, boxes[:1], [0], NAMES), drawn(GRAY, boxes, [0, 1], NAMES)
    assert has_color(one[:12, :385], COLORS[0]).sum() > 50, "the name reaches to the left of its box"
    # The second name would cover the first and is left out.
    np.testing.assert_array_equal(both[:, :385], one[:, :385])


def test_objects_of_a_single_class_differ_and_have_no_name():
    boxes = [[20.0, 50, 80, 90], [120, 50, 180, 90]]
    values = drawn(GRAY, boxes, [0, 0], ("nucleus",))
    assert (values[:49] == 100).all()
    assert (values[70, 20] != values[70, 120]).any()
    assert (drawn(GRAY, boxes, [0, 0], ("nucleus",), scores=[0.5, 0.7])[:49] != 100).any()


@pytest.mark.parametrize("policy", ["detr", "jitter"])
def test_a_sheet_shows_the_images_of_a_batch(policy):
    transform = DetectTrainTransform(policy=policy, short_side=128, long_side=200, crop=128)
    loader = train_loader(DetectShapes("train", 8), transform, batch_size=5, seed=0, collate=collate_targets)
    batch = to_device(next(iter(loader)), transform, "cpu")
    sheet = instance_sheet(batch, NAMES, transform, columns=3)
    assert sheet.width % 3 == MARGIN % 3
    assert 2 * 200 < sheet.height < 2 * 340
    colors = {tuple(color) for color in COLORS.tolist()}
    assert colors & set(map(tuple, np.asarray(sheet).reshape(-1, 3).tolist()))
    without = {key: value for key, value in batch.items() if key != "masks"}
    assert instance_sheet(without, NAMES, transform, columns=3).size == sheet.size

"""Detection's augmentation: images, boxes and masks move alike; a sample is a function of (seed, epoch, index)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from globalvit.data.built_in.shapes import DetectShapes
from globalvit.data.common.loading import eval_loader, train_loader
from globalvit.data.common.plans import AspectPlan, TrainPlan
from globalvit.data.common.transforms import FitTransform
from globalvit.data.detection.instances import Instances, RunLengths
from globalvit.data.detection.placement import Placement
from globalvit.data.detection.transforms import (
    DetectEvalTransform,
    DetectTrainTransform,
    collate_ground_truth,
    collate_targets,
)

POLICIES = {
    "resize": DetectTrainTransform(short_side=96, long_side=200),
    "detr": DetectTrainTransform(policy="detr", short_side=128, long_side=200),
    "detr and crop": DetectTrainTransform(policy="detr", short_side=160, long_side=260, crop=120),
    "jitter": DetectTrainTransform(policy="jitter", crop=96),
}
SHAPES = DetectShapes("train", 40)
HUES = [(230, 30, 30), (30, 230, 30), (30, 30, 230)]


def painted(size, rectangles, **changed):
    """A black image with filled rectangles, each its own color, and the objects that they are."""
    height, width = size
    values = np.zeros((height, width, 3), np.uint8)
    bitmaps = np.zeros((len(rectangles), height, width), np.uint8)
    for number, (left, top, right, bottom) in enumerate(rectangles):
        values[top:bottom, left:right] = HUES[number % 3]
        bitmaps[number, top:bottom, left:right] = 1
    parts = {
        "boxes": np.array(rectangles, np.float32).reshape(-1, 4),
        "labels": np.arange(len(rectangles)) % 3,
        "masks": tuple(map(RunLengths.of, bitmaps)),
        "is_crowd": np.zeros(len(rectangles), bool),
        "areas": bitmaps.sum((1, 2)).astype(np.float32),
        "ids": np.arange(len(rectangles)),
    }
    return Image.fromarray(values), Instances(**parts | changed)


def extents(masks):
    """The boxes of masks (N, h, w)."""
    found = [(np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))) for mask in masks.numpy()]
    return np.array([(x[0], y[0], x[-1] + 1, y[-1] + 1) for x, y in found]).reshape(-1, 4)


@pytest.mark.parametrize("name", POLICIES)
def test_boxes_are_those_of_the_masks_and_masks_lie_on_their_objects(name):
    transform, seen = POLICIES[name], 0
    for index in range(40):
        sample = SHAPES.read(index)
        target = transform(sample, 0, 0, index)
        height, width = target.image.shape[1:]
        assert target.masks.shape == (len(target.boxes), height, width)
        scale = max(height / 128, width / 128, 1)
        # A pixel of the image is `scale` wide, and its center decides.
        np.testing.assert_allclose(target.boxes.numpy(), extents(target.masks), atol=1.01 + 0.5 * scale)
        assert (target.boxes >= 0).all()
        assert (target.boxes <= torch.tensor([width, height] * 2)).all()
        assert target.masks.any(2).any(1).all()
        seen += len(target.boxes)
    assert seen > 40


@given(
    height=st.integers(60, 200),
    width=st.integers(60, 200),
    corner=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    sides=st.tuples(st.integers(8, 20), st.integers(8, 20)),
    name=st.sampled_from(sorted(POLICIES)),
    epoch=st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_a_painted_rectangle_is_found_where_box_and_mask_say(height, width, corner, sides, name, epoch):
    rectangle = (*corner, corner[0] + sides[0], corner[1] + sides[1])
    target = POLICIES[name](painted((height, width), [rectangle]), 0, epoch, 0)
    is_red = (target.image[0] > 115) & (target.image[1] < 90) & (target.image[2] < 90)
    if not len(target.boxes):
        return
    left, top, right, bottom = target.boxes[0].round().int().tolist()
    mask = target.masks[0]
    # Borders are blurred by resampling.
    if right - left > 6 and bottom - top > 6:
        assert is_red[top + 2 : bottom - 2, left + 2 : right - 2].all()
        assert mask[top + 2 : bottom - 2, left + 2 : right - 2].all()
        is_red[max(top - 3, 0) : bottom + 3, max(left - 3, 0) : right + 3] = False
        assert not is_red.any()


@pytest.mark.parametrize("name", POLICIES)
def test_a_sample_is_a_function_of_seed_epoch_and_index(name):
    transform, sample = POLICIES[name], SHAPES.read(0)
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 2)]
    first = [transform(sample, *key) for key in keys]
    np.random.seed(5)
    again = [transform(sample, *key) for key in reversed(keys)][::-1]
    for one, other in zip(first, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert len({(tuple(one.image.shape), one.boxes.numpy().tobytes()) for one in first}) > 1


def drawn(transform, size, times=400):
    """Placements that a transform draws for images of a size."""
    random = np.random.default_rng(0)
    return [transform._placement(*size, random) for _ in range(times)]


def test_1x_resizes_and_flips():
    placements = drawn(DetectTrainTransform(), (480, 640))
    assert {(one.height, one.width) for one in placements} == {(800, 1067)}
    assert 150 < sum(one.is_flipped for one in placements) < 250
    assert {(one.height, one.width) for one in drawn(DetectTrainTransform(), (300, 1000), 5)} == {(400, 1333)}


def test_detr_takes_the_published_sides():
    placements = drawn(DetectTrainTransform(policy="detr"), (480, 640), 2000)
    whole = [one for one in placements if (one.left, one.top, one.right, one.bottom) == (0, 0, 640, 480)]
    assert {one.height for one in whole} == set(range(480, 801, 32))
    assert 850 < len(whole) < 1150
    for one in set(placements) - set(whole):
        assert 480 <= min(one.height, one.width) <= 800 or max(one.height, one.width) == 1333
        # 384 … 600 pixels, where the shorter side was 400, 500 or 600.
        assert 384 / 600 * 480 - 1 <= one.bottom - one.top <= 480
        assert 384 / 600 * 480 - 1 <= one.right - one.left <= 600 / 400 * 480 + 1
    cropped = drawn(DetectTrainTransform(policy="detr", crop=1024), (480, 900), 300)
    assert max(one.width for one in cropped) == 1024


def test_large_scale_jitter_fits_into_a_square_and_pads_with_the_mean():
    transform = DetectTrainTransform(policy="jitter", crop=64, mean=(0.5,) * 3, std=(0.5,) * 3)
    placements = drawn(transform, (50, 100))
    parts = [(one.right - one.left) / one.width * 64 / 100 for one in placements]
    assert min(parts) == pytest.approx(0.5, abs=0.02)
    assert max(parts) > 5
    assert max(one.width for one in placements) == 64
    targets = [transform(painted((50, 100), [(0, 0, 100, 50)]), 0, 0, index) for index in range(30)]
    for target in targets:
        assert target.image.shape == (3, 64, 64)
        assert target.masks.shape[1:] == (64, 64)
        if len(target.boxes):
            height = int(target.boxes[0, 3])
            assert target.image[:, height:].eq(128).all()
            assert not target.masks[0, height:].any()
    assert any((target.image == 128).any() for target in targets)


def test_crowds_thin_boxes_and_what_a_crop_leaves_out_are_no_targets():
    rectangles = [(0, 0, 30, 30), (40, 40, 60, 60), (50, 10, 51, 60), (2, 2, 8, 8)]
    crowd = np.array([False, True, False, False])
    sample = painted((64, 64), rectangles, is_crowd=crowd)
    half = DetectTrainTransform(short_side=32, long_side=32, hflip=0)
    assert half(sample, 0, 0, 0).boxes.tolist() == [[0, 0, 15, 15], [1, 1, 4, 4]]
    cropping = DetectTrainTransform(short_side=64, long_side=64, crop=32, hflip=0)
    counts = {len(cropping(sample, 0, 0, index).boxes) for index in range(60)}
    assert {0, 1, 2} <= counts
    for index in range(20):
        target = cropping(painted((64, 64), rectangles, masks=None), 0, 0, index)
        assert target.masks is None
        assert (target.boxes[:, 2:] - target.boxes[:, :2] >= 1).all()


def test_a_box_that_is_cut_is_drawn_close_around_what_is_left():
    triangle = np.tril(np.ones((64, 64), np.uint8))
    instances = painted((64, 64), [(0, 0, 64, 64)], masks=(RunLengths.of(triangle),))[1]
    crop = DetectTrainTransform(short_side=64, long_side=64, crop=40, hflip=0)
    targets = [crop((Image.new("RGB", (64, 64)), instances), 0, 0, index) for index in range(30)]
    boxes = np.concatenate([target.boxes.numpy() for target in targets])
    np.testing.assert_array_equal(boxes, np.concatenate([extents(target.masks) for target in targets]))
    assert (boxes[:, 2] - boxes[:, 0] < 40).any()


def test_placements_undo_nothing_and_compose():
    bitmap = np.random.default_rng(0).integers(0, 2, (20, 30), dtype=np.uint8)
    whole = Placement.whole(20, 30)
    np.testing.assert_array_equal(whole.bitmap(bitmap), bitmap)
    np.testing.assert_array_equal(whole.cropped(3, 4, 10, 12).bitmap(bitmap), bitmap[3:13, 4:16])
    np.testing.assert_array_equal(whole.flipped().bitmap(bitmap), bitmap[:, ::-1])
    doubled = np.kron(bitmap, np.ones((2, 2), np.uint8))
    chain = whole.resized(40, 60).cropped(5, 7, 21, 33)
    np.testing.assert_array_equal(chain.bitmap(bitmap), doubled[5:26, 7:40])
    assert not whole.bitmap(bitmap * 0).any()
    image = Image.fromarray(bitmap * 255)
    assert np.array_equal(np.asarray(whole.flipped().image(image, Image.Resampling.BILINEAR)), bitmap[:, ::-1] * 255)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "mosaic"}, "policy='mosaic' must be one of resize, detr, jitter"),
        ({"policy": "jitter"}, "policy='jitter' needs crop, the side of the square that images are fitted into"),
        ({"policy": "detr", "short_side": 48}, "short_side=48 must be 64 or more for policy='detr'"),
        ({"crop": 16}, "crop=16 must be 32 pixels or more"),
        ({"short_side": 900, "long_side": 800}, "short_side=900, long_side=800 must be 32 pixels or more, the smaller"),
        ({"hflip": 2}, "hflip=2 must be a probability"),
        ({"scale": (2, 1)}, "scale=2,1 must be the smaller number first"),
        ({"interpolation": "cubic"}, "interpolation='cubic' must be one of"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DetectTrainTransform(**options)


def test_batches_are_lists_of_what_the_detectors_take():
    loader = train_loader(SHAPES, POLICIES["detr"], batch_size=4, seed=0, collate=collate_targets, plan=AspectPlan)
    batch = next(iter(loader))
    assert batch["indices"].shape == (4,)
    for image, boxes, labels, masks in zip(
        *(batch[key] for key in ("images", "boxes", "labels", "masks")), strict=True
    ):
        assert (image.dtype, boxes.dtype, labels.dtype, masks.dtype) == (
            *(torch.uint8, torch.float32),
            *(torch.int64, torch.bool),
        )
        assert boxes.shape == (len(labels), 4)
        assert masks.shape == (len(labels), *image.shape[1:])


def test_evaluation_gives_resized_images_and_truths_in_the_images_own_pixels():
    fit = FitTransform(short_side=64, long_side=100)
    loader = eval_loader(SHAPES, fit, batch_size=3, make=DetectEvalTransform(fit), collate=collate_ground_truth)
    batch = next(iter(loader))
    assert [image.shape for image in batch["images"]] == [(3, 64, 64)] * 3
    assert batch["sizes"] == [(128, 128)] * 3
    assert [ground_truth["image_id"] for ground_truth in batch["annotations"]] == [0, 1, 2]
    assert batch["annotations"][1]["boxes"].tolist() == SHAPES.read(1)[1].boxes.tolist()


class Sizes:
    """Images of random shapes, of which only the sizes are asked for."""

    def __init__(self, total):
        self.sizes = np.random.default_rng(0).integers(300, 641, (total, 2))

    def __len__(self):
        return len(self.sizes)


def requests(plan, epoch=0, start=0):
    plan.epoch, plan.start_batch = epoch, start
    return [request.indices for request in plan]


@pytest.mark.parametrize("world", [1, 3])
def test_alike_shapes_share_a_batch_on_any_number_of_ranks(world):
    source = Sizes(1003)
    plans = [AspectPlan.over(source, 4, 0, rank, world) for rank in range(world)]
    batches = [requests(plan) for plan in plans]
    assert {len(one) for one in batches} == {1003 // (4 * world)}
    flat = [index for one in batches for indices in one for index in indices]
    assert len(flat) == len(set(flat)) == 1003 // (4 * world) * 4 * world
    assert requests(plans[-1], start=7) == batches[-1][7:]
    assert requests(plans[-1], epoch=1) != batches[-1]
    padding = [wasted(source, one) for plan in plans for one in requests(plan)]
    unsorted = [wasted(source, one) for one in requests(TrainPlan.over(source, 4, 0, 0, world))]
    assert np.mean(padding) < 0.3 * np.mean(unsorted)


def wasted(source, indices):
    """The part of a padded batch that is padding, the shorter sides being resized alike."""
    sizes = source.sizes[list(indices)]
    sizes = sizes / sizes.min(axis=1, keepdims=True)
    return 1 - sizes.prod(1).sum() / (len(sizes) * sizes.max(0).prod())


def test_partners_change_from_epoch_to_epoch():
    plan = AspectPlan.over(Sizes(1000), 2, 0, 0, 1)
    pairs = [{frozenset(pair) for pair in requests(plan, epoch)} for epoch in range(2)]
    assert len(pairs[0] & pairs[1]) < 50

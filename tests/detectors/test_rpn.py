"""Proposals and their losses on maps made by hand."""

import pytest
import torch

from globalvit.detectors.assign import Sampler
from globalvit.detectors.boxes import decode
from globalvit.detectors.objects import Objects
from globalvit.detectors.rpn import CASCADE, MASK_RCNN, RPN, Choice, RPNTraining

STRIDES = (4, 8, 16, 32, 64)
SIDE = 128


@pytest.fixture
def rpn():
    made = RPN((8,) * 5, STRIDES)
    made.init_weights()
    return made


def quiet(images=1, side=SIDE):
    """Logits that see nothing anywhere and deltas that move nothing."""
    grids = [-(-side // stride) for stride in STRIDES]
    return [torch.full((images, 3, n, n), -9.0) for n in grids], [torch.zeros(images, 12, n, n) for n in grids]


def objects(*boxes):
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    return Objects(boxes=boxes, labels=torch.zeros(len(boxes), dtype=torch.int64))


def test_the_likeliest_anchor_comes_first_and_knows_its_level(rpn):
    logits, deltas = quiet()
    logits[2][0, 1, 3, 4] = 5.0
    (found,) = rpn.propose(logits, deltas, [(SIDE, SIDE)])
    # The square of side 8 · 16 around (4 · 16, 3 · 16), cut to the image.
    assert found.boxes[0].tolist() == [0, 0, 128, 112]
    assert found.labels[0] == 2
    assert found.scores[0] == torch.tensor(5.0).sigmoid()


def test_proposals_are_cut_to_the_image_without_its_padding(rpn):
    (found,) = rpn.propose(*quiet(), [(100, 90)])
    assert found.boxes[:, 0::2].max() == 90
    assert found.boxes[:, 1::2].max() == 100


def test_boxes_without_area_are_dropped(rpn):
    logits, deltas = quiet()
    # Every anchor is moved by three of its sides to the right of an image of width 8: nothing of them is left inside.
    for level in deltas:
        level[:, 0::4] = 30.0
    (found,) = rpn.propose(logits, deltas, [(SIDE, 8)])
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)


def test_the_most_of_each_level_and_of_all_are_kept(rpn):
    logits, deltas = quiet()
    # Tiny boxes overlap nothing.
    for level in deltas:
        level[:, 2::4] = level[:, 3::4] = -3.5
    (few,) = rpn.propose(logits, deltas, [(SIDE, SIDE)], Choice(per_level=10, most=1000))
    assert torch.bincount(few.labels).tolist()[:4] == [10] * 4
    (fewer,) = rpn.propose(logits, deltas, [(SIDE, SIDE)], Choice(per_level=10, most=7))
    assert len(fewer) == 7


def test_boxes_are_suppressed_within_their_level_only(rpn):
    logits, deltas = quiet()
    # The same box on two levels, and twice on one of them.
    box = torch.tensor([[32.0, 32, 64, 64]])
    for level, (row, column) in ((0, (12, 12)), (0, (12, 13)), (1, (6, 6))):
        anchor = rpn.anchors.of_maps(logits)[level].view(logits[level].shape[2], -1, 3, 4)[row, column, 1]
        shift = (box[0, :2] + box[0, 2:] - anchor[:2] - anchor[2:]) / 2 / (anchor[2:] - anchor[:2])
        growth = ((box[0, 2:] - box[0, :2]) / (anchor[2:] - anchor[:2])).log()
        deltas[level][0, 4:8, row, column] = torch.cat([shift, growth])
        logits[level][0, 1, row, column] = 6.0
    (found,) = rpn.propose(logits, deltas, [(SIDE, SIDE)])
    assert sorted(found.labels[found.scores > 0.9].tolist()) == [0, 1]


def test_images_of_a_batch_do_not_mix(rpn):
    maps = [torch.randn(2, 8, 128 // stride, 128 // stride) for stride in STRIDES]
    sizes = [(128, 128), (100, 120)]
    with torch.no_grad():
        together = rpn.propose(*rpn(maps), sizes)
        for image, size in enumerate(sizes):
            (alone,) = rpn.propose(*rpn([one[image : image + 1] for one in maps]), [size])
            torch.testing.assert_close(together[image].boxes, alone.boxes, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("how", [MASK_RCNN, CASCADE])
def test_losses_are_small_for_the_truth_and_large_for_its_contrary(how):
    rpn = RPN((8,) * 5, STRIDES, how)
    logits, deltas = quiet()
    # The square anchor of the finest level around (60, 60), moved by an eighth of its side.
    logits[0][0, 1, 15, 15] = 9.0
    deltas[0][0, 4, 15, 15] = 0.125
    (box,) = decode(torch.tensor([[44.0, 44, 76, 76]]), torch.tensor([[0.125, 0, 0, 0]])).tolist()
    right = rpn.losses(logits, deltas, [objects(box)], [(SIDE, SIDE)])
    wrong = rpn.losses([-one for one in logits], deltas, [objects(box)], [(SIDE, SIDE)])
    assert right["loss_rpn_cls"].shape == right["loss_rpn_bbox"].shape == (5,)
    # Anchors a cell away are positive too, and are labeled negative here.
    assert right["loss_rpn_cls"].sum() < 0.2 < 8 < wrong["loss_rpn_cls"].sum()
    assert right["loss_rpn_bbox"].sum() < 0.01


@pytest.mark.parametrize(("beta", "expected"), [(0.0, 0.5), (1 / 9, 0.5 - 1 / 18)])
def test_the_box_loss_is_smooth_below_beta(beta, expected):
    everything = Sampler(number=10**6, positive_fraction=1.0)
    rpn = RPN((8,) * 5, STRIDES, RPNTraining(beta=beta, sampler=everything))
    logits, deltas = quiet()
    deltas[0][0, 4, 15, 15] = 0.5
    losses = rpn.losses(logits, deltas, [objects((44, 44, 76, 76))], [(SIDE, SIDE)], lambda _: torch.tensor(1.0))
    # The other positives, shifted by a cell, are off by an eighth of a side.
    others = rpn.losses(logits, quiet()[1], [objects((44, 44, 76, 76))], [(SIDE, SIDE)], lambda _: torch.tensor(1.0))
    torch.testing.assert_close((losses["loss_rpn_bbox"] - others["loss_rpn_bbox"])[0], torch.tensor(expected))


def test_the_cascade_learns_nothing_from_anchors_over_the_border():
    counts = []
    for how in (MASK_RCNN, CASCADE):
        everything = Sampler(number=10**6, positive_fraction=1.0)
        rpn = RPN((8,) * 5, STRIDES, RPNTraining(is_inside_only=how.is_inside_only, sampler=everything))
        rpn.losses(*quiet(), [objects()], [(SIDE, SIDE)], lambda count: counts.append(int(count)) or torch.tensor(1.0))
    assert counts[0] == 3 * (32**2 + 16**2 + 8**2 + 4**2 + 2**2)
    assert 0 < counts[1] < counts[0] / 2


def test_no_objects_are_a_lesson_too(rpn):
    maps = [torch.randn(2, 8, 64 // stride, 64 // stride) for stride in STRIDES]
    losses = rpn.losses(*rpn(maps), [objects(), objects((8, 8, 40, 40))], [(64, 64)] * 2)
    assert all(value.isfinite().all() for value in losses.values())
    nothing = rpn.losses(*rpn(maps), [objects(), objects()], [(64, 64)] * 2)
    assert nothing["loss_rpn_bbox"].sum() == 0
    sum(value.sum() for value in nothing.values()).backward()
    assert all(parameter.grad is not None for parameter in rpn.parameters())


def test_both_losses_are_divided_by_the_anchors_drawn_in_all_images(rpn):
    maps = [torch.randn(2, 8, 64 // stride, 64 // stride) for stride in STRIDES]
    asked = []
    rpn.losses(*rpn(maps), [objects(), objects()], [(64, 64)] * 2, lambda n: asked.append(int(n)) or torch.tensor(1.0))
    assert asked == [2 * 256]


def test_maps_must_be_alike():
    with pytest.raises(ValueError, match=r"maps of \(8, 16\) channels came; a detector's head serves maps of equal"):
        RPN((8, 16), (4, 8))

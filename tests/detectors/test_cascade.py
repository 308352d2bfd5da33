"""What the cascade does between its stages."""

import pytest
import torch

from globalvit.detectors.assign import Sampler
from globalvit.detectors.cascade import STAGES, CascadeHeads, best_classes, refine
from globalvit.detectors.objects import Objects

K = 3
STRIDES = (4, 8, 16, 32)


@pytest.fixture
def heads():
    made = CascadeHeads((8,) * 4, STRIDES, K, Sampler(number=16, positive_fraction=0.25)).eval()
    made.init_weights()
    return made


def pyramid(images=1, side=64):
    return [torch.randn(images, 8, side // stride, side // stride) for stride in STRIDES]


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32).view(-1, 4)


def found(*rows, label=1, side=64):
    given = boxes(*rows)
    masks = torch.ones(len(given), side, side, dtype=torch.bool)
    return Objects(boxes=given, labels=torch.full((len(given),), label), masks=masks)


def test_a_box_is_refined_with_its_best_class_never_the_background():
    logits = torch.tensor([[1.0, 3.0, 2.0, 9.0], [5.0, 0.0, 0.0, 4.0]])
    assert best_classes(logits).tolist() == [1, 0]


def test_refining_moves_by_the_labels_deltas_and_cuts_to_each_image():
    deltas = torch.zeros(2, K, 4)
    # One side to the right by class 1, at the first stage's std of 0.1; class 2 moves up.
    deltas[:, 1, 0] = 10.0
    deltas[:, 2, 1] = -10.0
    start = [boxes((10, 10, 20, 20)), boxes((10, 10, 20, 20))]
    first, second = refine(start, torch.tensor([1, 2]), deltas, STAGES[0], [(64, 25), (64, 64)])
    assert first.tolist() == [[20, 10, 25, 20]]
    assert second.tolist() == [[10, 0, 20, 10]]


def test_stds_shrink_and_are_published_literally():
    assert [stage.stds for stage in STAGES] == [
        (0.1, 0.1, 0.2, 0.2),
        (0.05, 0.05, 0.1, 0.1),
        (0.033, 0.033, 0.067, 0.067),
    ]
    assert [stage.overlap for stage in STAGES] == [0.5, 0.6, 0.7]


def test_stages_weigh_less_and_less(heads):
    # With the same weights and boxes that no stage moves, every stage loses the same before it is weighed.
    for parameter in heads.parameters():
        torch.nn.init.constant_(parameter, 0.0)
    proposals = [boxes((8, 8, 40, 40), (0, 0, 9, 9))]
    losses = heads.losses(pyramid(), proposals, [found((8, 8, 40, 40))], [(64, 64)])
    assert list(losses) == [f"s{i}.{name}" for i in range(3) for name in ("loss_cls", "loss_bbox", "loss_mask")]
    for name in ("loss_cls", "loss_mask"):
        first = losses[f"s0.{name}"]
        assert first > 0
        torch.testing.assert_close(losses[f"s1.{name}"], first * 0.5)
        torch.testing.assert_close(losses[f"s2.{name}"], first * 0.25)


def test_every_parameter_learns_in_every_stage(heads):
    proposals = [boxes((8, 8, 40, 40), (0, 0, 9, 9)), boxes()]
    objects = [found((8, 8, 40, 41)), found()]
    sum(heads.losses(pyramid(2), proposals, objects, [(64, 64)] * 2).values()).backward()
    for name, parameter in heads.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_nothing_to_learn_from_and_nothing_to_look_at(heads):
    losses = heads.losses(pyramid(), [boxes()], [found()], [(64, 64)])
    assert all(value == 0 for value in losses.values())
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in heads.parameters())
    (nothing,) = heads.detect(pyramid(), [boxes()], [(64, 64)], 0.05)
    assert len(nothing) == 0
    assert nothing.masks.shape == (0, 28, 28)


def test_images_of_a_batch_do_not_mix(heads):
    maps, proposals = pyramid(2), [boxes((8, 8, 40, 40)), boxes((0, 0, 9, 9), (20, 20, 60, 50))]
    with torch.no_grad():
        together = heads.detect(maps, proposals, [(64, 64)] * 2, 0.0)
        for image, one in enumerate(together):
            (alone,) = heads.detect([x[image : image + 1] for x in maps], [proposals[image]], [(64, 64)], 0.0)
            torch.testing.assert_close(one.boxes, alone.boxes, rtol=1e-5, atol=1e-4)
            torch.testing.assert_close(one.masks, alone.masks, rtol=1e-5, atol=1e-5)
            assert torch.equal(one.labels, alone.labels)

"""Arithmetic on boxes against values worked out by hand, and against torchvision's."""

from math import log

import pytest
import torch
from torchvision import ops

from globalvit.detectors import boxes
from globalvit.detectors.boxes import LARGEST_LOG_SCALE, clip, decode, encode, giou, has_area, iou

STDS = (0.1, 0.1, 0.2, 0.2)


def some_boxes(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    starts, sides = torch.rand(2, count, 2, generator=generator) * 90
    return torch.cat([starts, starts + sides + 1], 1)


@pytest.mark.parametrize("stds", [boxes.NO_STDS, STDS])
def test_decoding_undoes_encoding(stds):
    start, end = some_boxes(50), some_boxes(50, seed=1)
    torch.testing.assert_close(decode(start, encode(start, end, stds), stds), end, rtol=1e-4, atol=1e-3)


def test_deltas_are_shifts_in_sides_and_logarithms():
    (deltas,) = encode(torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[5.0, 0, 25, 20]]), STDS)
    torch.testing.assert_close(deltas, torch.tensor([10.0, 0, log(2) / 0.2, 0]))


@pytest.mark.parametrize("sign", [1, -1])
def test_growth_is_bounded_on_both_sides(sign):
    moved = decode(torch.tensor([[0.0, 0, 16, 16]]), torch.tensor([[0, 0, sign * 99.0, sign * 4.2]]))
    sides = moved[0, 2:] - moved[0, :2]
    limit = 16 * torch.tensor(sign * LARGEST_LOG_SCALE).exp()
    torch.testing.assert_close(sides, limit.expand(2))
    torch.testing.assert_close(moved[0, :2] + moved[0, 2:], torch.tensor([16.0, 16.0]))


def test_the_bound_is_on_the_growth_not_on_the_delta():
    # 20 · 0.2 = 4 is under ln(1000 / 16) = 4.135, so the std comes first.
    moved = decode(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[0.0, 0, 20, 20]]), STDS)
    torch.testing.assert_close(moved[0, 2:] - moved[0, :2], torch.tensor(4.0).exp().expand(2))


def test_deltas_of_many_classes_share_a_box():
    start, deltas = some_boxes(5), torch.randn(5, 3, 4)
    moved = decode(start[:, None], deltas)
    assert moved.shape == (5, 3, 4)
    torch.testing.assert_close(moved[:, 1], decode(start, deltas[:, 1]))


def test_clipping_keeps_x_to_the_width_and_y_to_the_height():
    clipped = clip(torch.tensor([[[-5.0, -6, 50, 60], [1, 2, 3, 4]]]), (30, 40))
    assert clipped.tolist() == [[[0, 0, 40, 30], [1, 2, 3, 4]]]


def test_boxes_without_area():
    flat = torch.tensor([[0.0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 1, 0], [3, 0, 2, 1]])
    assert has_area(flat).tolist() == [True, False, False, False]


def test_overlaps_equal_torchvisions():
    first, second = some_boxes(40), some_boxes(30, seed=1)
    torch.testing.assert_close(iou(first, second), ops.box_iou(first, second))
    torch.testing.assert_close(
        giou(first[:, None], second[None]), ops.generalized_box_iou(first, second), rtol=1e-5, atol=1e-6
    )


def test_boxes_without_area_overlap_nothing():
    flat = torch.tensor([[5.0, 5, 5, 5]])
    assert iou(flat, flat).item() == giou(flat, flat).item() == 0


def test_no_boxes_are_boxes():
    none = torch.zeros(0, 4)
    assert encode(none, none).shape == decode(none, none).shape == clip(none, (3, 3)).shape == (0, 4)
    assert iou(none, some_boxes(3)).shape == (0, 3)


def test_half_precision_deltas_move_boxes_in_full_precision():
    start = torch.tensor([[1000.25, 1000.25, 1016.5, 1016.5]])
    for dtype in (torch.bfloat16, torch.float16):
        moved = decode(start, torch.zeros(1, 4, dtype=dtype))
        assert moved.dtype == torch.float32
        torch.testing.assert_close(moved, start)

"""Anchors: published ones to the bit, their order, and the order in which maps are read."""

import pytest
import torch

from globalvit.detectors.anchors import Anchors, flatten

RPN = Anchors(strides=(4, 8, 16, 32, 64), scales=(8.0,))
RETINANET = Anchors(strides=(8, 16, 32, 64, 128), scales=tuple(4 * 2 ** (i / 3) for i in range(3)))


@pytest.mark.parametrize(
    ("anchors", "case", "first"),
    [(RPN, "gpvit_det_l1_maskrcnn", 12), (RETINANET, "gpvit_det_l1_retinanet", 27)],
)
def test_first_anchors_are_the_published_ones(golden, anchors, case, first):
    published = golden(case).arrays
    for level in range(5):
        ours = anchors.of_level(level, 4, 5)[:first].numpy()
        assert (ours == published[f"anchors{level}_first{first}"]).all(), level


def test_order_is_y_then_x_then_ratio_then_scale():
    anchors = Anchors(strides=(10,), scales=(1.0, 2.0), ratios=(1.0, 4.0))
    boxes = anchors.of_level(0, 2, 3)
    assert anchors.per_cell == 4
    assert boxes.shape == (24, 4)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert centers[::4].tolist() == [[0, 0], [10, 0], [20, 0], [0, 10], [10, 10], [20, 10]]
    assert (boxes[:4, 2:] - boxes[:4, :2]).tolist() == [[10, 10], [20, 20], [5, 20], [10, 40]]


def test_a_map_is_read_in_the_order_of_its_anchors():
    # Each number says where it stands: anchor, coordinate, row, column.
    numbers = torch.arange(2 * 3 * 4 * 2 * 5).view(2, 12, 2, 5)
    flat = flatten(numbers, 3)
    assert flat.shape == (2, 2 * 5 * 3, 4)
    row, column, anchor, coordinate = 1, 3, 2, 1
    assert flat[1, (row * 5 + column) * 3 + anchor, coordinate] == numbers[1, anchor * 4 + coordinate, row, column]


def test_maps_must_fit_the_strides():
    maps = [torch.zeros(1, 8, 4, 4), torch.zeros(1, 8, 2, 3)]
    assert [len(one) for one in Anchors(strides=(4, 8), scales=(1.0,)).of_maps(maps)] == [48, 18]
    with pytest.raises(
        ValueError, match=r"expected one map for each of the anchors' strides \(4, 8, 16, 32, 64\), got 2"
    ):
        RPN.of_maps(maps)

"""Padding, against numbers worked out by hand."""

from dataclasses import replace

import pytest

from globalvit.benchmark.networks import token_grids
from globalvit.benchmark.padded import grids, padded_share
from globalvit.build import create_model
from globalvit.models.variants import GCVIT, GPVIT


def test_nothing_is_padded_where_windows_divide_the_grids():
    of_tiny = grids(GCVIT["gcvit_tiny"], (224, 224))
    assert [grid.tokens for grid in of_tiny] == [grid.padded for grid in of_tiny]
    assert padded_share(of_tiny) == 0


def test_windows_of_7_pad_a_image_of_256_pixels():
    of_tiny = grids(GCVIT["gcvit_tiny"], (256, 256))
    assert [grid.tokens[0] for grid in of_tiny] == [64, 32, 16, 8]
    assert [grid.padded[0] for grid in of_tiny] == [70, 35, 28, 14]
    assert [grid.blocks for grid in of_tiny] == [3, 4, 19, 5]
    assert [round(grid.share, 4) for grid in of_tiny] == [0.1641, 0.1641, 0.6735, 0.6735]
    attended = 3 * 4900 + 4 * 1225 + 19 * 784 + 5 * 196
    assert padded_share(of_tiny) == pytest.approx(1 - (3 * 4096 + 4 * 1024 + 19 * 256 + 5 * 64) / attended)


def test_odd_and_oblong_grids_round_up_stage_by_stage():
    of_tiny = grids(GCVIT["gcvit_tiny"], (230, 100))
    # 230 / 4 = 57.5, then halves of 58, 29, 15.
    assert [grid.tokens for grid in of_tiny] == [(58, 25), (29, 13), (15, 7), (8, 4)]
    assert [grid.padded for grid in of_tiny] == [(63, 28), (35, 14), (28, 14), (14, 7)]


def test_gpvit_pads_odd_grids_of_its_local_blocks():
    (local,) = grids(GPVIT["gpvit_l1"], (200, 224))
    assert (local.tokens, local.padded, local.blocks) == ((25, 28), (26, 28), 8)
    assert local.share == pytest.approx(1 / 26)


def test_a_detector_pads_its_images_first(toy):
    detector = create_model(f"{toy}_retinanet", num_classes=3)
    assert [grid.tokens[0] for grid in token_grids(detector, (100, 100))] == [32, 16, 8, 4]
    assert [grid.padded[0] for grid in token_grids(detector, (100, 100))] == [48, 24, 24, 24]


@pytest.mark.parametrize("size", [(64, 64), (90, 70)])
def test_the_grids_are_those_of_the_maps(toy, size):
    model = create_model(toy, image_size=size)
    import torch

    maps = model.backbone(torch.zeros(1, 3, *size))
    assert [grid.tokens for grid in token_grids(model, size)] == [tuple(map_BCHW.shape[2:]) for map_BCHW in maps]


def test_a_larger_window_pads_more():
    config = replace(GCVIT["gcvit_tiny"], window=(8, 8, 16, 8))
    assert padded_share(grids(config, (256, 256))) == 0 < padded_share(grids(config, (224, 224)))

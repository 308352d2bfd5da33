"""Masks put into images, against torch's own sampling of grids."""

import pytest
import torch
import torch.nn.functional as F

from globalvit.detectors import masks
from globalvit.detectors.masks import paste

SIZE = (50, 70)
BOXES = torch.tensor([[10.0, 5, 40, 45], [-20.3, -9.1, 31.7, 22.2], [50.5, 30.2, 90, 60], [33.1, 20.4, 34.9, 21.7]])


def sampled(mask, box, size):
    """Probabilities of the whole image by `grid_sample`, zero outside."""
    (x1, y1, x2, y2), (height, width) = box.tolist(), size
    x, y = (
        (torch.arange(side) + 0.5 - start) / (end - start) * 2 - 1
        for side, start, end in ((width, x1, x2), (height, y1, y2))
    )
    grid = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], -1)
    return F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]


@pytest.mark.parametrize("side", [28, 14])
def test_pasting_equals_sampling(side):
    probabilities = torch.rand(4, side, side)
    pasted = paste(probabilities, BOXES, SIZE)
    assert pasted.dtype == torch.bool
    for ours, mask, box in zip(pasted, probabilities, BOXES, strict=True):
        expected = sampled(mask, box, SIZE)
        is_clear = (expected - 0.5).abs() > 1e-4
        assert torch.equal(ours[is_clear], (expected >= 0.5)[is_clear])


def test_a_full_mask_fills_its_box_and_nothing_else():
    pasted = paste(torch.ones(1, 28, 28), BOXES[:1], SIZE)[0]
    assert pasted[5:45, 10:40].all()
    assert pasted.sum() == 40 * 30


def test_lots_of_masks_are_worked_on_in_turn(monkeypatch):
    probabilities = torch.rand(4, 28, 28)
    at_once = paste(probabilities, BOXES, SIZE)
    monkeypatch.setattr(masks, "PIXELS_AT_ONCE", 2 * SIZE[0] * SIZE[1])
    assert torch.equal(paste(probabilities, BOXES, SIZE), at_once)
    monkeypatch.setattr(masks, "PIXELS_AT_ONCE", 1)
    assert torch.equal(paste(probabilities, BOXES, SIZE), at_once)


def test_boxes_without_area_and_no_boxes():
    flat = torch.tensor([[5.0, 5, 5, 9], [80, 5, 90, 9]])
    assert not paste(torch.ones(2, 28, 28), flat, SIZE).any()
    assert paste(torch.ones(0, 28, 28), torch.zeros(0, 4), SIZE).shape == (0, *SIZE)


def test_half_precision_changes_no_pixel():
    probabilities = torch.rand(4, 28, 28)
    with torch.autocast("cpu", torch.bfloat16):
        inside = paste(probabilities, BOXES, SIZE)
    assert torch.equal(inside, paste(probabilities, BOXES, SIZE))

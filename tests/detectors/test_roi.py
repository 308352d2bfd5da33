"""Regions cut from a pyramid, and the heads on them."""

import pytest
import torch
from torchvision.ops import roi_align

from globalvit.detectors.roi import BoxHead, MaskHead, RegionPool, levels_of

STRIDES = (4, 8, 16, 32, 64)


def pyramid(images=2, side=512, channels=6):
    return [torch.randn(images, channels, side // stride, side // stride) for stride in STRIDES]


def square(side, at=10.0):
    return torch.tensor([[at, at, at + side, at + side]])


@pytest.mark.parametrize(
    ("side", "level"),
    [(1, 0), (56, 0), (111.9, 0), (112, 1), (223.9, 1), (224, 2), (447.9, 2), (448, 3), (5000, 3)],
)
def test_regions_go_a_level_up_with_every_doubling(side, level):
    assert levels_of(square(side)).item() == level


def test_the_level_is_that_of_the_area():
    assert levels_of(torch.tensor([[0.0, 0, 28, 448], [0, 0, 56, 896], [5, 5, 5, 9], [9, 9, 2, 2]])).tolist()[:3] == [
        1,
        2,
        0,
    ]


@pytest.mark.parametrize(("side", "level"), [(50, 0), (150, 1), (300, 2), (460, 3)])
def test_every_level_is_read_at_its_stride(side, level):
    maps = pyramid()
    pooled = RegionPool((6,) * 5, STRIDES)(maps, [square(side), square(side, 20.0)], 7)
    rois = torch.cat([torch.tensor([[0.0], [1.0]]), torch.cat([square(side), square(side, 20.0)])], 1)
    expected = roi_align(maps[level], rois, 7, 1 / STRIDES[level], 0, aligned=True)
    torch.testing.assert_close(pooled, expected)


def test_regions_keep_their_order_and_their_image():
    maps, pool = pyramid(), RegionPool((6,) * 5, STRIDES)
    boxes = [torch.cat([square(300), square(20), square(150)]), torch.cat([square(460), square(30)])]
    together = pool(maps, boxes, 7)
    assert together.shape == (5, 6, 7, 7)
    alone = [pool([one[i : i + 1] for one in maps], [box[None]], 7) for i in (0, 1) for box in boxes[i]]
    torch.testing.assert_close(together, torch.cat(alone))


def test_images_without_regions():
    maps, pool = pyramid(), RegionPool((6,) * 5, STRIDES)
    none = torch.zeros(0, 4)
    assert pool(maps, [none, none], 14).shape == (0, 6, 14, 14)
    torch.testing.assert_close(pool(maps, [none, square(40)], 7), pool([x[1:] for x in maps], [square(40)], 7))


def test_half_precision_maps_are_read_at_exact_places():
    maps, pool = pyramid(side=1024), RegionPool((6,) * 5, STRIDES)
    box = square(40.3, 900.7)
    exact = pool(maps, [box, box], 7)
    half = pool([one.bfloat16() for one in maps], [box, box], 7)
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).abs().max() < 0.02 * exact.abs().max()


@pytest.mark.parametrize(
    ("channels", "strides", "message"),
    [
        ((6, 6, 6, 7), (4, 8, 16, 32), r"maps of \(6, 6, 6, 7\) channels came"),
        ((6, 6, 6, 6), (8, 8, 8, 8), r"maps of strides \(8, 8, 8, 8\) came; RoI heads read four levels of doubling"),
        ((6, 6, 6), (4, 8, 16), r"maps of strides \(4, 8, 16\) came; RoI heads read four levels of doubling strides"),
    ],
)
def test_pyramids_must_double(channels, strides, message):
    with pytest.raises(ValueError, match=message):
        RegionPool(channels, strides)


@pytest.mark.parametrize(("convs", "fcs"), [(4, 1), (0, 2)])
def test_box_head(convs, fcs):
    head = BoxHead(6, 5, convs=convs, fcs=fcs).eval()
    head.init_weights()
    x = torch.randn(3, 6, 7, 7)
    logits, deltas = head(x)
    assert (logits.shape, deltas.shape) == ((3, 6), (3, 5, 4))
    # Four deltas of a class stand together.
    raw = torch.randn(20)
    torch.nn.init.zeros_(head.deltas.weight)
    head.deltas.bias.data = raw
    torch.testing.assert_close(head(x)[1][0], raw.view(5, 4))


def test_a_box_head_without_regions_keeps_its_statistics_and_its_gradients():
    head = BoxHead(6, 5, convs=4, fcs=1).train()
    logits, deltas = head(torch.zeros(0, 6, 7, 7))
    assert (logits.shape, deltas.shape) == ((0, 6), (0, 5, 4))
    (logits.sum() + deltas.sum()).backward()
    assert all((parameter.grad == 0).all() for parameter in head.parameters())
    assert all(buffer.isfinite().all() for buffer in head.buffers())


@pytest.mark.parametrize("regions", [0, 2])
def test_mask_head(regions):
    head = MaskHead(6, 5)
    head.init_weights()
    masks = head(torch.randn(regions, 6, 14, 14))
    assert masks.shape == (regions, 5, 28, 28)
    masks.sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())

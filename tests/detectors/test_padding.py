"""Images of several sizes in one tensor."""

import pytest
import torch

from globalvit.detectors.padding import pad, padded_size, scale_boxes, stack


@pytest.mark.parametrize(("size", "padded"), [((32, 64), (32, 64)), ((33, 1), (64, 32)), ((800, 1333), (800, 1344))])
def test_sides_become_multiples_of_32(size, padded):
    assert padded_size(*size) == padded
    image = torch.randn(2, 3, *size)
    out = pad(image)
    assert out.shape[2:] == padded
    assert torch.equal(out[:, :, : size[0], : size[1]], image)
    assert out.count_nonzero() == image.count_nonzero()


def test_images_stand_in_the_upper_left_corner():
    images = [torch.randn(3, 20, 50), torch.randn(3, 40, 10)]
    stacked = stack(images)
    assert stacked.shape == (2, 3, 40, 50)
    for ours, image in zip(stacked, images, strict=True):
        assert torch.equal(ours[:, : image.shape[1], : image.shape[2]], image)
        assert ours.count_nonzero() == image.count_nonzero()


def test_boxes_grow_with_their_image():
    boxes = torch.tensor([[1.0, 2, 3, 4]])
    assert scale_boxes(boxes, (10, 20), (30, 10)).tolist() == [[0.5, 6, 1.5, 12]]
    assert scale_boxes(torch.zeros(0, 4), (10, 20), (30, 10)).shape == (0, 4)

"""Random erasing: a record first, exactly what it says later."""

import pytest
import torch

from globalvit.data.classification.erasing import Box, Erasure, draw_erasure, erase


def records(number=2000, probability=0.25, count=1, size=(32, 48)):
    return [draw_erasure(size, probability, count, (0, 0, index)) for index in range(number)]


def test_the_share_of_erased_images_is_the_probability():
    share = sum(bool(record.boxes) for record in records()) / 2000
    assert abs(share - 0.25) < 0.03
    assert not any(record.boxes for record in records(probability=0.0))
    assert all(record.boxes for record in records(200, probability=1.0))


def test_boxes_lie_inside_and_have_the_published_areas():
    boxes = [box for record in records(probability=1.0) for box in record.boxes]
    shares = torch.tensor([box.height * box.width / (32 * 48) for box in boxes])
    assert all(0 <= box.top <= 32 - box.height and 0 <= box.left <= 48 - box.width for box in boxes)
    assert 0.005 < shares.min() < 0.04
    assert shares.max() < 0.36
    # The mean of a uniform 0.02 … 1/3 is 0.177; very long boxes that do not fit lower it a little.
    assert 0.15 < shares.mean() < 0.19


def test_several_boxes_share_the_area():
    drawn = records(probability=1.0, count=3)
    assert {len(record.boxes) for record in drawn} == {1, 2, 3}
    areas = [sum(box.height * box.width for box in record.boxes) for record in drawn]
    assert max(areas) < 0.36 * 32 * 48


def test_the_share_of_boxes_equals_timms():
    """The mean and spread of the erased area over many images are those of timm's implementation."""
    from timm.data.random_erasing import RandomErasing

    from globalvit.data.common.randomness import seeded

    with seeded(0):
        theirs = (
            RandomErasing(1.0, mode="const", device="cpu")(torch.ones(1500, 1, 32, 32)).eq(0).float().mean((1, 2, 3))
        )
    drawn = records(1500, probability=1.0, size=(32, 32))
    ours = erase(torch.ones(1500, 1, 32, 32), drawn, "const").eq(0).float().mean((1, 2, 3))
    assert abs(theirs.mean() - ours.mean()) < 0.01
    assert abs(theirs.std() - ours.std()) < 0.01


@pytest.mark.parametrize("mode", ["pixel", "rand", "const"])
def test_only_the_boxes_change_and_by_the_record_alone(mode):
    record = Erasure((Box(2, 3, 5, 7), Box(10, 0, 2, 2)), seed=9)
    images = torch.full((3, 2, 16, 16), 5.0)
    erased = erase(images.clone(), [Erasure((), 1), record, record], mode)
    assert torch.equal(erased[0], images[0])
    assert torch.equal(erased[1], erased[2])
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[2:7, 3:10] = inside[10:12, 0:2] = True
    assert (erased[1][:, ~inside] == 5).all()
    assert (erased[1][:, inside] != 5).all()


def test_what_is_filled_in():
    record = Erasure((Box(0, 0, 60, 60),), seed=3)
    images = torch.full((1, 3, 64, 64), 5.0)
    pixel = erase(images.clone(), [record], "pixel")[0, :, :60, :60]
    assert abs(pixel.mean()) < 0.05
    assert abs(pixel.std() - 1) < 0.05
    color = erase(images.clone(), [record], "rand")[0, :, :60, :60]
    assert color.std((1, 2)).max() == 0
    assert color.mean((1, 2)).unique().numel() == 3
    assert not erase(images.clone(), [record], "const")[0, :, :60, :60].any()


def test_tiny_images_are_left_whole_where_no_box_fits():
    assert draw_erasure((1, 1), 1.0, 1, (0,)).boxes == ()

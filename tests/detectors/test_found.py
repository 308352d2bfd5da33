"""Rows of a batch: what is cut off, and that suppression does not depend on how many boxes come together."""

import pytest
import torch

from globalvit.detectors import found as rows
from globalvit.detectors.found import Found, limits_of, rois_of, stacked, suppress


@pytest.fixture
def candidates():
    torch.manual_seed(0)
    starts, sides = 300 * torch.rand(3, 900, 2), 80 * torch.rand(3, 900, 2)
    boxes = torch.cat([starts, starts + sides], dim=-1)
    return Found(boxes, torch.rand(3, 900), torch.randint(0, 20, (3, 900)))


def test_many_boxes_are_suppressed_as_few_are(candidates, monkeypatch):
    one_by_one = suppress(candidates, overlap=0.5, most=100)
    monkeypatch.setattr(rows, "TOGETHER", 10**6)
    for again in (
        suppress(candidates, overlap=0.5, most=100),
        suppress(candidates, overlap=0.5, most=100, is_fixed=True),
    ):
        assert all(torch.equal(a, b) for a, b in zip(again, one_by_one, strict=True))


def test_images_do_not_suppress_each_other(candidates):
    together = suppress(candidates, overlap=0.3, most=50).split()
    for image, found in enumerate(together):
        (alone,) = suppress(Found(*(one[image : image + 1] for one in candidates)), overlap=0.3, most=50).split()
        assert torch.equal(found.boxes, alone.boxes)
        assert torch.equal(found.scores, alone.scores)


def test_rows_that_stand_for_nothing_are_cut_off_unless_the_number_is_fixed(candidates):
    few = candidates._replace(scores=candidates.scores * torch.tensor([0.0, 1, 1])[:, None])
    few.scores[1, 5:] = 0
    few.scores[2, 2:] = 0
    assert suppress(few, overlap=1.0, most=9).scores.shape == (3, 5)
    assert suppress(few, overlap=1.0, most=9, is_fixed=True).scores.shape == (3, 9)
    assert [len(one) for one in suppress(few, overlap=1.0, most=9).split()] == [0, 5, 2]


def test_regions_of_several_images_are_numbered_and_bounded():
    found = stacked([torch.ones(2, 4), torch.zeros(0, 4)])
    assert found.scores.tolist() == [[1, 1], [0, 0]]
    assert rois_of(found.boxes)[:, 0].tolist() == [0, 0, 1, 1]
    assert limits_of([(20, 30), (5, 6)], torch.device("cpu")).tolist() == [[[30, 20, 30, 20]], [[6, 5, 6, 5]]]

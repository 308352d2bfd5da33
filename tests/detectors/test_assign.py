"""Who learns what, on boxes whose overlaps are plain to see."""

import pytest
import torch

from globalvit.detectors import assign
from globalvit.detectors.assign import IGNORED, NEGATIVE, Assigner, Sampler

OBJECT = (0, 0, 10, 10)


def bars(*widths):
    """Boxes of height 10 that share `width` tenths of OBJECT, which is their IoU with it."""
    return torch.tensor([[0.0, 0, width, 10] for width in widths])


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32).view(-1, 4)


def test_thresholds_are_inclusive_above_and_exclusive_below():
    assigned = Assigner(positive=0.7, negative=0.3)(bars(7, 6.9, 3, 2.9), boxes(OBJECT))
    assert assigned.tolist() == [0, IGNORED, IGNORED, NEGATIVE]


@pytest.mark.parametrize(("lowest", "first"), [(None, IGNORED), (0.3, 0), (0.5, 0), (0.6, IGNORED)])
def test_the_best_box_of_an_object_is_positive_from_the_lowest_match_on(lowest, first):
    assigned = Assigner(positive=0.7, negative=0.3, lowest_match=lowest)(bars(5, 4, 1), boxes(OBJECT))
    assert assigned.tolist() == [first, IGNORED, NEGATIVE]


def test_boxes_that_tie_for_best_are_all_positive():
    assigned = Assigner(positive=0.7, negative=0.3, lowest_match=0.3)(bars(5, 5, 4), boxes(OBJECT))
    assert assigned.tolist() == [0, 0, IGNORED]


def test_an_object_that_nothing_overlaps_takes_nothing():
    assigned = Assigner(positive=0.5, negative=0.4, lowest_match=0.0)(bars(1, 9), boxes((50, 50, 60, 60), OBJECT))
    assert assigned.tolist() == [NEGATIVE, 1]


def test_an_objects_best_box_is_its_own_even_where_another_object_is_nearer():
    # The one box overlaps object 1 by 0.9 and object 0 by 0.6; nothing else overlaps object 0.
    objects, box = boxes((0, 0, 10, 6), (0, 0, 10, 9)), boxes(OBJECT)
    assert Assigner(positive=0.5, negative=0.5)(box, objects).tolist() == [1]
    assert Assigner(positive=0.5, negative=0.5, lowest_match=0.5)(box, objects[[1, 0]]).tolist() == [1]


@pytest.mark.parametrize("lowest", [None, 0.0, 0.4])
def test_crowds_are_compared_in_lots(monkeypatch, lowest):
    starts, sides = torch.rand(2, 300, 2) * 50
    some = torch.cat([starts, starts + sides + 1], 1)
    assigner = Assigner(positive=0.7, negative=0.3, lowest_match=lowest)
    at_once = assigner(some, some[:40])
    for lot in (7, 39, 40, 1000):
        monkeypatch.setattr(assign, "OBJECTS_AT_ONCE", lot)
        assert torch.equal(assigner(some, some[:40]), at_once)


def test_nothing_to_assign():
    assigner = Assigner(positive=0.7, negative=0.3, lowest_match=0.3)
    assert assigner(bars(5, 9), boxes()).tolist() == [NEGATIVE, NEGATIVE]
    assert assigner(boxes(), boxes(OBJECT)).shape == assigner(boxes(), boxes()).shape == (0,)


ASSIGNED = torch.tensor([0] * 10 + [NEGATIVE] * 50 + [IGNORED] * 5)


@pytest.mark.parametrize(
    ("number", "fraction", "counts"),
    [(12, 0.25, (3, 9)), (40, 0.5, (10, 30)), (200, 0.5, (10, 50)), (10**6, 1.0, (10, 50)), (0, 0.5, (0, 0))],
)
def test_negatives_fill_what_positives_leave(number, fraction, counts):
    positives, negatives = Sampler(number=number, positive_fraction=fraction)(ASSIGNED)
    assert (len(positives), len(negatives)) == counts
    assert set(positives.tolist()) <= set(range(10))
    assert set(negatives.tolist()) <= set(range(10, 60))
    assert len({*positives.tolist(), *negatives.tolist()}) == sum(counts)


def test_a_seed_repeats_the_draw():
    sampler = Sampler(number=12, positive_fraction=0.25)

    def draw(seed):
        return torch.cat(sampler(ASSIGNED, torch.Generator().manual_seed(seed))).tolist()

    assert draw(1) == draw(1) != draw(2)
    torch.manual_seed(1)
    assert torch.cat(sampler(ASSIGNED)).tolist() == draw(1)


def test_every_box_is_drawn_about_as_often():
    sampler = Sampler(number=10, positive_fraction=0.0)
    drawn = torch.cat([sampler(ASSIGNED)[1] for _ in range(500)])
    counts = torch.bincount(drawn, minlength=60)[10:]
    assert counts.sum() == 5000
    # 100 each on average; four standard deviations of a binomial draw.
    assert (counts - 100).abs().max() < 40


def test_an_empty_set_gives_an_empty_draw():
    positives, negatives = Sampler(number=12, positive_fraction=0.25)(torch.zeros(0, dtype=torch.int64))
    assert positives.shape == negatives.shape == (0,)

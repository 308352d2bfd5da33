"""Arithmetic on made-up times."""

import pytest

from globalvit.benchmark.figures import images_per_second, paired_ratio, per_pixel, percentile


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, 1.0), (0.1, 1.4), (0.5, 3.0), (0.9, 4.6), (1.0, 5.0)],
)
def test_percentiles_are_interpolated(share, expected):
    assert percentile([5.0, 1.0, 3.0, 2.0, 4.0], share) == pytest.approx(expected)
    assert percentile([7.0], share) == 7.0


def test_a_ratio_is_the_median_over_neighbors_so_that_drift_cancels():
    # The clock halves after the second repetition; theirs takes 1.5 times as long throughout, but once.
    ours, theirs = [1.0, 1.0, 2.0, 2.0, 2.0], [1.5, 1.5, 3.0, 3.0, 9.0]
    assert paired_ratio(theirs, ours) == 1.5
    assert paired_ratio([], []) is None


def test_repetitions_that_are_no_pairs_have_no_ratio():
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        paired_ratio([1.0, 2.0], [1.0])


def test_speed_and_cost_come_from_the_median():
    seconds = [0.5, 0.25, 4.0]
    assert images_per_second(8, seconds) == 16
    assert per_pixel(8, (100, 50), seconds) == pytest.approx(0.5 / 40_000)

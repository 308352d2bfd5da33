"""Labeled images: size, bars as long as the probabilities, text that fits."""

import numpy as np
import pytest
from PIL import Image, ImageColor

from globalvit.jobs.drawing import BAR, FAINT, INK, LINE, MARGIN, fit, label_map

NAMES, SCORES = (
    ["apple", "a name that is much too long to be written on one line of the panel", "яблоко"],
    [0.5, 0.3, 0.2],
)


@pytest.mark.parametrize("size", [(8, 8), (600, 400), (3000, 2000), (2000, 10), (10, 2000)])
def test_the_panel_stands_below_a_image_of_a_readable_size(size):
    page = label_map(Image.new("RGB", size, "red"), NAMES, SCORES)
    assert 480 <= page.width <= 1024
    assert page.height <= 1024 + 2 * MARGIN + 3 * LINE
    assert page.getpixel((page.width // 2, 0)) == ImageColor.getrgb("red")


@pytest.mark.parametrize("size", [(8, 8), (600, 400), (3000, 2000), (2000, 10), (10, 2000), (1, 1)])
def test_a_image_that_was_fitted_stays_as_it_is(size):
    once = fit(Image.effect_noise(size, 50).convert("RGB"))
    assert fit(once).tobytes() == once.tobytes()


def test_a_bar_is_as_long_as_the_probability():
    page = np.asarray(label_map(Image.new("RGB", (480, 480)), NAMES, SCORES))
    row = page[480 + MARGIN + 2]
    length = (row == ImageColor.getrgb(BAR)).all(1).sum()
    assert length == pytest.approx(0.5 * (480 - 2 * MARGIN), abs=6)
    assert (row == ImageColor.getrgb(FAINT)).all(1).any()


def test_names_are_written_and_stay_clear_of_the_percentage():
    page = np.asarray(label_map(Image.new("RGB", (480, 480)), NAMES, SCORES))
    for i in range(3):
        top = 480 + MARGIN + i * LINE
        inked = (page[top : top + LINE - 6] == ImageColor.getrgb(INK)).all(2).any(0)
        columns = np.flatnonzero(inked)
        assert columns.min() < 40
        assert columns.max() < 480 - MARGIN
    gaps = np.diff(columns)
    assert gaps.max() > 8

"""Photometric distortion."""

import numpy as np
import pytest
from PIL import Image

from globalvit.data.built_in.shapes import draw_scene
from globalvit.data.segmentation.distortion import distort


def distorted(image, strength, total=40):
    return [np.asarray(distort(image, strength, np.random.default_rng(seed))).astype(int) for seed in range(total)]


def test_without_strength_nothing_changes():
    image = draw_scene("train", 0).image
    assert all((values == np.asarray(image)).all() for values in distorted(image, 0))


def test_about_one_image_in_sixteen_is_left_as_it_is():
    image = draw_scene("train", 0).image
    same = [(values == np.asarray(image)).all() for values in distorted(image, 1, 320)]
    assert 8 <= sum(same) <= 36


def test_gray_stays_gray_and_within_the_stated_changes():
    values = np.array(distorted(Image.new("RGB", (2, 2), (100, 100, 100)), 1, 300))[:, 0, 0]
    assert (np.ptp(values, axis=1) <= 1).all()
    assert 100 - 32 - 50 <= values.min() < 50
    assert 170 < values.max() <= (100 + 32) * 1.5


@pytest.mark.parametrize(("strength", "degrees"), [(1, 36), (0.5, 18)])
def test_hues_turn_by_at_most_their_degrees(strength, degrees):
    # No channel of this color reaches 0 or 255, where clipping would turn the hue further.
    pixels = np.array(distorted(Image.new("RGB", (1, 1), (120, 60, 60)), strength, 300)).astype(np.uint8)
    hues = np.array([Image.fromarray(pixel).convert("HSV").getpixel((0, 0))[0] for pixel in pixels])
    turns = (hues * 360 / 256 + 180) % 360 - 180
    assert np.abs(turns).max() < degrees + 3
    assert np.abs(turns).max() > degrees * 0.8

import numpy as np
import pytest
import torch
from PIL import Image

from globalvit.data.common.transforms import FitTransform


@pytest.mark.parametrize(
    ("options", "size", "fitted"),
    [
        ({"short_side": 512, "long_side": 2048}, (300, 400), (512, 683)),
        ({"short_side": 512, "long_side": 2048}, (100, 1000), (205, 2048)),
        ({"short_side": 512, "long_side": 2048, "multiple": 32}, (300, 400), (512, 704)),
        ({"short_side": 64, "long_side": 64}, (10, 1000), (32, 64)),
        ({"short_side": None}, (33, 700), (33, 700)),
        ({"short_side": None, "multiple": 32}, (33, 700), (64, 704)),
    ],
)
def test_sides_keep_their_ratio_within_the_bounds(options, size, fitted):
    transform = FitTransform(**options)
    assert transform.fitted_size(*size) == fitted
    assert transform.to_uint8(Image.new("RGB", size[::-1])).shape == (3, *fitted)


def test_a_image_of_the_right_size_is_only_normalized():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    transform = FitTransform(short_side=None, mean=(0.5,) * 3, std=(0.25,) * 3)
    expected = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - 0.5) / 0.25
    torch.testing.assert_close(transform(Image.fromarray(pixels)), expected)
    assert transform.for_channels(1)(Image.fromarray(pixels)).shape == (1, 40, 50)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"short_side": 512, "long_side": 256}, "the smaller number first"),
        ({"short_side": 16}, "must be 32 pixels or more"),
        ({"multiple": 0}, "multiple=0 must be 1 or more"),
        ({"interpolation": "area"}, "interpolation='area' must be one of"),
        ({"std": (0.0,) * 3}, "std above 0"),
    ],
)
def test_wrong_values_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        FitTransform(**options)

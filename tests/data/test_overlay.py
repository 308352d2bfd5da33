"""Labels drawn over images."""

import numpy as np
import pytest
import torch
from PIL import Image

from globalvit.data.common.loading import to_device
from globalvit.data.segmentation.transforms import SegmentTrainTransform
from globalvit.drawing.overlay import draw_legend, label_sheet, overlay_labels
from globalvit.drawing.palette import default_palette
from globalvit.drawing.samples import PAPER

PALETTE = default_palette(3)
PAPER_RGB = tuple(int(PAPER[place : place + 2], 16) for place in (1, 3, 5))


def test_colors_are_blended_and_ignored_pixels_striped():
    labels = np.array([[0, 1, 2, 2]] * 4 + [[255] * 4] * 8, np.uint8)
    image = Image.new("RGB", (4, 12), (100, 200, 50))
    drawn = np.asarray(overlay_labels(image, labels, PALETTE, alpha=0.25))
    expected = np.rint(0.75 * np.array([100, 200, 50]) + 0.25 * PALETTE[[0, 1, 2, 2]])
    np.testing.assert_array_equal(drawn[0], expected)
    assert {tuple(pixel) for pixel in drawn[4:].reshape(-1, 3).tolist()} == {(100, 200, 50), (75, 150, 38)}


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_alpha_goes_from_the_image_to_the_palette(alpha):
    labels = np.random.default_rng(0).integers(0, 3, (5, 6), dtype=np.uint8)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (5, 6, 3), dtype=np.uint8))
    expected = PALETTE[labels] if alpha else np.asarray(image)
    np.testing.assert_array_equal(overlay_labels(image, labels, PALETTE, alpha=alpha), expected)


def test_labels_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"expected labels of the image's size 3×4, got 3×2; resize one of them"):
        overlay_labels(Image.new("RGB", (3, 4)), np.zeros((2, 3), np.uint8), PALETTE)


def test_the_legend_shows_the_classes_that_occur():
    labels = np.array([[2, 2, 0], [2, 0, 255]], np.uint8)
    colors = {tuple(pixel) for pixel in np.asarray(draw_legend(labels, PALETTE, "abc", 300)).reshape(-1, 3).tolist()}
    assert {tuple(PALETTE[0].tolist()), tuple(PALETTE[2].tolist())} <= colors
    assert tuple(PALETTE[1].tolist()) not in colors


@pytest.mark.parametrize("names", [("a", "b", "c"), ("a very long name indeed " * 5,) * 3])
def test_a_legend_is_put_below(names):
    labels = np.random.default_rng(0).integers(0, 3, (20, 100), dtype=np.uint8)
    drawn = overlay_labels(Image.new("RGB", (100, 20)), labels, PALETTE, names=names)
    assert drawn.width == 300
    assert 60 < drawn.height < 140


@pytest.mark.parametrize("channels", [3, 1])
def test_a_sheet_has_every_image_beside_its_labels(channels):
    transform = SegmentTrainTransform(mean=(0.5,) * channels, std=(0.2,) * channels)
    images = torch.randint(0, 256, (3, channels, 40, 60), dtype=torch.uint8)
    batch = {"images": images, "labels": torch.randint(0, 3, (3, 40, 60), dtype=torch.uint8)}
    sheet = label_sheet(to_device(batch, transform, "cpu"), ("a", "b", "c"), transform, columns=2)
    # Tiles of 60 pixels are enlarged three times and stand twice side by side.
    assert sheet.width == 2 * (2 * 180 + 6) + 6
    tile = np.asarray(sheet)[6 : 6 + 120 : 3, 6 : 6 + 180 : 3]
    np.testing.assert_array_equal(tile, images[0].permute(1, 2, 0).expand(-1, -1, 3))
    assert sheet.getpixel((sheet.width - 20, 200)) == PAPER_RGB

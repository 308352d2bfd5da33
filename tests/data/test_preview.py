"""The sheet of training images."""

import numpy as np
import pytest
import torch

from globalvit.data.classification.transforms import EvalTransform
from globalvit.drawing.samples import _caption, sample_sheet

CLASSES = ("apple", "pear", "a very long name of a class that does not fit below its image")


@pytest.fixture
def transform():
    return EvalTransform(image_size=(10, 20))


def batch(transform, colors):
    values = torch.tensor(colors, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, 10, 20)
    return {"images": transform.normalize(values), "labels": torch.arange(len(colors)) % 3}


def test_images_stand_in_rows_in_their_own_colors(transform):
    colors = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    sheet = np.asarray(sample_sheet(batch(transform, colors), CLASSES, transform, columns=2))
    # Enlarged eight times to 160 × 80, with a margin of 6 and two lines of text below.
    assert sheet.shape == (2 * (80 + 36 + 6) + 6, 2 * 166 + 6, 3)
    assert sheet[6:86, 6:166].reshape(-1, 3).tolist() == [[250, 0, 0]] * (80 * 160)
    assert sheet[40, 200].tolist() == [0, 250, 0]
    assert sheet[160, 40].tolist() == [0, 0, 250]
    assert (sheet[88:104, 6:166] < 128).any(), "a caption stands below"
    assert (sheet[:, -6:] == 255).all(), "no caption runs out of its column"


def test_gray_and_large_images_are_drawn_as_they_are():
    transform = EvalTransform(image_size=300, mean=(0.5,), std=(0.5,))
    images = transform.normalize(torch.full((1, 1, 300, 300), 77, dtype=torch.uint8))
    sheet = np.asarray(sample_sheet({"images": images, "labels": torch.tensor([0])}, CLASSES, transform))
    assert sheet[6:306, 6:306].reshape(-1, 3).tolist() == [[77] * 3] * 90_000


def test_captions_name_the_classes_a_image_counts_for():
    mixed = {"labels": torch.tensor([0, 0]), "targets": torch.tensor([[0.7, 0.27, 0.03], [0.94, 0.03, 0.03]])}
    assert _caption(mixed, 0, CLASSES) == ["0.70 apple", "0.27 pear"]
    assert _caption(mixed, 1, CLASSES) == ["apple"]
    assert _caption({"labels": torch.tensor([1])}, 0, CLASSES) == ["pear"]

"""Tiny models of both families, with weights that make their attention uneven, and a photo."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from globalvit.build import create_model
from globalvit.models.variants import VARIANTS

TINY = {
    "gcvit_xxtiny": {"depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8), "width": 16},
    "gpvit_l1": {"width": 24},
}
CLASSES = ("apple", "banana", "cherry")


def tiny(name):
    """A model of the family with few channels, its attention far from even."""
    backbone = next(known for known in TINY if name.startswith(known))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, backbone, replace(VARIANTS[backbone], **TINY[backbone]))
        model = create_model(name, classes=CLASSES, image_size=64, drop_path=0.3)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.4)
    return model


@pytest.fixture(params=["gcvit_xxtiny", "gpvit_l1"])
def classifier(request):
    return tiny(request.param)


@pytest.fixture
def gcvit():
    return tiny("gcvit_xxtiny")


@pytest.fixture
def gpvit():
    return tiny("gpvit_l1")


@pytest.fixture
def photo():
    """101×70 pixels: neither square nor even."""
    return np.random.default_rng(0).integers(0, 256, (70, 101, 3), np.uint8)


@pytest.fixture
def tiny_model():
    """Make a tiny model by name, a segmenter or detector too."""
    return tiny

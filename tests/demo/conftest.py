"""Small models with random weights, and images as people have them and as they should not be."""

from dataclasses import dataclass
from pathlib import Path

import pytest

# A name that would be markup, and more if it were not escaped.
CLASSES = ("<b>cat</b>", "dog & ${1+1}", "bird")


@dataclass(frozen=True)
class Given:
    """Paths of weight files by kind of task."""

    classify: Path
    detect: Path


@pytest.fixture(scope="session")
def given(tmp_path_factory):
    import torch

    from globalvit.build import create_model, save_weights

    folder = tmp_path_factory.mktemp("models")
    paths = Given(folder / "classify.safetensors", folder / "detect.safetensors")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_weights(create_model("gcvit_xxtiny", classes=CLASSES, image_size=64), paths.classify)
        detector = create_model("gcvit_xxtiny_retinanet", classes=CLASSES, image_size=64, window="ratio")
        # As they are, fresh heads find nothing: the scores of all anchors begin low.
        torch.nn.init.constant_(detector.dense.logits.bias, 0.3)
        save_weights(detector, paths.detect)
    return paths


@pytest.fixture(scope="session")
def photo():
    """An image with something in it, not square."""
    from globalvit.data.built_in.shapes import draw_scene

    return draw_scene("val", 0).image.resize((192, 128))

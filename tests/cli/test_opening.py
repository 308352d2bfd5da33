"""Checkpoints that commands are given: what they refuse, in one line, and what they open on request."""

import numpy as np
import pytest
import torch
from PIL import Image

from globalvit.build import create_model
from globalvit.cli.main import main


@pytest.fixture
def diverged(tmp_path):
    state = create_model("gcvit_xxtiny", num_classes=2, image_size=32).state_dict()
    torch.save(state | {"head.linear.bias": torch.tensor([0.0, float("nan")])}, tmp_path / "x.pth")
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "image.png")
    return tmp_path


def test_weights_that_are_not_finite_are_opened_on_request_only(diverged, capsys):
    command = ["predict", str(diverged / "image.png"), "--checkpoint", str(diverged / "x.pth"), "--precision", "fp32"]
    assert main(command) == 1
    assert "x.pth has NaN or infinity in 1 of its entries: 'head.linear.bias'; take" in capsys.readouterr().err
    assert main([*command, "--allow-nonfinite"]) == 1
    assert "the model's scores are not finite numbers" in capsys.readouterr().err


def test_a_damaged_file_is_one_line(diverged, capsys):
    whole = (diverged / "x.pth").read_bytes()
    (diverged / "x.pth").write_bytes(whole[: len(whole) // 2])
    assert main(["predict", str(diverged / "image.png"), "--checkpoint", str(diverged / "x.pth")]) == 1
    error = capsys.readouterr().err
    assert "x.pth is damaged or cut short at" in error
    assert "Traceback" not in error

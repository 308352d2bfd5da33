"""timm's five GC ViTs as a black box: the same outputs from the same weights, both ways."""

import pytest
import timm
import torch

from globalvit.build import create_model
from globalvit.weights import timm as converter
from globalvit.weights.load import load_weights

FIVE = [
    "gcvit_xxtiny",
    *(pytest.param(f"gcvit_{size}", marks=pytest.mark.slow) for size in ("xtiny", "tiny", "small", "base")),
]


def randomise(model):
    """Values that let every parameter show, those that start at 0, 1 or 1e-5 included."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim <= 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model.eval()


def assert_equal_outputs(ours, theirs, images):
    with torch.inference_mode():
        got, expected = ours(images), theirs(images)
    worst = float((got - expected).abs().max() / expected.abs().max())
    print(f"relative difference max {worst:.2e}")
    assert worst <= 1e-5


@pytest.mark.parametrize("name", FIVE)
def test_timms_weights_give_timms_outputs_here(name):
    theirs = randomise(timm.create_model(name))
    ours = create_model(name).eval()
    report = load_weights(ours, theirs.state_dict())
    assert report.form == "timm's GC ViT form"
    assert (report.fresh, report.dropped) == ((), ())
    assert_equal_outputs(ours, theirs, torch.randn(2, 3, 224, 224))


@pytest.mark.parametrize("name", FIVE)
def test_our_weights_give_our_outputs_there(name):
    ours = randomise(create_model(name))
    theirs = timm.create_model(name).eval()
    theirs.load_state_dict(converter.from_ours(ours.state_dict()))
    assert_equal_outputs(ours, theirs, torch.randn(2, 3, 224, 224))


@pytest.mark.parametrize("name", FIVE)
def test_there_and_back_is_the_same_bit_for_bit(name, is_equal):
    theirs = timm.create_model(name).state_dict()
    assert is_equal(converter.from_ours(converter.to_ours(theirs)), dict(theirs))


def test_timm_opens_what_convert_writes(tmp_path):
    ours = randomise(create_model("gcvit_xxtiny"))
    torch.save({"state_dict": converter.from_ours(ours.state_dict())}, tmp_path / "x.pth")
    theirs = timm.create_model("gcvit_xxtiny", checkpoint_path=str(tmp_path / "x.pth")).eval()
    assert_equal_outputs(ours, theirs, torch.randn(1, 3, 224, 224))

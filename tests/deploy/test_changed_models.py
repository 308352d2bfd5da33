"""Deployed copies of models whose weights PyTorch computes from others: pruned, weight-normed, parametrized."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import globalvit as gv


class Double(nn.Module):
    def forward(self, weight):
        return 2 * weight


def pruned(model):
    prune.l1_unstructured(model.backbone.stages[0].blocks[0].mlp.fc1, "weight", 0.5)
    prune.random_structured(model.head.linear, "weight", 0.3, dim=0)


def old_weight_norm(model):
    # PyTorch says that it goes; people have models with it.
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model.backbone.stages[0].blocks[0].attention.qkv)


def weight_normed(model):
    parametrizations.weight_norm(model.backbone.stages[0].blocks[0].attention.qkv)
    parametrizations.spectral_norm(model.backbone.stages[0].blocks[0].mlp.fc2)


def parametrized(model):
    parametrize.register_parametrization(model.backbone.stages[1].blocks[1].mlp.fc1, "weight", Double())


@pytest.mark.parametrize("change", [pruned, old_weight_norm, weight_normed, parametrized])
def test_computed_weights_are_deployed_right(change):
    model = gv.create_model("gcvit_xxtiny", num_classes=4, image_size=32)
    change(model)
    images = torch.randn(2, 3, 32, 32)
    model(images).sum().backward()
    model.eval()
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(model.deploy()(images), expected, rtol=1e-4, atol=1e-5)
    assert model.predict(images[0]) == model.eval().predict(images[0])


def test_what_cannot_be_copied_is_one_sentence():
    model = gv.create_model("gcvit_xxtiny", num_classes=4, image_size=32)
    model.file = Path(__file__).open()  # noqa: SIM115
    with (
        model.file,
        pytest.raises(ValueError, match=r"the model cannot be copied \(cannot pickle .*\); take out what was"),
    ):
        model.deploy()

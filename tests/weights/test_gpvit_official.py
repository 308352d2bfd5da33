"""GPViT's official names and files: there and back, and through the command line."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from globalvit.build import create_model, load_weights
from globalvit.cli.main import main
from globalvit.weights import gpvit_official
from globalvit.weights.forms import detect_form, infer_spec

CASE = "gpvit_cls_L1"


@pytest.fixture
def official(golden):
    return golden(CASE).state_dict()


def test_official_to_ours_and_back_is_the_same_bit_for_bit(official, is_equal):
    assert is_equal(gpvit_official.from_ours(gpvit_official.to_ours(official)), official)
    arrays = {name: np.asarray(value) for name, value in official.items()}
    ours = gpvit_official.to_ours(arrays)
    assert ours["backbone.position_embedding"].shape == (28, 28, 216)
    assert ours["backbone.blocks.1.group_tokens"].shape == (64, 216)


@pytest.mark.parametrize("name", ["gpvit_l1", "gpvit_l2", "gpvit_l3", "gpvit_l4"])
def test_every_size_goes_there_and_back(name):
    with torch.device("meta"):
        own = create_model(name).state_dict()
    official = gpvit_official.from_ours(own)
    assert detect_form(official).name == "gpvit_official"
    back = gpvit_official.to_ours(official)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in own.items()}
    assert ("neck.group_token" in official) == (name in ("gpvit_l1", "gpvit_l2"))
    assert ("backbone.patch_embed.convs.4.running_mean" in official) == (name == "gpvit_l4")
    assert infer_spec(back).model == name


def test_unknown_names_are_listed(official):
    with pytest.raises(ValueError, match=r"1 of 334 entries are not of the official GPViT form: 'backbone.layers.0.x'"):
        gpvit_official.to_ours(official | {"backbone.layers.0.x": official["backbone.ln1.bias"]})


def test_another_number_of_classes_leaves_the_head_fresh(official):
    model = create_model("gpvit_l1", num_classes=7, in_channels=1)
    report = str(load_weights(model, official))
    assert "The head is fresh: the weights have 1000 classes, the model has 7." in report
    assert "The stem was adapted from 3 to 1 input channels." in report


def test_a_checkpoint_of_gcvit_is_refused(golden):
    with pytest.raises(
        ValueError, match=r"checkpoint of another model than gpvit_l1.*it holds gcvit_xxtiny, so create"
    ):
        load_weights(create_model("gpvit_l1"), golden("gcvit_cls_xxtiny").state_dict())


def test_convert_there_and_back(official, tmp_path, is_equal, capsys):
    source, ours, back = tmp_path / "epoch_300.pth", tmp_path / "ours.safetensors", tmp_path / "back.safetensors"
    torch.save({"meta": {"epoch": 300}, "state_dict": official}, source)
    assert main(["convert", str(source), str(ours), "--to", "ours"]) == 0
    assert main(["convert", str(ours), str(back), "--to", "official"]) == 0
    out = capsys.readouterr().out
    assert "model: gpvit_l1, 1000 classes" in out
    assert "CC-BY-NC-SA" not in out
    assert is_equal(load_file(back), official)
    assert main(["convert", str(ours), str(tmp_path / "timm.pth"), "--to", "timm"]) == 1
    assert "timm has no gpvit_l1; use --to ours, which globalvit.timm_plugin loads" in capsys.readouterr().err

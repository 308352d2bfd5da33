"""Models by name."""

import pytest
import torch
from PIL import Image

import globalvit as gv


def test_models_are_listed_by_pattern():
    assert gv.list_models("gcvit_*tiny") == ["gcvit_xxtiny", "gcvit_xtiny", "gcvit_tiny"]
    assert gv.list_models("gpvit_*") == ["gpvit_l1", "gpvit_l2", "gpvit_l3", "gpvit_l4"]
    assert len(gv.list_models()) == 14
    assert gv.list_models("resnet*") == []


def test_names_of_the_official_repository_are_accepted():
    assert gv.create_model("gc_vit_xxtiny", num_classes=2).spec.model == "gcvit_xxtiny"
    assert gv.model_info("gc_vit_tiny").published.params == 28_221_974


def test_unknown_models_and_weights_bring_the_closest_names():
    with pytest.raises(ValueError, match=r"model 'gcvit_tny' is not known\. Did you mean 'gcvit_tiny'"):
        gv.create_model("gcvit_tny")
    with pytest.raises(ValueError, match=r"model 'resnet50' is not known\. `globalvit models` lists them"):
        gv.model_info("resnet50")
    with pytest.raises(ValueError, match=r"no weights 'nvidia_1k'.* Did you mean 'nvidia_in1k'"):
        gv.create_model("gcvit_tiny", weights="nvidia_1k")


def test_info_names_weights_license_and_preprocessing():
    info = gv.model_info("gcvit_xtiny")
    first = info.weights[0]
    assert (first.weights, first.license, first.top1) == ("nvidia_in1k", "CC-BY-NC-SA-4.0", 82.0)
    assert first.preprocessing.crop_ratio == 0.875


def test_preprocessing_is_that_of_the_weights():
    assert gv.preprocessing("gcvit_tiny", weights="nvidia_in1k").crop_ratio == 1.0
    large = gv.preprocessing("gcvit_large_384")
    assert (large.image_size, large.crop_mode) == ((384, 384), "squash")
    assert gv.create_model("gcvit_xxtiny", image_size=(64, 96), num_classes=2).preprocessing.image_size == (64, 96)


def test_classes_give_their_number():
    model = gv.create_model("gcvit_xxtiny", classes=["cat", "dog"], image_size=32)
    assert model.spec.num_classes == 2
    assert model.class_names == ("cat", "dog")
    with pytest.raises(ValueError, match="num_classes=-1 must be at least 1"):
        gv.create_model("gcvit_xxtiny", num_classes=-1)


def test_a_saved_model_opens_as_it_was(tmp_path):
    model = gv.create_model("gcvit_xxtiny", classes=["cat", "dog"], image_size=32, in_channels=1).eval()
    path = tmp_path / "pets.safetensors"
    gv.save_weights(model, path)
    opened = gv.open_checkpoint(path)
    images = torch.randn(2, 1, 32, 32)
    assert torch.equal(opened(images), model(images))
    assert opened.spec == model.spec
    assert opened.classes == model.classes
    assert opened.preprocessing == model.preprocessing
    assert not opened.training


def test_heads_are_listed_where_they_are_asked_for():
    assert len(gv.list_models("*_upernet")) == 14
    assert gv.list_models("gpvit_l1_*mask_rcnn") == ["gpvit_l1_mask_rcnn", "gpvit_l1_cascade_mask_rcnn"]
    assert gv.list_models("gpvit_l1*", kind="segment") == ["gpvit_l1_upernet", "gpvit_l1_segformer"]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"img_size": 64}, r"unknown argument 'img_size' of create_model\(\)\. Did you mean 'image_size'\?"),
        ({"in_chans": 1}, "Did you mean 'in_channels'"),
        ({"nb_classes": 3}, "Did you mean 'num_classes'"),
        ({"num_clases": 3}, "Did you mean 'num_classes'"),
        ({"pretrained": True}, r"Use weights='published' for published weights, or weights= with a name or file\."),
        ({"pretrained_cfg_overlay": {}}, "Use weights='published'"),
    ],
)
def test_unknown_arguments_are_answered_with_the_right_name(given, text):
    with pytest.raises(TypeError, match=text):
        gv.create_model("gcvit_xxtiny", **given)


@pytest.mark.parametrize("head", ["", "_segformer", "_retinanet"])
def test_predict_takes_the_dtype_of_the_model(head):
    model = gv.create_model(f"gcvit_xxtiny{head}", num_classes=3, image_size=64).bfloat16()
    (answer,) = model.predict(Image.new("RGB", (64, 64), (200, 30, 90)))
    assert answer
    assert next(model.parameters()).dtype == torch.bfloat16

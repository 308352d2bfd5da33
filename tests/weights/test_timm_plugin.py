"""Our models in timm's registry, used as timm's users use models."""

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2

import globalvit.timm_plugin  # noqa: F401
from globalvit.build import create_model, list_models, load_weights
from globalvit.weights import catalog

NAME = "globalvit_gcvit_xxtiny"


@pytest.fixture(autouse=True)
def _offline(no_hub):
    """Nothing may be downloaded here."""


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64)


def test_every_model_is_registered():
    assert set(timm.list_models("globalvit_*")) == {f"globalvit_{name}" for name in list_models()}
    tagged = {f"globalvit_{record.model}.{record.weights}" for record in catalog.RECORDS}
    assert set(timm.list_pretrained("globalvit_*")) >= tagged
    assert timm.is_model(NAME)


def test_features_only():
    model = timm.create_model("globalvit_gcvit_tiny2", features_only=True).eval()
    assert model.feature_info.channels() == [64, 128, 256, 512]
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    with torch.inference_mode():
        maps = model(torch.randn(1, 3, 64, 96))
    assert [tuple(x.shape) for x in maps] == [(1, 64, 16, 24), (1, 128, 8, 12), (1, 256, 4, 6), (1, 512, 2, 3)]


def test_gpvit_gives_its_one_map_and_its_logits(golden):
    plain = "globalvit_gpvit_l1"
    model = timm.create_model(plain, features_only=True).eval()
    assert (model.feature_info.channels(), model.feature_info.reduction()) == ([216], [8])
    with torch.inference_mode():
        assert [tuple(x.shape) for x in model(torch.randn(1, 3, 64, 96))] == [(1, 216, 8, 12)]
    vectors = golden("gpvit_cls_L1")
    overlay = {"state_dict": vectors.state_dict()}
    model = timm.create_model(plain, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    with torch.inference_mode():
        vectors.check("logits", model(vectors.images()))


def test_features_are_the_backbones_maps(official, images):
    ours = create_model("gcvit_xxtiny").eval()
    load_weights(ours, official)
    model = timm.create_model(
        NAME, features_only=True, pretrained=True, pretrained_cfg_overlay={"state_dict": official}
    )
    with torch.inference_mode():
        for got, expected in zip(model.eval()(images), ours.backbone(images), strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize(("indices", "expected"), [((0, 2), [0, 2]), ((1,), [1]), ((-1,), [3]), (2, [2, 3])])
def test_out_indices_choose_maps_and_drop_what_lies_behind(official, images, indices, expected):
    overlay = {"state_dict": official}
    every, some = (
        timm.create_model(NAME, features_only=True, pretrained=True, pretrained_cfg_overlay=overlay, **chosen).eval()
        for chosen in ({}, {"out_indices": indices})
    )
    assert some.feature_info.channels() == [[64, 128, 256, 512][index] for index in expected]
    with torch.inference_mode():
        maps = every(images)
        assert all(torch.equal(got, maps[index]) for got, index in zip(some(images), expected, strict=True))
    sum(x.mean() for x in some.train()(images)).backward()
    assert not [name for name, parameter in some.named_parameters() if parameter.grad is None]


def test_out_indices_out_of_range_are_told():
    with pytest.raises(ValueError, match=r"out_indices=\(0, 4\) is out of range: there are 4 maps, 0 to 3"):
        timm.create_model(NAME, features_only=True, out_indices=(0, 4))


def test_forward_is_features_then_head(images):
    model = timm.create_model(NAME, num_classes=7).eval()
    with torch.inference_mode():
        features = model.forward_features(images)
        assert features.shape == (2, 512, 2, 2)
        assert model.forward_head(features, pre_logits=True).shape == (2, 512)
        assert torch.equal(model.forward_head(features), model(images))
        assert model(images).shape == (2, 7)
    assert (model.num_classes, model.num_features, model.head_hidden_size) == (7, 512, 512)
    assert model.get_classifier().out_features == 7


def test_the_classifier_can_be_replaced(images):
    model = timm.create_model(NAME).eval()
    with torch.inference_mode():
        model.reset_classifier(5)
        assert model(images).shape == (2, 5)
        model.reset_classifier(0)
        assert model(images).shape == (2, 512)
        model.reset_classifier(0, "")
        assert model(images).shape == (2, 512, 2, 2)
        model.reset_classifier(4, "max")
        assert model(images).shape == (2, 4)
    assert (model.num_classes, model.global_pool) == (4, "max")
    with pytest.raises(ValueError, match="global_pool='' leaves a map; num_classes=4 requires global_pool='avg'"):
        model.reset_classifier(4, "")
    with pytest.raises(ValueError, match="global_pool='sum' is not one of 'avg', 'max', ''"):
        model.reset_classifier(4, "sum")


@pytest.mark.parametrize("kept", [{"dtype": torch.bfloat16}, {"device": "meta"}, {"dtype": torch.float64}])
def test_a_replaced_classifier_keeps_device_and_dtype(kept):
    for model in (timm.create_model(NAME).to(**kept), timm.create_model(NAME, **kept)):
        like = model.head.linear.weight
        model.reset_classifier(0)
        model.reset_classifier(5)
        assert (model.head.linear.weight.dtype, model.head.linear.bias.device) == (like.dtype, like.device)
        assert all(getattr(like, name) == torch.empty(0, **kept).__getattribute__(name) for name in kept)


def test_another_input_size_chooses_the_windows_that_a_new_model_would_have(official, images):
    overlay = {"state_dict": official}
    model = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    made = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay, img_size=64).eval()
    model.backbone.stages[0].requires_grad_(False)
    model.set_input_size(img_size=64)
    assert model.backbone.config.window == made.backbone.config.window == (2, 2, 4, 2)
    assert [p.requires_grad for p in model.backbone.stages[0].parameters()].count(True) == 0
    with torch.inference_mode():
        assert torch.equal(model(images), made(images))
    before = list(model.parameters())
    model.set_input_size()
    model.set_input_size((64, 64))
    assert all(one is other for one, other in zip(before, model.parameters(), strict=True))
    model.set_input_size(window_size=[7, 7, 14, 7])
    assert model.backbone.stages[2].global_query.window == 14


def test_input_sizes_that_do_not_fit_are_told():
    with pytest.raises(ValueError, match=r"window=\[7\] must be four whole numbers from 1 up, one for each stage"):
        timm.create_model(NAME).set_input_size(window_size=[7])
    gpvit = timm.create_model("globalvit_gpvit_l1", device="meta")
    gpvit.set_input_size(img_size=448)
    with pytest.raises(ValueError, match=r"window_size=7 chooses the windows of GC ViT; GPViT has stripes instead"):
        gpvit.set_input_size(window_size=7)


def test_intermediates(images):
    model = timm.create_model(NAME).eval()
    with torch.inference_mode():
        last, maps = model.forward_intermediates(images)
        assert torch.equal(last, maps[-1])
        (one,) = model.forward_intermediates(images, indices=[1], output_fmt="NHWC", intermediates_only=True)
        assert torch.equal(one.permute(0, 3, 1, 2), maps[1])
        with pytest.raises(ValueError, match="output_fmt='NLC' is not known; give 'NCHW' or 'NHWC'"):
            model.forward_intermediates(images, output_fmt="NLC")


def test_arguments_reach_the_model():
    arguments = {"num_classes": 3, "in_chans": 1, "img_size": 64, "drop_path_rate": 0.11, "drop_rate": 0.2}
    model = timm.create_model(NAME, **arguments)
    config = model.backbone.config
    assert (config.in_channels, config.window, config.drop_path) == (1, (2, 2, 4, 2), 0.11)
    assert model.head.drop.p == 0.2
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 3)


def test_a_file_can_be_given(official_file, images):
    overlay = {"file": str(official_file)}
    model = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    ours = create_model("gcvit_xxtiny", official_file).eval()
    with torch.inference_mode():
        assert torch.equal(model(images), ours(images))


def test_a_file_is_adapted(official_file, official):
    overlay = {"file": str(official_file)}
    model = timm.create_model(NAME, pretrained=True, num_classes=5, in_chans=1, pretrained_cfg_overlay=overlay)
    assert torch.equal(model.backbone.norm.weight, official["norm.weight"])
    expected = official["patch_embed.proj.weight"].sum(1, keepdim=True)
    assert torch.equal(model.backbone.stem.conv.weight, expected)


def test_pretrained_finds_a_copy(no_hub, official):
    no_hub.mkdir(parents=True)
    torch.save({"state_dict": official}, no_hub / "gcvit_1k_xxtiny.pth.tar")
    for name in (NAME, f"{NAME}.nvidia_in1k"):
        model = timm.create_model(name, pretrained=True)
        assert torch.equal(model.head.linear.weight, official["head.weight"])


def test_pretrained_without_network_says_where_to_put_a_copy(no_hub):
    with pytest.raises(
        OSError, match=rf"gcvit_xxtiny\.in1k\.safetensors could not be fetched .* put a copy into {no_hub} as"
    ):
        timm.create_model(f"{NAME}.timm_in1k", pretrained=True)


def test_a_foreign_state_dict_is_refused(official):
    overlay = {"state_dict": official}
    with pytest.raises(ValueError, match="is a checkpoint of another model than gcvit_tiny: 247 entries differ"):
        timm.create_model("globalvit_gcvit_tiny", pretrained=True, pretrained_cfg_overlay=overlay)


def test_timm_knows_the_evaluation_crop():
    data = timm.data.resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg("globalvit_gcvit_small").to_dict())
    assert (data["crop_pct"], data["crop_mode"], data["input_size"]) == (0.875, "center", (3, 224, 224))
    large = timm.get_pretrained_cfg("globalvit_gcvit_large_384")
    assert (large.crop_mode, large.input_size, large.license) == ("squash", (3, 384, 384), "CC-BY-NC-SA-4.0")


def test_layer_decay_and_spared_parameters():
    model = timm.create_model(NAME)
    assert len(model.no_weight_decay()) == 12
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.9)
    scales = {group["lr_scale"] for group in optimizer.param_groups}
    assert min(scales) == pytest.approx(0.9**13)  # the stem, twelve blocks, the head
    assert max(scales) == 1.0
    spared = {id(p) for group in optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
    assert all(id(block.attention.bias_table) in spared for stage in model.backbone.stages for block in stage.blocks)


def test_checkpointing_can_be_switched(images):
    model = timm.create_model(NAME, drop_path_rate=0.0)
    plain = model(images)
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(images), plain)
    model(images).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_state_dicts_are_those_of_our_tasks(is_equal):
    model = timm.create_model(NAME, num_classes=4)
    task = create_model("gcvit_xxtiny", model.state_dict(), num_classes=4)
    assert is_equal(task.state_dict(), model.state_dict())

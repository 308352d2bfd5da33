"""What is particular to GC ViT: its sizes, windows, queries and published outputs."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from globalvit.build import create_backbone, create_model, list_models, load_weights, model_info
from globalvit.models.gcvit import GCViT, GlobalQuery
from globalvit.models.variants import GCVIT, GCViTConfig, choose_window, ratio_window

SMALLEST = "gcvit_xxtiny"


def test_parts_between_blocks_have_the_depth_of_their_neighbors():
    backbone = create_backbone(SMALLEST)
    assert backbone.depth_of("stages.1.global_query.blocks.0.depthwise.weight") == 3
    assert (
        backbone.depth_of("stages.1.blocks.1.norm1.weight") == backbone.depth_of("stages.1.downsample.norm1.bias") == 4
    )


@pytest.mark.parametrize("name", list_models("gcvit_*"))
def test_parameters_are_the_published_ones(name):
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == model_info(name).published.params


# That the published figures are what formulas give, which are what is counted: test_complexity.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == SMALLEST else pytest.mark.slow) for name in list_models("gcvit_*")]
)
def test_multiply_adds_are_the_published_ones(name):
    side = GCVIT[name].image_size
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = create_model(name)
        model.eval()(torch.empty(1, 3, side, side))
    # The counter counts a multiply-add as two.
    assert counter.get_total_flops() / 2e9 == pytest.approx(model_info(name).published.gmacs, rel=5e-3)


@pytest.mark.parametrize(
    ("image_size", "window", "expected"),
    [
        (None, None, (7, 7, 14, 7)),
        (224, None, (7, 7, 14, 7)),
        (512, None, (7, 7, 14, 7)),
        ((400, 223), None, (7, 7, 14, 7)),
        (208, None, (7, 7, 13, 7)),  # 6.5 is rounded up
        (128, None, (4, 4, 8, 4)),
        (64, None, (2, 2, 4, 2)),
        (32, None, (1, 1, 2, 1)),
        (512, "ratio", (16, 16, 32, 16)),
        (None, "ratio", (7, 7, 14, 7)),
        (64, (7, 7, 14, 7), (7, 7, 14, 7)),
    ],
)
def test_windows_follow_the_image_size_asked_for(image_size, window, expected):
    assert choose_window(GCVIT[SMALLEST], image_size, window) == expected
    with torch.device("meta"):
        backbone = create_backbone(SMALLEST, image_size=image_size, window=window)
    assert backbone.config.window == expected


def test_large_models_have_the_windows_of_their_own_size():
    assert ratio_window((384, 384)) == GCVIT["gcvit_large_384"].window
    assert ratio_window((512, 512)) == GCVIT["gcvit_large_512"].window


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 16}, "image_size=16 is too small; give 32 pixels or more a side"),
        ({"image_size": (64, 64, 3)}, r"image_size=\(64, 64, 3\) must be a side or \(height, width\)"),
        ({"window": "rato"}, "window='rato' is not known; give four sides such as"),
        ({"window": (7, 7)}, r"window=\(7, 7\) must be four whole numbers from 1 up"),
        ({"window": (7, 7, 0, 7)}, r"window=\(7, 7, 0, 7\) must be four whole numbers"),
        ({"in_channels": 0}, "in_channels=0 must be at least 1"),
        ({"drop_path": 1.0}, r"drop_path=1.0 must be in \[0, 1\)"),
    ],
)
def test_values_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_backbone(SMALLEST, **arguments)


def test_heads_must_divide_the_channels():
    with pytest.raises(ValueError, match="num_heads=3 must divide the stage's 64 channels"):
        replace(GCVIT[SMALLEST], num_heads=(3, 4, 8, 16))


def test_a_misspelt_field_is_refused():
    with pytest.raises(TypeError):
        GCViTConfig(depth=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), width=8, mlp_ratio=2.0)


def test_every_norm_has_the_published_eps():
    with torch.device("meta"):
        norms = [m for m in create_backbone("gcvit_small").modules() if isinstance(m, nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-5}


def test_queries_are_resized_to_the_window_where_pooling_gives_another_grid():
    query = GlobalQuery(8, 2, window=7, blocks=1, pools=1)
    assert query(torch.randn(2, 20, 13, 8)).shape == (2, 2, 49, 4)


def test_a_query_keeps_heads_and_tokens_in_place():
    query = GlobalQuery(8, 2, window=3, blocks=0, pools=0)
    x = torch.randn(1, 3, 3, 8)
    assert torch.equal(query(x)[0, 1, 5], x[0, 1, 2, 4:])


def test_drop_path_grows_linearly_over_the_network():
    backbone = create_backbone(SMALLEST, drop_path=0.22)
    rates = [block.drop_path.rate for stage in backbone.stages for block in stage.blocks]
    assert rates == pytest.approx([0.02 * i for i in range(12)])


def test_initialization_follows_the_table():
    backbone = create_backbone("gcvit_small")
    attention = backbone.stages[2].blocks[0].attention
    for tensor in (attention.qkv.weight, attention.bias_table):
        assert tensor.std().item() == pytest.approx(0.02, rel=0.1)
    assert not attention.qkv.bias.any()
    assert backbone.stages[0].blocks[0].scale1.tolist() == pytest.approx([1e-5] * 96)


def test_bias_tables_are_spared_from_decay():
    backbone = create_backbone(SMALLEST)
    assert len(backbone.no_decay_names()) == 12
    assert all(name.endswith("attention.bias_table") for name in backbone.no_decay_names())


def watch(backbone: GCViT, images):
    """Maps of the intermediate steps that the golden vectors hold."""
    seen = {}
    hooks = [backbone.stem.register_forward_hook(lambda *a: seen.update(patch_embed=a[2]))]
    for i, stage in enumerate(backbone.stages):
        keep_query = lambda *a, i=i: seen.update({f"q_global{i}": a[2].unsqueeze(1)})  # noqa: E731
        keep_level = lambda *a, i=i: seen.update({f"level{i}": a[2]})  # noqa: E731
        hooks.append(stage.global_query.register_forward_hook(keep_query))
        hooks.append((stage.downsample or stage.blocks[-1]).register_forward_hook(keep_level))
    with torch.inference_mode():
        seen["maps"] = backbone(images)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("gcvit_cls_xxtiny", "gcvit_xxtiny"),
        ("gcvit_cls_tiny", "gcvit_tiny"),
        ("gcvit_cls_small", "gcvit_small"),
        pytest.param("gcvit_cls_large_384_21k", "gcvit_large_384", marks=pytest.mark.slow),
    ],
)
def test_classifiers_give_the_published_outputs(case, name, golden, official_file):
    vectors = golden(case)
    model = create_model(name, weights=official_file(vectors.state_dict())).eval()
    seen = watch(model.backbone, vectors.images())
    for step in ("patch_embed", *(f"{part}{i}" for i in range(4) for part in ("q_global", "level"))):
        vectors.check(step, seen[step])
    last = seen["maps"][-1]
    vectors.check("norm", last.permute(0, 2, 3, 1))
    vectors.check("pooled", last.mean((2, 3)))
    with torch.inference_mode():
        vectors.check("logits", model(vectors.images()))


@pytest.mark.parametrize("source", ["detection", "classification"])
def test_the_detection_form_gives_the_published_maps(source, golden, official_file):
    vectors = golden("gcvit_backbone_det_tiny" + ("_from_cls" if source == "classification" else "") + "_320x416")
    backbone = create_backbone("gcvit_tiny", form="detection").eval()
    published = vectors.state_dict()
    if source == "classification":
        classifier = golden("gcvit_cls_tiny").state_dict()
        report = load_weights(backbone, official_file(classifier))
        assert "31 position tables were resized from windows 7, 7, 14, 7 to 24, 24, 24, 24." in str(report)
        for i, norm in enumerate(backbone.norms):
            norm.load_state_dict({leaf: published[f"norm{i}.{leaf}"] for leaf in ("weight", "bias")})
        tables = backbone.stages[2].blocks[0].attention.bias_table
        vectors.check("table_level2_block0", tables)
    else:
        load_weights(backbone, official_file(published))
    seen = watch(backbone, vectors.images())
    for i, x in enumerate(seen["maps"]):
        vectors.check(f"q_global{i}", seen[f"q_global{i}"])
        vectors.check(f"out{i}", x)

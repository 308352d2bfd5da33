"""What is particular to GPViT: its sizes, stripes, groups and published outputs."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from globalvit.build import create_backbone, create_model, list_models, model_info
from globalvit.models.gpvit import GroupBlock, LocalBlock
from globalvit.models.ops import attend_stripes
from globalvit.models.variants import GPVIT, GPViTConfig

SMALLEST = "gpvit_l1"


@pytest.mark.parametrize("name", list_models("gpvit_*"))
def test_parameters_are_the_published_ones(name):
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == model_info(name).published.params


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == SMALLEST else pytest.mark.slow) for name in list_models("gpvit_*")]
)
def test_multiply_adds_are_the_published_ones(name):
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = create_model(name)
        model.eval()(torch.empty(1, 3, 224, 224))
    assert counter.get_total_flops() / 2e9 == pytest.approx(model_info(name).published.gmacs, rel=5e-3)


def test_norms_have_the_published_eps():
    backbone = create_backbone(SMALLEST, outputs=(2, 5, 8, 11))
    inside = {kind: set() for kind in (LocalBlock, GroupBlock)}
    for block in backbone.blocks:
        inside[type(block)] |= {m.eps for m in block.modules() if isinstance(m, nn.LayerNorm)}
    assert inside == {LocalBlock: {1e-6}, GroupBlock: {1e-5}}
    assert {norm.eps for norm in [backbone.norm, *backbone.norms.values()]} == {1e-6}
    assert {m.eps for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-5}
    assert create_model(SMALLEST).head.pool.norm.eps == 1e-5


def test_stripes_follow_the_formula():
    heads, dim, stripe = 2, 4, 2
    qkv = torch.randn(2, 6, 8, 3, 2, heads * dim, dtype=torch.float64)
    convs = [nn.Conv2d(heads * dim, heads * dim, 3, padding=1, groups=heads * dim).double() for _ in range(2)]
    ours = attend_stripes(qkv.flatten(3), *convs, stripe=stripe, heads=heads)
    expected = torch.empty(2, 6, 8, 2, heads * dim, dtype=torch.float64)
    for half, (rows, columns) in enumerate([(6, stripe), (stripe, 8)]):
        for top in range(0, 6, rows):
            for left in range(0, 8, columns):
                here = (slice(None), slice(top, top + rows), slice(left, left + columns))
                part = qkv[here][..., half, :]
                q, k, v = part.flatten(1, 2).unflatten(-1, (heads, dim)).permute(2, 0, 3, 1, 4)
                out = (q @ k.transpose(-2, -1) * dim**-0.5).softmax(-1) @ v
                own = convs[half](part[..., 2, :].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
                expected[here][..., half, :] = out.transpose(1, 2).reshape(2, rows, columns, -1) + own
    torch.testing.assert_close(ours, expected.flatten(3), rtol=1e-10, atol=1e-10)


def test_each_output_block_has_a_map_and_a_norm_of_its_own():
    backbone = create_backbone(SMALLEST, outputs=(2, 11)).eval()
    assert backbone.channels == (216, 216)
    assert backbone.strides == (8, 8)
    images = torch.randn(1, 3, 64, 48)
    first, last = backbone(images)
    alone = create_backbone(SMALLEST).eval()
    alone.load_state_dict({k: v for k, v in backbone.state_dict().items() if not k.startswith("norms.")})
    assert torch.equal(alone(images)[0], last)
    assert not torch.equal(first, last)


def test_drop_path_grows_linearly():
    blocks = create_backbone(SMALLEST, drop_path=0.22).blocks
    rates = [(block.scatter if isinstance(block, GroupBlock) else block).drop_path.rate for block in blocks]
    assert rates == pytest.approx([0.02 * i for i in range(12)])
    assert blocks[4].mix.drop_path.rate == pytest.approx(0.08)


def test_tokens_and_positions_are_spared_from_decay():
    spared = create_backbone(SMALLEST).no_decay_names()
    assert spared == {"position_embedding", *(f"blocks.{block}.group_tokens" for block in (1, 4, 7, 10))}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": (7, 7, 14, 7)}, r"window=\(7, 7, 14, 7\) chooses the windows of GC ViT; GPViT has stripes"),
        (
            {"form": "one_stage", "outputs": (2, 5)},
            r"outputs=\(2, 5\) chooses maps of stride 8; with form='one_stage' the adapter makes the maps",
        ),
        ({"outputs": (5, 2)}, r"outputs=\(5, 2\) must be growing numbers of blocks under 12"),
        ({"image_size": 16}, "image_size=16 is too small"),
        ({"in_channels": 0}, "in_channels=0 must be at least 1"),
        ({"drop_path": -0.1}, r"drop_path=-0.1 must be in \[0, 1\)"),
    ],
)
def test_values_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_backbone(SMALLEST, **arguments)


def test_outputs_are_not_for_gcvit():
    with pytest.raises(ValueError, match=r"outputs=\(2,\) chooses blocks of GPViT"):
        create_backbone("gcvit_xxtiny", outputs=(2,))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="width=100 must be a multiple of the heads"):
        replace(GPVIT[SMALLEST], width=100)
    with pytest.raises(TypeError):
        GPViTConfig(widht=216, stem_convs=0, pooling="mean")


@pytest.mark.parametrize("case", ["gpvit_cls_L1", "gpvit_cls_L1_288x352"])
def test_classifiers_give_the_published_outputs(case, golden, mm_file):
    vectors = golden(case)
    model = create_model(SMALLEST, weights=mm_file(vectors.state_dict())).eval()
    seen = {}

    def watch(name, module):
        module.register_forward_hook(lambda *call: seen.update({name: call[2]}))

    watch("patch_embed", model.backbone.stem)
    for index, block in enumerate(model.backbone.blocks):
        watch(f"block{index:02}", block)
        if isinstance(block, GroupBlock):
            watch(f"block{index:02}.group_tokens", block.gather)
            watch(f"block{index:02}.mixer", block.mix)
            watch(f"block{index:02}.ungroup", block.scatter)
    watch("neck", model.head.pool)
    with torch.inference_mode():
        vectors.check("logits", model(vectors.images()))
    for name, tensor in seen.items():
        vectors.check(name, tensor.flatten(1, 2) if tensor.ndim == 4 else tensor)

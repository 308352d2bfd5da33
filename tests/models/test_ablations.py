"""The designs of the paper's ablations: every one keeps the contract of a backbone, alone and together."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from globalvit.build import create_backbone, create_model, open_checkpoint, save_weights
from globalvit.cli.main import main
from globalvit.models.ablations import CHOICES, check_ablation
from globalvit.models.gcvit_ablated import PatchMerging, ShiftedWindowAttention, shift_mask
from globalvit.models.layers import DropPath
from globalvit.models.variants import VARIANTS

SMALLEST = "gcvit_xxtiny"
SWIN = ("patch_stem", "patch_merging", "shifted")
ABLATIONS = [*((word,) for word in CHOICES), SWIN, ("conv_pool", "learned_query", "no_squeeze_excite")]


def randomised(backbone):
    """Tables and queries of 0.02 would hide what they do."""
    for name, parameter in backbone.named_parameters():
        if name in backbone.no_decay_names():
            nn.init.normal_(parameter, std=0.3)
    return backbone


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Sixteen channels and two blocks in each stage."""
    small = replace(VARIANTS[SMALLEST], depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), width=16)
    monkeypatch.setitem(VARIANTS, SMALLEST, small)


@pytest.fixture(params=ABLATIONS, ids="+".join)
def backbone(request):
    return randomised(create_backbone(SMALLEST, ablation=request.param, image_size=64))


@pytest.mark.parametrize("size", [(64, 64), (70, 97)], ids=str)
def test_images_do_not_mix_and_maps_have_the_stated_shapes(backbone, size):
    images = torch.randn(3, 3, *size)
    with torch.inference_mode():
        maps, alone = backbone.eval()(images), backbone(images[1:2])
    for together, single, channels, stride in zip(maps, alone, backbone.channels, backbone.strides, strict=True):
        assert together.shape == (3, channels, -(-size[0] // stride), -(-size[1] // stride))
        torch.testing.assert_close(together[1:2], single, rtol=1e-4, atol=1e-5)


def test_every_parameter_learns_and_has_a_depth(backbone):
    maps = backbone.eval()(torch.randn(2, 3, 64, 64))
    sum((x * torch.randn_like(x)).sum() for x in maps).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    assert {backbone.depth_of(name) for name, _ in backbone.named_parameters()} == set(range(backbone.num_depths))


def test_images_are_left_out_of_branches_in_training(backbone):
    for module in backbone.modules():
        if isinstance(module, DropPath):
            module.rate = 0.5
    maps = backbone.train()(torch.randn(6, 3, 64, 64))
    assert all(one.isfinite().all() for one in maps)


def test_multiply_adds_can_be_counted():
    with torch.device("meta"), torch.no_grad():
        counts = {}
        for words in [(), *ABLATIONS]:
            with FlopCounterMode(display=False) as counter:
                create_backbone(SMALLEST, ablation=words)(torch.empty(1, 3, 224, 224))
            counts[words] = counter.get_total_flops()
    # A window more is masked, not left out, so shifting costs what local windows cost.
    assert counts[("shifted",)] == counts[("local_only",)]
    assert counts[("patch_stem",)] < counts[()]
    assert counts[("no_squeeze_excite",)] < counts[()] < counts[("conv_pool",)]


@pytest.mark.parametrize("size", [(8, 12), (7, 11)], ids=str)
def test_shifted_windows_are_the_windows_of_a_shifted_grid(size):
    """Tokens see those of the window that lies half a side further, and none from the opposite border."""
    window, attention = 4, ShiftedWindowAttention(8, 2, 4).eval()
    nn.init.normal_(attention.bias_table)
    x = torch.randn(1, *size, 8, requires_grad=True)
    out = attention(x, x)
    region = [[(row + window // 2) // window, (column + window // 2) // window] for row, column in [(1, 2), (5, 6)]]
    for (row, column), (above, left) in zip([(1, 2), (5, 6)], region, strict=True):
        (gradient,) = torch.autograd.grad(out[0, row, column].sum(), x, retain_graph=True)
        seen = gradient[0].abs().sum(-1) > 0
        rows, columns = ((torch.arange(side) + window // 2) // window for side in size)
        assert torch.equal(seen, (rows == above)[:, None] & (columns == left)[None, :])


def test_shifted_windows_have_no_maps_to_explain():
    x = torch.randn(1, 8, 8, 8)
    with pytest.raises(ValueError, match="shifted windows, which have no maps; choose a block of even number"):
        ShiftedWindowAttention(8, 2, 4).attention_maps(x, x)


def test_an_axis_with_one_window_is_not_shifted():
    attention = ShiftedWindowAttention(8, 2, 4)
    x = torch.randn(1, 3, 4, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(attention(x, x)[0, 0, 0].sum(), x)
    assert (gradient.abs().sum(-1) > 0).all()
    assert shift_mask(torch.empty(1, 4, 4, 1), 4, 0, 0).all()


def test_patch_merging_puts_neighbors_side_by_side():
    merging = PatchMerging(1, 4)
    merging.norm = nn.Identity()
    nn.init.eye_(merging.reduction.weight)
    grid = torch.arange(9.0).reshape(1, 3, 3, 1)
    assert merging(grid)[0].tolist() == [[[0, 1, 3, 4], [2, 0, 5, 0]], [[6, 7, 0, 0], [8, 0, 0, 0]]]


def test_a_saved_model_is_built_again_with_its_designs(tmp_path):
    model = create_model(SMALLEST, ablation=SWIN, num_classes=3, image_size=32).eval()
    save_weights(model, tmp_path / "swin.safetensors")
    again = open_checkpoint(tmp_path / "swin.safetensors")
    images = torch.randn(2, 3, 32, 32)
    assert again.spec == model.spec
    assert torch.equal(again(images), model(images))


def test_designs_with_the_same_names_are_told_apart(tmp_path, capsys):
    file = str(tmp_path / "shifted.safetensors")
    save_weights(create_model(SMALLEST, ablation="shifted", image_size=32), file)
    for other, words in ((), "no ablation"), ("local_only", "ablation=local_only"):
        with pytest.raises(ValueError, match=f"shifted.safetensors has ablation=shifted and the model {words}; create"):
            create_model(SMALLEST, file, ablation=other, image_size=32)
    assert main(["convert", file, str(tmp_path / "same.safetensors"), "--to", "ours"]) == 0
    assert open_checkpoint(tmp_path / "same.safetensors").spec.ablation == ("shifted",)
    assert main(["convert", file, str(tmp_path / "timm.safetensors"), "--to", "timm"]) == 1
    assert "has ablation=shifted, which only --to ours supports" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["gcvit_xxtiny_segformer", "gcvit_xxtiny_retinanet"])
def test_designs_serve_other_tasks(name):
    with torch.device("meta"):
        model = create_model(name, ablation=["shifted"])
    assert any(isinstance(module, ShiftedWindowAttention) for module in model.backbone.modules())


def test_words_are_put_in_order_and_may_come_in_one_text():
    assert check_ablation("shifted,patch_stem,shifted") == check_ablation(["patch_stem", "shifted"])
    assert create_model(SMALLEST, ablation="shifted,patch_stem").spec.ablation == ("patch_stem", "shifted")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ablation": ["shited"]}, "ablation='shited' is not known. Did you mean 'shifted'.*chosen with window="),
        ({"ablation": ["local_only", "shifted"]}, "local_only,shifted: both replace the global blocks; give one"),
        ({"ablation": ["no_squeeze_excite", "conv_pool", "patch_stem", "shifted"]}, "no squeeze-excite is left"),
        ({"name": "gpvit_l1", "ablation": ["shifted"]}, "ablation=shifted replaces parts of GC ViT; gpvit_l1 has none"),
        ({"weights": "nvidia_in1k", "ablation": ["shifted"]}, "nvidia_in1k are GC ViT.s own .*--weights none"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_model(**{"name": SMALLEST} | arguments)

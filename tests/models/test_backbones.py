"""The contract of every backbone; a new one adds a line to `BACKBONES`."""

import copy
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from globalvit.build import create_backbone, list_models
from globalvit.deploy.deploying import deploy
from globalvit.models.variants import VARIANTS

KEYS = Path(__file__).parent / "keys"
SMALLEST = "gcvit_xxtiny"
# name → arguments of create_backbone
BACKBONES = {
    "gcvit_xxtiny": {"name": "gcvit_xxtiny"},
    "gcvit_small": {"name": "gcvit_small"},
    "gcvit_xxtiny_detection": {"name": "gcvit_xxtiny", "form": "detection", "window": (5, 5, 4, 3)},
    "gpvit_l1": {"name": "gpvit_l1"},
    "gpvit_l2_outputs": {"name": "gpvit_l2", "outputs": (2, 5, 8, 11)},
    "gpvit_l1_detection": {"name": "gpvit_l1", "form": "detection"},
    "gpvit_l1_one_stage": {"name": "gpvit_l1", "form": "one_stage"},
}
# What is made smaller where the published size proves nothing more: names, and the smallest of each family, stay whole.
SMALLER = {
    "gcvit_small": {"depths": (2, 2, 2, 2), "width": 48},
    "gpvit_l2_outputs": {"width": 48},
    "gpvit_l1_detection": {"width": 48},
    "gpvit_l1_one_stage": {"width": 48},
}
SIZES = [(224, 224), (256, 256), (320, 416), (64, 64), (33, 47)]
GPVIT_SIZES = [(224, 224), (200, 336), (64, 64), (97, 131)]
QUICK = {"gcvit_xxtiny", "gpvit_l1"}
# Padded and oblong at once, as smaller ones are too.
LARGE = [(320, 416), (200, 336)]
# A key's bias adds the same to all logits of a query, which softmax does not see. The mixer's last bias adds a constant
# to all channels of a group, which the LNs behind it take away.
DEAD = re.compile(r"blocks\.\d+\.((gather|scatter)\.key|mix\.tokens\.fc2)\.bias")


def all_models_and_sizes():
    for name in list_models():
        for size in GPVIT_SIZES if name.startswith("gpvit") else SIZES:
            is_slow = name not in QUICK or size in LARGE
            yield pytest.param(name, size, marks=pytest.mark.slow if is_slow else [], id=f"{name}-{size}")


@pytest.fixture(params=BACKBONES)
def backbone(request, monkeypatch):
    arguments = BACKBONES[request.param]
    name = arguments["name"]
    monkeypatch.setitem(VARIANTS, name, replace(VARIANTS[name], **SMALLER.get(request.param, {})))
    return create_backbone(**arguments)


def randomised(backbone):
    """Layer scales of 1e-5 would hide what the branches do; tables, biases and tokens of 0.02 nearly so."""
    for name, parameter in backbone.named_parameters():
        if parameter.ndim <= 1 or name in backbone.no_decay_names():
            torch.nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=0.3)
        elif not parameter.any():
            # Layers of deformable attention that start at 0 would keep the gradient from what comes before them.
            torch.nn.init.normal_(parameter, std=0.02)
    return backbone


def relative(ours, reference):
    return float((ours.double() - reference.double()).abs().max() / reference.abs().max())


@pytest.mark.parametrize(("name", "size"), list(all_models_and_sizes()))
def test_images_do_not_mix(name, size):
    check_that_images_do_not_mix(create_backbone(name), size)


def test_images_do_not_mix_in_any_form(backbone):
    check_that_images_do_not_mix(backbone, (70, 96))


def check_that_images_do_not_mix(backbone, size):
    backbone = randomised(backbone).eval()
    images = torch.randn(3, 3, *size)
    with torch.inference_mode():
        together = backbone(images)
        for i in range(3):
            for ours, alone in zip(together, backbone(images[i : i + 1]), strict=True):
                assert relative(ours[i : i + 1], alone) <= 1e-5


@pytest.mark.parametrize("size", [(64, 64), (33, 47), (70, 96)], ids=str)
def test_maps_have_the_stated_channels_and_strides(backbone, size):
    maps = backbone.eval()(torch.randn(2, 3, *size))
    for x, channels, stride in zip(maps, backbone.channels, backbone.strides, strict=True):
        assert x.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))


def test_every_parameter_learns(backbone):
    # In evaluation mode, as drop path may leave a block out for both images.
    maps = randomised(backbone).eval()(torch.randn(2, 3, 96, 96))
    # Random cotangents on every map: a plain sum would be constant after a LayerNorm.
    sum((x * torch.randn_like(x)).sum() for x in maps).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        largest = parameter.grad.abs().max()
        # What is dead by arithmetic gets rounding errors at most.
        assert largest < 1e-4 if DEAD.fullmatch(name) else largest > 0, (name, largest)


@pytest.mark.parametrize("name", BACKBONES)
def test_names_and_shapes_are_stable(name):
    with torch.device("meta"):
        state = create_backbone(**BACKBONES[name]).state_dict()
    listed = "".join(f"{key} {tuple(t.shape)}\n" for key, t in state.items())
    assert listed == (KEYS / f"{name}.txt").read_text()


def test_checkpointing_changes_neither_outputs_nor_gradients(backbone):
    images = torch.randn(2, 3, 64, 64)
    backbone.train()

    def run(enabled):
        backbone.set_checkpointing(enabled)
        backbone.zero_grad()
        torch.manual_seed(1)
        maps = backbone(images)
        sum(x.square().mean() for x in maps).backward()
        return [*maps, *(p.grad.clone() for p in backbone.parameters())]

    for plain, recomputed in zip(run(False), run(True), strict=True):
        assert torch.equal(plain, recomputed)


def test_bf16_stays_near_float32(backbone):
    backbone = randomised(backbone).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        reference = backbone(images)
        with torch.autocast("cpu", torch.bfloat16):
            autocast = backbone(images)
        whole = backbone.to(torch.bfloat16)(images.to(torch.bfloat16))
    for half in (autocast, whole):
        # bfloat16 keeps 8 bits, and rounding adds up over some forty layers.
        assert all(relative(ours, x) < 0.08 for ours, x in zip(half, reference, strict=True))


def test_channels_last_input_gives_the_same(backbone):
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        first = backbone.eval()(images)
        second = backbone.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    assert all(relative(ours, x) <= 1e-5 for ours, x in zip(second, first, strict=True))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.08)])
def test_deployed_gives_the_same_and_leaves_the_backbone_as_it_is(backbone, dtype, bound):
    backbone = randomised(backbone).eval()
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -1, 1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    deployed = deploy(copy.deepcopy(backbone).to(dtype))
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        pairs = zip(deployed(images.to(dtype)), backbone(images), strict=True)
    assert all(relative(ours, exact) <= bound for ours, exact in pairs)
    after = backbone.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.slow
def test_compiled_gives_the_same_in_one_graph_at_two_sizes(backbone):
    backbone = backbone.eval()
    compiled = torch.compile(backbone, fullgraph=True)
    with torch.inference_mode():
        for size in ((64, 64), (96, 70)):
            images = torch.randn(2, 3, *size)
            assert all(relative(a, b) <= 1e-5 for a, b in zip(compiled(images), backbone(images), strict=True))


@pytest.mark.parametrize("channels", [1, 4])
def test_any_number_of_channels(channels):
    backbone = create_backbone(SMALLEST, in_channels=channels)
    assert len(backbone(torch.randn(1, channels, 32, 32))) == 4
    expected = rf"expected images of shape \(batch, {channels}, height, width\), got \(1, 7, 32, 32\); create the model"
    with pytest.raises(ValueError, match=expected):
        backbone(torch.randn(1, 7, 32, 32))


def test_images_without_pixels_and_integers_are_refused(backbone):
    with pytest.raises(ValueError, match=r"expected images of at least one pixel, got shape \(1, 3, 0, 32\)"):
        backbone(torch.empty(1, 3, 0, 32))
    with pytest.raises(ValueError, match=r"expected floating-point images, .*, got uint8; use model.predict"):
        backbone(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_depths_grow_from_the_stem_to_the_last_block(backbone):
    depths = {name: backbone.depth_of(name) for name, _ in backbone.named_parameters()}
    assert set(depths.values()) == set(range(backbone.num_depths))
    assert all(depth == 0 for name, depth in depths.items() if name.startswith(("stem.", "position_embedding")))
    assert all(depth == backbone.num_depths - 1 for name, depth in depths.items() if name.startswith("norm."))

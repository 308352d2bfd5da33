"""The contract of every head that answers for pixels; a new one adds a line to `HEADS`."""

from pathlib import Path

import pytest
import torch
from torch import nn

from globalvit.heads.fcn import FCNHead
from globalvit.heads.segformer import SegFormerHead
from globalvit.heads.upernet import UPerNetHead
from globalvit.models.layers import resize_bilinear

KEYS = Path(__file__).parent / "keys"
HEADS = {
    "upernet": UPerNetHead,
    "segformer": SegFormerHead,
    "fcn": lambda *maps, **width: FCNHead(*maps, index=1, **width),
}
# Channels and strides of GC ViT's kind of maps and of GPViT's.
BACKBONES = {"strides": ((6, 8, 10, 12), (4, 8, 16, 32)), "plain": ((8, 8, 8), (8, 8, 8))}
SIZES = [(64, 64), (32, 32), (33, 97), (130, 70)]


def maps_of(backbone, size, images=2):
    channels, strides = BACKBONES[backbone]
    return [
        torch.randn(images, dim, -(-size[0] // stride), -(-size[1] // stride))
        for dim, stride in zip(channels, strides, strict=True)
    ]


@pytest.fixture(params=BACKBONES)
def backbone(request):
    return request.param


@pytest.fixture(params=HEADS)
def head(request, backbone):
    made = HEADS[request.param](*BACKBONES[backbone], 5, width=16)
    made.init_weights()
    nn.init.normal_(made.classifier.weight)
    # Statistics of its own make a norm's mistakes visible.
    for norm in made.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, std=0.3)
    return made


def relative(ours, reference):
    return float((ours.double() - reference.double()).abs().max() / reference.abs().max())


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_images_do_not_mix_and_logits_are_on_a_maps_grid(head, backbone, size):
    maps = maps_of(backbone, size, images=3)
    with torch.inference_mode():
        logits = head.eval()(maps)
        assert logits.shape == (3, 5, *maps[1 if isinstance(head, FCNHead) else 0].shape[2:])
        for i in range(3):
            assert relative(logits[i : i + 1], head([x[i : i + 1] for x in maps])) <= 1e-5


@pytest.mark.parametrize("images", [1, 2])
def test_every_parameter_learns(head, backbone, images):
    logits = head.eval()(maps_of(backbone, (96, 70), images))
    (logits * torch.randn_like(logits)).sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_the_smallest_image_alone_can_be_learnt_from(head, backbone):
    logits = head.train()(maps_of(backbone, (32, 32), images=1))
    logits.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())
    assert all(buffer.isfinite().all() for buffer in head.buffers())


def test_one_value_a_channel_is_normed_by_the_running_statistics(backbone):
    head = UPerNetHead(*BACKBONES[backbone], 5, width=16)
    level, pooled = head.pyramid.levels[0], torch.randn(1, BACKBONES[backbone][0][-1], 1, 1)
    nn.init.normal_(level.norm.running_mean)
    before = level.norm.running_mean.clone()
    assert torch.equal(level.train()(pooled), level.eval()(pooled))
    assert torch.equal(level.norm.running_mean, before)


@pytest.mark.slow
def test_compiled_gives_the_same_in_one_graph_at_two_sizes(head, backbone):
    compiled = torch.compile(head.eval(), fullgraph=True)
    with torch.inference_mode():
        for size in ((64, 64), (96, 70)):
            maps = maps_of(backbone, size)
            assert relative(compiled(maps), head(maps)) <= 1e-5


@pytest.mark.parametrize("name", HEADS)
def test_names_and_shapes_are_stable(name):
    head = HEADS[name](*BACKBONES["strides"], 5)
    listed = "".join(f"{key} {tuple(t.shape)}\n" for key, t in head.state_dict().items())
    assert listed == (KEYS / f"{name}.txt").read_text()


def test_upernet_follows_the_formula():
    head = UPerNetHead((6, 8), (4, 8), 5, width=4).eval()
    for norm in head.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
    fine, coarse = maps_of("strides", (52, 36))[:2]
    pools = [nn.AdaptiveAvgPool2d(side)(coarse) for side in (1, 2, 3, 6)]
    levels = [
        resize_bilinear(level(pool), *coarse.shape[2:]) for level, pool in zip(head.pyramid.levels, pools, strict=True)
    ]
    top = head.pyramid.merge(torch.cat([coarse, *levels], 1))
    summed = head.laterals[0](fine) + resize_bilinear(top, *fine.shape[2:])
    both = torch.cat([head.outputs[0](summed), resize_bilinear(top, *fine.shape[2:])], 1)
    torch.testing.assert_close(head([fine, coarse]), head.classifier(head.merge(both)))


def test_segformer_follows_the_formula():
    head = SegFormerHead((6, 8), (4, 8), 5, width=4).eval()
    fine, coarse = maps_of("strides", (52, 36))[:2]
    both = [head.projections[0](fine), resize_bilinear(head.projections[1](coarse), *fine.shape[2:])]
    torch.testing.assert_close(head([fine, coarse]), head.classifier(head.fusion(torch.cat(both, 1))))


@pytest.mark.parametrize("name", HEADS)
def test_every_convolution_has_a_norm_and_the_classifier_a_bias(name):
    head = HEADS[name](*BACKBONES["strides"], 5)
    assert [
        key for key, module in head.named_modules() if isinstance(module, nn.Conv2d) and module.bias is not None
    ] == ["classifier"]
    assert {norm.eps for norm in head.modules() if isinstance(norm, nn.BatchNorm2d)} == {1e-5}
    assert head.dropout.p == 0.1


def test_the_classifier_starts_near_nothing():
    head = SegFormerHead((6, 8), (4, 8), 150)
    head.init_weights()
    assert float(head.classifier.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert not head.classifier.bias.any()


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize(
    ("channels", "strides"), [((216,), (8,)), ((8, 8), (8,)), ((64, 32), (8, 4))], ids=["one", "uneven", "coarse first"]
)
def test_other_maps_are_refused(name, channels, strides):
    with pytest.raises(
        ValueError, match=r"got maps of channels=\(.*\), expected two or more, finest first: create the"
    ):
        HEADS[name](channels, strides, 5)


def test_a_head_on_one_map_needs_one_of_them():
    with pytest.raises(ValueError, match="index=3 must be that of one of the 3 maps, counted from 0"):
        FCNHead((8, 8, 8), (8, 8, 8), 5, index=3)

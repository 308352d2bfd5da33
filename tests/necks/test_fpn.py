"""The feature pyramid: levels, sums, and what it refuses."""

import pytest
import torch
from torch import nn

from globalvit.necks.fpn import FPN

CHANNELS, STRIDES = (8, 16, 24, 32), (4, 8, 16, 32)


def pyramid(norm=False, extra="pool", **values):
    fpn = FPN(CHANNELS, STRIDES, norm=norm, extra=extra, out_channels=12, **values)
    fpn.init_weights()
    return fpn.eval()


def maps(height=96, width=160, batch=2):
    """Maps of an image whose sides the strides do not divide evenly, rounded up."""
    return [
        torch.randn(batch, count, -(-height // stride), -(-width // stride))
        for count, stride in zip(CHANNELS, STRIDES, strict=True)
    ]


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(
    ("extra", "finest", "strides"),
    [
        ("pool", 4, (4, 8, 16, 32, 64)),
        ("convs", 8, (8, 16, 32, 64, 128)),
        ("convs", 4, (4, 8, 16, 32, 64, 128)),
    ],
)
def test_states_its_channels_and_strides(norm, extra, finest, strides):
    fpn = pyramid(norm, extra, finest=finest)
    outputs = fpn(maps(100, 150))
    assert fpn.strides == strides
    assert fpn.channels == (12,) * len(strides)
    assert [tuple(x.shape) for x in outputs] == [(2, 12, -(-100 // stride), -(-150 // stride)) for stride in strides]


@pytest.mark.parametrize("norm", [False, True])
def test_images_do_not_mix(norm):
    fpn, given = pyramid(norm, "convs"), maps()
    together = fpn(given)
    for index in range(2):
        alone = fpn([x[index : index + 1] for x in given])
        for both, one in zip(together, alone, strict=True):
            torch.testing.assert_close(both[index : index + 1], one, rtol=1e-5, atol=1e-5)


def test_each_lateral_gets_the_coarser_sum_by_nearest_neighbors():
    fpn, given = pyramid(), maps()
    lateral = [conv(x) for conv, x in zip(fpn.laterals, given, strict=True)]
    third = lateral[2] + lateral[3].repeat_interleave(2, -2).repeat_interleave(2, -1)
    second = lateral[1] + third.repeat_interleave(2, -2).repeat_interleave(2, -1)
    got = fpn(given)
    torch.testing.assert_close(got[1], fpn.outputs[1](second))
    torch.testing.assert_close(got[3], fpn.outputs[3](lateral[3]))
    assert torch.equal(got[4], got[3][:, :, ::2, ::2])


def test_added_levels_of_retinanet_follow_the_last_output_without_relu():
    fpn, given = pyramid(extra="convs", finest=8), maps()
    got = fpn(given)
    torch.testing.assert_close(got[3], fpn.outputs[3](got[2]))
    torch.testing.assert_close(got[4], fpn.outputs[4](got[3]))
    assert (got[3] < 0).any()
    assert len(fpn.laterals) == 3


@pytest.mark.parametrize("norm", [False, True])
def test_a_convolution_has_a_norm_or_a_bias(norm):
    fpn = pyramid(norm, "convs")
    assert all((module.bias is None) == norm for module in fpn.modules() if isinstance(module, nn.Conv2d))
    assert sum(isinstance(module, nn.BatchNorm2d) for module in fpn.modules()) == (10 if norm else 0)


@pytest.mark.parametrize("norm", [False, True])
def test_every_parameter_learns(norm):
    fpn = pyramid(norm, "convs").train()
    sum((x * torch.randn_like(x)).sum() for x in fpn(maps())).backward()
    for name, parameter in fpn.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_other_maps_than_it_was_built_for_are_refused():
    with pytest.raises(ValueError, match=r"maps of \(16, 24, 32\) channels came; .*built for \(8, 16, 24, 32\): give"):
        pyramid()(maps()[1:])


def test_what_cannot_be_a_pyramid_is_refused():
    with pytest.raises(ValueError, match=r"channels=\(8, 16\) and strides=\(4,\) must list the same maps"):
        FPN((8, 16), (4,), norm=True, extra="pool")
    with pytest.raises(ValueError, match=r"finest=64 leaves none of the maps of strides \(4, 8\)"):
        FPN((8, 16), (4, 8), norm=True, extra="pool", finest=64)

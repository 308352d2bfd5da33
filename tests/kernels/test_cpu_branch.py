"""GC ViT's convolutional branch in training by the C kernels: equal to the formula in float64."""

import copy

import pytest
import torch
from gradients import node_names, with_threads
from torch import nn

from globalvit import set_kernels
from globalvit.models.gcvit import FusedMBConv

BOUND = {torch.float32: 5e-6, torch.bfloat16: 3e-2}


def build(dim=24):
    torch.manual_seed(0)
    part = FusedMBConv(dim)
    for parameter in part.parameters():
        nn.init.normal_(parameter, std=0.5)
    return part


def gradients(part, x, *, autocast=False):
    """The result of the branch, and the gradients of the map and of the parameters."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    part.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = part(x)
    torch.manual_seed(1)
    out.backward(torch.randn(out.shape).to(out.dtype))
    return [out.detach(), x.grad, *(parameter.grad.clone() for parameter in part.parameters())]


def takes_kernels(part, x):
    return "GatedPointwiseBackward" in node_names(part(x))


@pytest.mark.parametrize(("channels", "height", "width"), [(64, 17, 9), (37, 8, 5), (6, 1, 1), (40, 3, 33)])
def test_gradients_equal_the_formulas(channels, height, width, dtype):
    part, x = build(channels), torch.randn(2, channels, height, width).to(memory_format=torch.channels_last)
    assert takes_kernels(part, x)
    # The stream of tokens may be float32 while products are bfloat16.
    ours = [gradients(part, x.to(stream), autocast=dtype != torch.float32) for stream in {torch.float32, dtype}]
    exact = gradients(copy.deepcopy(part).double(), x.double())
    for one, wanted in ((one, wanted) for found in ours for one, wanted in zip(found, exact, strict=True)):
        assert (one - wanted).abs().max() < BOUND[dtype] * wanted.abs().max()


def test_memory_formats_do_not_matter():
    part, x = build(), torch.randn(2, 24, 6, 7)
    for ours, same in zip(gradients(part, x), gradients(part, x.to(memory_format=torch.channels_last)), strict=True):
        assert torch.equal(ours, same)


def test_gradients_that_arrive_transposed_are_read_right():
    part, x = build(), torch.randn(2, 24, 6, 6)
    found = []
    for one, dtype in ((part, torch.float32), (copy.deepcopy(part).double(), torch.float64)):
        given = x.to(dtype, copy=True).requires_grad_()
        # Squeeze-excite's gates get a gradient that is not contiguous.
        means = one.squeeze_excite.gates
        one.squeeze_excite.gates = lambda m, means=means: means(m).t().contiguous().t()
        one(given).transpose(2, 3).square().sum().backward()
        found.append(given.grad.double())
    assert (found[0] - found[1]).abs().max() < 1e-5 * found[1].abs().max()


def test_any_number_of_threads_gives_the_same_bits():
    part, x = build(), torch.randn(2, 24, 40, 30)
    results = with_threads((1, 2, 5), lambda: gradients(part, x))
    assert all(torch.equal(one, other) for found in results[1:] for one, other in zip(results[0], found, strict=True))


def test_gradients_are_differentiable():
    part, x = build(), torch.randn(1, 24, 4, 5)

    def penalty(part, x):
        (gradient,) = torch.autograd.grad(part(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), list(part.parameters()))

    ours = penalty(part, x.clone().requires_grad_())
    exact = penalty(copy.deepcopy(part).double(), x.double().requires_grad_())
    assert all((one - wanted).abs().max() < 1e-4 * wanted.abs().max() for one, wanted in zip(ours, exact, strict=True))


@pytest.mark.parametrize("frozen", ["x", "depthwise", "pointwise", "squeeze_excite"])
def test_what_needs_no_gradient_gets_none(frozen):
    part, x = build(), torch.randn(1, 24, 5, 5, requires_grad=frozen != "x")
    if frozen != "x":
        part.get_submodule(frozen).requires_grad_(requires_grad=False)
    leaves, found = [x, *part.parameters()], []
    for kernels in ("c", "torch"):
        for leaf in leaves:
            leaf.grad = None
        with set_kernels(kernels):
            assert takes_kernels(part, x) == (kernels == "c")
            part(x).square().sum().backward()
        found.append([leaf.grad for leaf in leaves])
    for ours, exact in zip(*found, strict=True):
        assert (ours is None) == (exact is None)
        assert exact is None or (ours - exact).abs().max() < 1e-5 * exact.abs().max()

"""GC ViT's convolutional branch in a training: equal to the formula in float64, and taken only where nobody watches."""

import copy

import pytest
import torch
from torch import nn

from globalvit.kernels.native import branch
from globalvit.models.gcvit import FusedMBConv

BOUND = {torch.float32: 5e-6, torch.bfloat16: 3e-2}


def build(dim=24):
    torch.manual_seed(0)
    part = FusedMBConv(dim)
    for parameter in part.parameters():
        nn.init.normal_(parameter, std=0.5)
    return part


def gradients(part, x, *, autocast=False):
    """What the branch gives, and the gradients of what goes in and of its parameters."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    part.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = part(x)
    torch.manual_seed(1)
    out.backward(torch.randn(out.shape).to(out.dtype))
    return [out.detach(), x.grad, *(parameter.grad.clone() for parameter in part.parameters())]


def takes_kernels(part, x):
    names, waiting = set(), [part(x).grad_fn]
    while waiting:
        node = waiting.pop()
        names.add(type(node).__name__)
        waiting += [parent for parent, _ in node.next_functions if parent is not None]
    return "_GatedPointwiseBackward" in names


def nothing_taken(monkeypatch):
    monkeypatch.setattr(branch, "trains", lambda *_: False)


@pytest.mark.parametrize(("channels", "height", "width"), [(64, 17, 9), (37, 8, 5), (6, 1, 1), (40, 3, 33)])
def test_gradients_equal_the_formulas(channels, height, width, dtype, monkeypatch):
    part, x = build(channels), torch.randn(2, channels, height, width).to(memory_format=torch.channels_last)
    assert takes_kernels(part, x)
    # The stream of tokens may be float32 where products are bfloat16.
    ours = [gradients(part, x.to(stream), autocast=dtype != torch.float32) for stream in {torch.float32, dtype}]
    nothing_taken(monkeypatch)
    exact = gradients(copy.deepcopy(part).double(), x.double())
    for one, wanted in ((one, wanted) for found in ours for one, wanted in zip(found, exact, strict=True)):
        assert (one - wanted).abs().max() < BOUND[dtype] * wanted.abs().max()


def test_layouts_do_not_matter():
    part, x = build(), torch.randn(2, 24, 6, 7)
    for ours, same in zip(gradients(part, x), gradients(part, x.to(memory_format=torch.channels_last)), strict=True):
        assert torch.equal(ours, same)


def test_gradients_have_the_same_bits_with_any_number_of_threads():
    part, x, results, before = build(), torch.randn(2, 24, 40, 30), [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(gradients(part, x))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("frozen", ["x", "depthwise", "pointwise", "squeeze_excite"])
def test_what_needs_no_gradient_gets_none(frozen, monkeypatch):
    part, x = build(), torch.randn(1, 24, 5, 5, requires_grad=frozen != "x")
    if frozen != "x":
        part.get_submodule(frozen).requires_grad_(requires_grad=False)
    leaves, found = [x, *part.parameters()], []
    for wanted in (True, False):
        if not wanted:
            nothing_taken(monkeypatch)
        assert takes_kernels(part, x) == wanted
        for leaf in leaves:
            leaf.grad = None
        part(x).square().sum().backward()
        found.append([leaf.grad for leaf in leaves])
    for ours, exact in zip(*found, strict=True):
        assert (ours is None) == (exact is None)
        assert exact is None or (ours - exact).abs().max() < 1e-5 * exact.abs().max()


def test_who_watches_sees_pytorchs_convolutions():
    x = torch.randn(1, 24, 5, 5)
    for part in ("depthwise", "activation", "squeeze_excite", "pointwise"):
        seen, watched = [], build()
        watched.get_submodule(part).register_forward_hook(lambda *_: seen.append(True))  # noqa: B023
        assert not takes_kernels(watched, x)
        assert seen
    other = build()
    other.add_module("squeeze_excite", nn.Identity())
    assert not takes_kernels(other, x)
    with torch.no_grad():
        assert build()(x).grad_fn is None

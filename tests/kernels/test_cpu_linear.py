"""Linear layers, norms and convolutions by the C kernels: equal to the formula in float64, on any CPU's vectors."""

import pytest
import torch
import torch.nn.functional as F
from gradients import gradients, relative_error, with_threads
from torch import nn

from globalvit.kernels.cpu import linear
from globalvit.kernels.cpu.convolution import computes, convolve, convolve_depthwise, pack_conv, taps_of
from globalvit.kernels.cpu.linear_training import NormLinear, NormMlp, product_dtype

FORWARD = {torch.float32: 2e-6, torch.bfloat16: 6e-3}
BACKWARD = {torch.float32: 5e-6, torch.bfloat16: 1.5e-2}
# T tokens, C channels, H hidden: whole vectors and remainders, odd depths, blocks and panels of every width.
CASES = [(60, 64, 192), (130, 37, 66), (1, 8, 16), (3, 216, 272)]


def parts(C, H):
    torch.manual_seed(0)
    norm, fc1, fc2 = nn.LayerNorm(C, eps=1e-6), nn.Linear(C, H), nn.Linear(H, C)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, 1.0, 0.5)
    return norm, fc1, fc2


def packed(layer, dtype, **words):
    return linear.pack(layer.weight, layer.bias, dtype, **words)


@pytest.mark.parametrize("sizes", CASES)
def test_chains_equal_the_formula(sizes, dtype):
    T, C, H = sizes
    norm, fc1, fc2 = parts(C, H)
    x, residual, gates = torch.randn(2, T, C).to(dtype), torch.randn(2, T, C).to(dtype), torch.rand(2, C)
    fc1, fc2 = fc1.to(dtype), fc2.to(dtype)
    held = linear.Norm(factors=norm.weight.detach(), offsets=norm.bias.detach(), eps=norm.eps)
    with torch.inference_mode():
        first, second = packed(fc1, dtype, has_gelu=True), packed(fc2, dtype)
        whole = linear.chain(x, first, second, norm=held, residual=residual)
        gated = linear.chain(x, packed(fc1, dtype), gates=gates)
        normed = linear.layer_norm(x, held)
    norm, fc1, fc2 = norm.double(), fc1.double(), fc2.double()
    assert relative_error(whole, fc2(F.gelu(fc1(norm(x.double())))) + residual) < FORWARD[dtype]
    assert relative_error(gated, fc1(x.double() * gates[:, None])) < FORWARD[dtype]
    assert relative_error(normed, norm(x.double())) < FORWARD[dtype]


def test_results_may_replace_the_residual(dtype):
    _, fc1, fc2 = parts(64, 96)
    layers = packed(fc1.to(dtype), dtype, has_gelu=True), packed(fc2.to(dtype), dtype)
    x, norm = torch.randn(200, 64).to(dtype), linear.Norm(factors=None, offsets=None, eps=1e-5)
    with torch.inference_mode():
        apart = linear.chain(x, *layers, norm=norm, residual=x)
        in_place = linear.chain(x, *layers, norm=norm, residual=x, may_overwrite=True)
    assert in_place is x
    assert torch.equal(in_place, apart)


@pytest.mark.parametrize("outputs", [3, 5, 8, 16, 24, 70])
def test_a_row_does_not_depend_on_the_others(outputs, vectors):
    layer, x = packed(nn.Linear(33, outputs), torch.float32), torch.randn(61, 33)
    with torch.inference_mode():
        together = linear.chain(x, layer)
        assert all(torch.equal(linear.chain(x[i : i + 1], layer), together[i : i + 1]) for i in range(0, 61, 7))


@pytest.mark.parametrize(
    ("C", "K", "kernel", "stride", "padding", "bias"), [(64, 128, 3, 2, 1, False), (10, 37, 4, 4, 0, True)]
)
@pytest.mark.parametrize(("height", "width"), [(9, 15), (8, 8)])
def test_convolutions_equal_pytorchs(C, K, kernel, stride, padding, bias, height, width, dtype):
    conv, norm = nn.Conv2d(C, K, kernel, stride, padding, bias=bias).to(dtype), nn.LayerNorm(K)
    x = torch.randn(2, height, width, C).to(dtype)
    held = linear.Norm(factors=norm.weight.detach() * 2, offsets=norm.bias.detach() + 1, eps=norm.eps)
    assert computes(conv)
    with torch.inference_mode():
        out, normed = (convolve(x, pack_conv(conv), after) for after in (None, held))
        exact = conv.double()(x.double().permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        exact_normed = norm.double()(exact) * 2 + 1
    assert relative_error(out, exact) < FORWARD[dtype]
    assert relative_error(normed, exact_normed) < FORWARD[dtype]


def test_bfloat16_works_without_dot_products_of_pairs(vectors):
    conv, x = nn.Conv2d(6, 5, 3, 2, 1).bfloat16(), torch.randn(1, 7, 5, 6).bfloat16()
    layer = nn.Linear(7, 5).bfloat16()
    with torch.inference_mode():
        convolved, projected = (
            convolve(x, pack_conv(conv)),
            linear.chain(x.new_ones(3, 7), packed(layer, torch.bfloat16)),
        )
        exact = conv.double()(x.double().permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        assert relative_error(convolved, exact) < 6e-3
        assert relative_error(projected, layer.double()(torch.ones(3, 7).double())) < 6e-3


@pytest.mark.parametrize("activation", ["none", "gelu", "relu"])
def test_depthwise_convolutions_equal_pytorchs(activation, dtype):
    conv = nn.Conv2d(37, 37, 3, padding=1, groups=37, bias=activation != "none").to(dtype)
    x = torch.randn(2, 11, 7, 37).to(dtype)
    with torch.inference_mode():
        out, means = convolve_depthwise(x, taps_of(conv), activation)
        exact = conv.double()(x.double().permute(0, 3, 1, 2))
        exact = {"none": lambda y: y, "gelu": F.gelu, "relu": F.relu}[activation](exact)
    assert relative_error(out, exact.permute(0, 2, 3, 1)) < FORWARD[dtype]
    assert relative_error(means, exact.mean((2, 3))) < FORWARD[dtype]


SPECIAL = torch.tensor([-3e38, 3e38, -8.0, -0.0, torch.inf, -torch.inf, torch.nan])


@pytest.mark.parametrize(("kind", "relative", "absolute"), [("float32", 1e-6, 1e-6), ("bfloat16", 2**-8, 1e-5)])
def test_gelu_is_right_for_any_number(kind, relative, absolute, vectors):
    dtype = getattr(torch, kind)
    x = torch.cat([torch.linspace(-20, 20, 8001), SPECIAL]).to(dtype)
    conv = nn.Conv2d(len(x), len(x), 3, padding=1, groups=len(x), bias=False).to(dtype)
    with torch.no_grad():
        conv.weight.zero_()[:, :, 1, 1] = 1
        out, _ = convolve_depthwise(x[None, None, None], taps_of(conv), "gelu")
    torch.testing.assert_close(out.double().flatten(), F.gelu(x.double()), rtol=relative, atol=absolute, equal_nan=True)


def test_the_slope_of_gelu_is_right_for_any_number(vectors):
    x = torch.cat([torch.linspace(-20, 20, 801), SPECIAL[:4]])
    (slope,) = torch.autograd.grad(mlp_of_numbers(x).sum(), x)
    exact = x.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(F.gelu(exact).sum(), exact)
    torch.testing.assert_close(slope.double(), wanted, rtol=1e-6, atol=1e-6)


def mlp_of_numbers(x):
    """GELU of numbers, one a channel, which come from the bias of the first layer."""
    n, zero = len(x), torch.zeros(len(x), len(x))
    x.requires_grad_()
    return NormMlp.apply(
        torch.zeros(1, n), torch.zeros(n), torch.zeros(n), 1e-6, zero, x, torch.eye(n), torch.zeros(n), torch.float32
    )


def test_what_is_not_a_number_stays_so(vectors):
    x = torch.ones(3, 9, 9, 12)
    x[1, 4, 4, 0] = torch.nan
    with torch.inference_mode():
        hidden = linear.chain(x, packed(nn.Linear(12, 12), torch.float32, has_gelu=True))
    assert hidden.isnan().any(-1).nonzero().tolist() == [[1, 4, 4]]


def mlp_by_kernels(x, factors, offsets, *parameters):
    return NormMlp.apply(x, factors, offsets, 1e-6, *parameters, product_dtype(x))


def mlp_by_formula(x, factors, offsets, weight1, bias1, weight2, bias2):
    hidden = F.gelu(F.linear(F.layer_norm(x, x.shape[-1:], factors, offsets, 1e-6), weight1, bias1))
    return F.linear(hidden, weight2, bias2)


def linear_by_kernels(x, weight, bias):
    return NormLinear.apply(x, None, None, 0.0, weight, bias, product_dtype(x))


def mlp_leaves(T, C, H):
    return [torch.randn(T, C), *(p.detach() for module in parts(C, H) for p in module.parameters())]


# The last outputs of 64, 100, 112 and 200 are fewer than a block of the gradients of weights.
@pytest.mark.parametrize("sizes", [*CASES, (2100, 16, 32), (7, 64, 100), (5, 112, 200)])
def test_gradients_equal_the_formulas(sizes, dtype):
    leaves = mlp_leaves(*sizes)
    cases = [
        (mlp_by_kernels, mlp_by_formula, leaves),
        (linear_by_kernels, F.linear, [leaves[0], *leaves[3:5]]),
    ]
    for ours, exact, given in cases:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            got = gradients(ours, given, torch.float32)
        for one, wanted in zip(got, gradients(exact, given, torch.float64), strict=True):
            assert relative_error(one, wanted) < BACKWARD[dtype]


def test_gradients_are_differentiable():
    leaves = mlp_leaves(5, 6, 12)

    def penalty(function, dtype):
        given = [leaf.to(dtype).requires_grad_() for leaf in leaves]
        (gradient,) = torch.autograd.grad(function(*given).square().sum(), given[0], create_graph=True)
        # The last bias does not change the gradient of a gradient by itself.
        return torch.autograd.grad(gradient.square().sum(), given[:-1])

    for ours, exact in zip(penalty(mlp_by_kernels, torch.float32), penalty(mlp_by_formula, torch.float64), strict=True):
        assert relative_error(ours, exact) < 1e-4


@pytest.mark.parametrize("frozen", [(0,), (1, 2), (3, 4), (5, 6), (0, 1, 2, 3, 4)])
def test_what_needs_no_gradient_gets_none(frozen):
    leaves = mlp_leaves(30, 16, 24)
    for index, leaf in enumerate(leaves):
        leaf.requires_grad_(index not in frozen)
    found = []
    for function in (mlp_by_kernels, mlp_by_formula):
        for leaf in leaves:
            leaf.grad = None
        function(*leaves).square().sum().backward()
        found.append([leaf.grad for leaf in leaves])
    for index, (one, exact) in enumerate(zip(*found, strict=True)):
        assert (one is None) == (index in frozen)
        assert one is None or relative_error(one, exact.double()) < 5e-6


def test_any_number_of_threads_gives_the_same_bits():
    leaves = mlp_leaves(3000, 24, 50)
    results = with_threads((1, 2, 5), lambda: gradients(mlp_by_kernels, leaves, torch.float32))
    assert all(torch.equal(one, other) for other in results[1:] for one, other in zip(results[0], other, strict=True))


def test_changing_a_weight_before_the_backward_pass_is_an_error():
    _, fc1, _ = parts(8, 16)
    out = linear_by_kernels(torch.randn(4, 8), fc1.weight, fc1.bias)
    with torch.no_grad():
        fc1.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()

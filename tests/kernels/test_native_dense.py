"""The C kernels of Linears, norms and depthwise convolutions: equal to the formula in float64, on any CPU's vectors."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from globalvit import create_model
from globalvit.kernels.native import branch, convolution, dense, depthwise, operators, sequences, training
from globalvit.models import layers
from globalvit.models.attention import IMPLEMENTATIONS, attention

FORWARD = {torch.float32: 2e-6, torch.bfloat16: 6e-3}
# T tokens, C channels, H hidden: whole vectors and remainders, odd depths, blocks and panels of every width.
CASES = [(60, 64, 192), (130, 37, 66), (1, 8, 16), (3, 216, 272)]


def parts(C, H):
    torch.manual_seed(0)
    norm, fc1, fc2 = nn.LayerNorm(C, eps=1e-6), nn.Linear(C, H), nn.Linear(H, C)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, 1.0, 0.5)
    return norm, fc1, fc2


def error(got, wanted):
    wanted = wanted.detach()
    return float((got.double() - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("sizes", CASES)
def test_chains_equal_the_formula(sizes, dtype):
    T, C, H = sizes
    norm, fc1, fc2 = parts(C, H)
    x, residual, gates = torch.randn(2, T, C).to(dtype), torch.randn(2, T, C).to(dtype), torch.rand(2, C)
    fc1, fc2 = fc1.to(dtype), fc2.to(dtype)
    held = dense.Norm(factors=norm.weight.detach(), offsets=norm.bias.detach(), eps=norm.eps)
    with torch.inference_mode():
        whole = dense.linears(x, dense.pack(fc1, has_gelu=True), dense.pack(fc2), norm=held, residual=residual)
        gated = dense.linears(x, dense.pack(fc1), gates=gates)
        normed = dense.layer_norm(x, held)
    norm, fc1, fc2 = norm.double(), fc1.double(), fc2.double()
    assert error(whole, fc2(F.gelu(fc1(norm(x.double())))) + residual) < FORWARD[dtype]
    assert error(gated, fc1(x.double() * gates[:, None])) < FORWARD[dtype]
    assert error(normed, norm(x.double())) < FORWARD[dtype]


def test_an_answer_may_take_the_residuals_place(dtype):
    _, fc1, fc2 = parts(64, 96)
    first, second = dense.pack(fc1.to(dtype), has_gelu=True), dense.pack(fc2.to(dtype))
    x = torch.randn(200, 64).to(dtype)
    with torch.inference_mode():
        apart = dense.linears(x, first, second, norm=dense.Norm(factors=None, offsets=None, eps=1e-5), residual=x)
        norm = dense.Norm(factors=None, offsets=None, eps=1e-5)
        in_place = dense.linears(x, first, second, norm=norm, residual=x, may_overwrite=True)
    assert in_place is x
    assert torch.equal(in_place, apart)


@pytest.mark.parametrize(("queries", "keys", "heads", "dim"), [(5, 130, 2, 18), (100, 7, 3, 5), (1, 1, 1, 8)])
def test_sequences_equal_the_formula(queries, keys, heads, dim, dtype):
    q, k, v = (torch.randn(2, length, heads * dim).to(dtype) for length in (queries, keys, keys))
    with torch.inference_mode():
        ours = sequences.attention(q, k, v, heads)
    assert error(ours, attention(q.double(), k.double(), v.double(), heads)) < FORWARD[dtype]


@pytest.mark.parametrize(
    ("C", "K", "kernel", "stride", "padding", "bias"), [(64, 128, 3, 2, 1, False), (10, 37, 4, 4, 0, True)]
)
@pytest.mark.parametrize(("height", "width"), [(9, 15), (8, 8)])
def test_convolutions_equal_pytorchs(C, K, kernel, stride, padding, bias, height, width, dtype):
    conv, norm = nn.Conv2d(C, K, kernel, stride, padding, bias=bias).to(dtype), nn.LayerNorm(K)
    x = torch.randn(2, height, width, C).to(dtype)
    held = dense.Norm(factors=norm.weight.detach() * 2, offsets=norm.bias.detach() + 1, eps=norm.eps)
    assert convolution.takes(conv)
    with torch.inference_mode():
        out, normed = (convolution.convolve(x, convolution.pack(conv), after) for after in (None, held))
        exact = conv.double()(x.double().permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        exact_normed = norm.double()(exact) * 2 + 1
    assert error(out, exact) < FORWARD[dtype]
    assert error(normed, exact_normed) < FORWARD[dtype]


@pytest.mark.parametrize("activation", ["none", "gelu", "relu"])
def test_depthwise_convolutions_equal_pytorchs(activation, dtype):
    conv = nn.Conv2d(37, 37, 3, padding=1, groups=37, bias=activation != "none").to(dtype)
    x = torch.randn(2, 11, 7, 37).to(dtype)
    with torch.inference_mode():
        out, means = depthwise.depthwise(x, depthwise.taps_of(conv), activation)
        exact = conv.double()(x.double().permute(0, 3, 1, 2))
        exact = {"none": lambda y: y, "gelu": F.gelu, "relu": F.relu}[activation](exact)
    assert error(out, exact.permute(0, 2, 3, 1)) < FORWARD[dtype]
    assert error(means, exact.mean((2, 3))) < FORWARD[dtype]


@pytest.mark.parametrize(("kind", "relative", "absolute"), [("fp32", 1e-6, 1e-6), ("bf16", 2**-8, 1e-5)])
def test_gelu_is_right_for_any_number(kind, relative, absolute, vectors):
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[kind]
    x = torch.cat([torch.linspace(-20, 20, 8001), torch.tensor([-3e38, 3e38, torch.inf, torch.nan])]).to(dtype)
    conv = nn.Conv2d(len(x), len(x), 3, padding=1, groups=len(x), bias=False).to(dtype)
    with torch.no_grad():
        conv.weight.zero_()[:, :, 1, 1] = 1
        out, _ = depthwise.depthwise(x[None, None, None], depthwise.taps_of(conv), "gelu")
    torch.testing.assert_close(out.double().flatten(), F.gelu(x.double()), rtol=relative, atol=absolute, equal_nan=True)


def gradients(function, leaves, dtype):
    """What a function gives, and the gradients of its leaves, in float64."""
    leaves = [leaf.detach().to(dtype, copy=True).requires_grad_() for leaf in leaves]
    out = function(*leaves)
    torch.manual_seed(1)
    out.backward(torch.randn(out.shape).to(out.dtype))
    return [out.detach().double(), *(leaf.grad.double() for leaf in leaves)]


def mlp_by_kernels(x, factors, offsets, *parameters):
    return training._NormMlp.apply(x, factors, offsets, 1e-6, *parameters, training.product_dtype(x))


def mlp_by_formula(x, factors, offsets, weight1, bias1, weight2, bias2):
    hidden = F.gelu(F.linear(F.layer_norm(x, x.shape[-1:], factors, offsets, 1e-6), weight1, bias1))
    return F.linear(hidden, weight2, bias2)


def linear_by_kernels(x, weight, bias):
    return training._NormLinear.apply(x, None, None, 0.0, weight, bias, training.product_dtype(x))


@pytest.mark.parametrize("sizes", [*CASES, (2100, 16, 32)])
def test_gradients_equal_the_formulas(sizes, dtype):
    T, C, H = sizes
    norm, fc1, fc2 = parts(C, H)
    x = torch.randn(T, C)
    cases = [
        (mlp_by_kernels, mlp_by_formula, [x, *(p for module in (norm, fc1, fc2) for p in module.parameters())]),
        (linear_by_kernels, F.linear, [x, *fc1.parameters()]),
    ]
    bound = {torch.float32: 5e-6, torch.bfloat16: 1.5e-2}[dtype]
    for ours, exact, leaves in cases:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            got = gradients(ours, leaves, torch.float32)
        for one, wanted in zip(got, gradients(exact, leaves, torch.float64), strict=True):
            assert error(one, wanted) < bound


@pytest.mark.parametrize("frozen", [(0,), (1, 2), (3, 4), (5, 6), (0, 1, 2, 3, 4)])
def test_what_needs_no_gradient_gets_none(frozen):
    norm, fc1, fc2 = parts(16, 24)
    leaves = [torch.randn(30, 16), *(p.detach() for module in (norm, fc1, fc2) for p in module.parameters())]
    for index, leaf in enumerate(leaves):
        leaf.requires_grad_(index not in frozen)
    for function in (mlp_by_kernels, mlp_by_formula):
        for leaf in leaves:
            leaf.grad = None
        function(*leaves).square().sum().backward()
        found = [None if leaf.grad is None else leaf.grad.clone() for leaf in leaves]
        if function is mlp_by_kernels:
            ours = found
    for index, (one, exact) in enumerate(zip(ours, found, strict=True)):
        assert (one is None) == (index in frozen)
        assert one is None or error(one, exact.double()) < 5e-6


def test_gradients_have_the_same_bits_with_any_number_of_threads():
    norm, fc1, fc2 = parts(24, 50)
    leaves = [torch.randn(3000, 24), *(p for module in (norm, fc1, fc2) for p in module.parameters())]
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(gradients(mlp_by_kernels, leaves, torch.float32))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(("height", "width"), [(10, 17), (7, 3), (14, 14)])
@pytest.mark.parametrize("is_global", [False, True])
def test_windows_over_the_grids_border_see_the_bias(height, width, is_global, vectors):
    window, heads, C = 7, 2, 10
    projected, outside = torch.randn(2, height, width, C * (3 - is_global)), torch.randn(C * (3 - is_global))
    table, query = torch.randn((2 * window - 1) ** 2, heads), torch.randn(2, heads, window**2, C // heads)
    query = query if is_global else None
    with torch.inference_mode():
        ours = operators.windows(projected, table, window, query, outside)
    filled = filled_up(projected.double(), window, outside.double())
    query = None if query is None else query.double()
    exact = IMPLEMENTATIONS["plain"].windows(filled, table.double(), window, query, None)[:, :height, :width]
    assert error(ours, exact) < 2e-6


def filled_up(projected, window, outside):
    """A grid filled up by hand."""
    B, H, W, P = projected.shape
    filled = outside.expand(B, -(-H // window) * window, -(-W // window) * window, P).clone()
    filled[:, :H, :W] = projected
    return filled


def test_what_is_not_a_number_stays_so(vectors):
    x = torch.ones(3, 9, 9, 12)
    x[1, 4, 4, 0] = float("nan")
    with torch.inference_mode():
        out = operators.windows(x, torch.zeros(25, 2), 3, None)
        hidden = dense.linears(x, dense.pack(nn.Linear(12, 12), has_gelu=True))
    assert out.isnan().any(-1).sum() >= 1
    assert hidden.isnan().any(-1).nonzero().tolist() == [[1, 4, 4]]


@pytest.mark.parametrize("name", ["gcvit_xxtiny", "gpvit_l1"])
def test_trainings_take_the_kernels_and_learn_the_same(name, monkeypatch):
    model = create_model(name, num_classes=3, image_size=64)
    images, steps = torch.randn(2, 3, 64, 80), []
    by_kernels = training.trains
    for wanted in (by_kernels, lambda *_: False):
        monkeypatch.setattr(layers.training, "trains", wanted)
        if wanted is not by_kernels:
            monkeypatch.setattr(branch, "trains", wanted)
        model.zero_grad()
        logits = model.eval()(images)
        logits.square().sum().backward()
        names = {type(node).__name__ for node in nodes_of(logits.grad_fn)}
        assert ("_NormMlpBackward" in names) == (wanted is by_kernels)
        steps.append([logits.detach(), *(parameter.grad for parameter in model.parameters())])
    largest = max(plain.abs().max() for plain in steps[1])
    for ours, plain in zip(*steps, strict=True):
        assert (ours - plain).abs().max() <= 1e-5 * plain.abs().max().clamp_min(1e-3 * largest)


def nodes_of(root):
    """Every node of a graph of gradients."""
    seen, waiting = set(), [root]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return seen


def test_whoever_watches_is_shown_pytorchs_operators():
    norm, fc1, _ = parts(8, 16)
    x = torch.randn(4, 8)
    assert training.trains(x, norm, fc1)
    with torch.no_grad():
        assert not training.trains(x, norm, fc1)
    handle = fc1.register_forward_hook(lambda *_: None)
    assert not training.trains(x, norm, fc1)
    handle.remove()
    assert not training.trains(x.double(), norm, fc1)
    assert not training.trains(x.bfloat16(), norm, fc1)
    assert not training.trains(torch.randn(4, 9), norm, fc1)
    frozen = nn.Linear(8, 8).requires_grad_(False)
    assert not training.trains(x, frozen)
    assert training.trains(x.clone().requires_grad_(), frozen)
    assert not training.trains(x, nn.Identity(), fc1)
    with torch.utils.flop_counter.FlopCounterMode(display=False):
        assert not training.trains(x, norm, fc1)

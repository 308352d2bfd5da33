"""The kernels in Triton: equal to the plain formula in float64, differentiable, summed in one order.

Without a GPU they run in Triton's interpreter, which shows what is computed, not that it compiles:
test_triton_compiles.py does that, and test_triton_gpu.py the rest.
"""

import sys

import pytest

if sys.platform != "linux":
    pytest.skip("Triton is for Linux", allow_module_level=True)

import torch
from torch import nn

from globalvit import create_model, set_kernels
from globalvit.kernels.gpu import launch, operators
from globalvit.kernels.gpu.stripes import triton_stripes
from globalvit.kernels.gpu.windows import triton_windows
from globalvit.models import ops

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WINDOW_CASES = [
    # H, W, window, heads, channels a head, is global: windows of one tile, several of them in a program,
    (7, 14, 7, 2, 32, False),
    (14, 7, 7, 1, 18, True),
    # and windows of several tiles, the last of them not full
    (9, 18, 9, 1, 8, False),
    (9, 9, 9, 1, 29, True),
]
# H, W, heads of a direction, channels a head, tokens of a tile that holds a whole stripe (smaller than in earnest, so
# that small stripes are cut into blocks: here the horizontal ones).
STRIPE_CASES = [(2, 18, 1, 18, 32), (4, 6, 2, 5, 64)]
LARGE_CASES = [(14, 28, 14, 2, 32, True), (24, 24, 24, 1, 24, False), (32, 32, 32, 1, 16, True)]


@pytest.fixture(autouse=True, scope="module")
def _quick_interpreter():
    """Leave out what makes the interpreter slow: checks of overflow, and preparing again for each function called.

    And put right its products of bfloat16, which multiplies the bits as if they were integers.
    """
    if DEVICE == "cuda":
        yield
        return
    from triton import language as tl
    from triton.runtime import interpreter

    careful = interpreter.InterpretedFunction.__call__

    def call(self, *arguments, **keywords):
        if self.fn.__module__.startswith("globalvit"):
            return self.rewrite()(*arguments, **keywords)
        return careful(self, *arguments, **keywords)

    builder = type(interpreter.interpreter_builder)
    products = builder.create_dot

    def create_dot(self, left, right, *others):
        wide = (self.create_fp_ext(x, tl.float32) if x.dtype == tl.bfloat16 else x for x in (left, right))
        return products(self, *wide, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "create_dot", create_dot)
        patch.setattr(interpreter.InterpretedFunction, "__call__", call)
        options = type(interpreter.interpreter_builder.options)(sanitize_overflow=False)
        patch.setattr(interpreter.interpreter_builder, "options", options)
        yield


def formula(window):
    return lambda p, t, q: ops.attend_windows.plain(p, t, window=window, query_BhNd=q)


def window_leaves(H, W, window, heads, dim, is_global, batch=2):
    width = heads * dim * (2 if is_global else 3)
    projected, table = torch.randn(batch, H, W, width), torch.randn((2 * window - 1) ** 2, heads)
    return projected, table, torch.randn(batch, heads, window**2, dim) if is_global else None


def gradients(function, leaves, dtypes, device=DEVICE):
    """The result of a function of tensors and its gradients, all in float64."""
    leaves = [
        None if leaf is None else leaf.to(device, dtype, copy=True).requires_grad_()
        for leaf, dtype in zip(leaves, dtypes, strict=True)
    ]
    torch.manual_seed(1)
    out = function(*leaves)
    out.backward(torch.randn(out.shape).to(out))
    return [out.detach().double().cpu(), *(leaf.grad.double().cpu() for leaf in leaves if leaf is not None)]


def assert_relative(ours, exact, bound):
    for got, wanted in zip(ours, exact, strict=True):
        assert (got - wanted).abs().max() <= bound * wanted.abs().max()


def assert_windows_are_exact(dims, dtype, bound):
    window = dims[2]
    leaves = window_leaves(*dims)
    # The table stays float32 under autocast; half types hold what comes out of a Linear layer.
    projected, table, query = leaves
    leaves = projected.to(dtype), table, None if query is None else query.to(dtype)
    ours = gradients(lambda p, t, q: operators.windows(p, t, window, q), leaves, (dtype, torch.float32, dtype))
    exact = gradients(formula(window), leaves, [torch.float64] * 3, "cpu")
    assert_relative(ours, exact, bound)


@pytest.mark.parametrize("dims", WINDOW_CASES)
def test_windows_equal_the_plain_formula_forward_and_backward(dims):
    assert_windows_are_exact(dims, torch.float32, 3e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_sum_in_float32(dtype):
    assert_windows_are_exact(WINDOW_CASES[1], dtype, 1.5e-2 if dtype == torch.bfloat16 else 2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("dims", LARGE_CASES)
def test_large_windows_equal_the_plain_formula(dims):
    assert_windows_are_exact(dims, torch.float32, 3e-6)


@pytest.mark.parametrize("dims", STRIPE_CASES)
def test_stripes_equal_the_plain_formula_forward_and_backward(dims, monkeypatch):
    H, W, heads, dim, whole = dims
    monkeypatch.setattr(launch, "WHOLE_TOKENS", whole)
    width = heads * dim
    parameters = [torch.randn(size) for _ in range(2) for size in ((width, 1, 3, 3), (width,))]
    leaves = [torch.randn(2, H, W, 6 * width), *parameters]

    def attend(function):
        def run(qkv, *weights):
            convs = [nn.Conv2d(width, width, 3, padding=1, groups=width) for _ in range(2)]
            for index, (name, weight) in enumerate(zip(["weight", "bias"] * 2, weights, strict=True)):
                del convs[index // 2]._parameters[name]
                setattr(convs[index // 2], name, weight)
            return function(qkv, *convs)

        return run

    ours = gradients(attend(lambda *given: operators.stripes(*given, 2, heads)), leaves, [torch.float32] * 5)
    plain = attend(lambda *given: ops.attend_stripes.plain(*given, stripe=2, heads=heads))
    exact = gradients(plain, leaves, [torch.float64] * 5, "cpu")
    assert_relative(ours, exact, 3e-6)


def test_projections_need_not_be_contiguous():
    projected, table, _ = (x if x is None else x.to(DEVICE) for x in window_leaves(2, 4, 2, 1, 16, False))
    turned = projected.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    out = operators.windows(turned, table, 2, None)
    assert torch.equal(out, operators.windows(projected, table, 2, None))
    # The gradient of a sum is one number for all: no memory stands behind its axes.
    out.sum().backward()
    assert turned.grad.abs().max() > 0


def test_an_image_never_attends_with_another_ones_query():
    projected, table, query = (x.to(DEVICE) for x in window_leaves(4, 4, 2, 1, 16, True, batch=3))
    together = operators.windows(projected, table, 2, query)
    for i in range(3):
        one = slice(i, i + 1)
        assert torch.equal(together[one], operators.windows(projected[one], table, 2, query[one]))


@pytest.mark.parametrize("windows_a_program", [1, 3])
def test_windows_left_over_from_full_programs_are_computed(windows_a_program, monkeypatch):
    monkeypatch.setattr(launch.Case, "group", lambda *_, **__: windows_a_program)
    assert_windows_are_exact((4, 10, 2, 1, 16, False), torch.float32, 3e-6)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of PyTorch's check itself
def test_operators_follow_pytorchs_rules():
    leaves = [x.to(DEVICE).requires_grad_() for x in window_leaves(2, 2, 2, 1, 16, True)]
    torch.library.opcheck(triton_windows, (*leaves, 2, True))
    qkv = torch.randn(1, 2, 2, 48, device=DEVICE, requires_grad=True)
    position = [torch.randn(size, device=DEVICE, requires_grad=True) for size in ((8, 1, 3, 3), (8,)) * 2]
    torch.library.opcheck(triton_stripes, (qkv, position, 2, 1, True))


def test_compiled_models_hold_the_operators_in_one_graph():
    def attend(projected, table, query):
        return ops.attend_windows(projected, table, window=2, query_BhNd=query) * 2

    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(attend, fullgraph=True, backend=backend, dynamic=True)
    with set_kernels("triton"):
        for H in (6, 8):
            leaves = [x.to(DEVICE) for x in window_leaves(H, 2, 2, 1, 16, True, batch=1)]
            torch.testing.assert_close(compiled(*leaves), attend(*leaves))
    assert len(graphs) == 1
    assert "triton_windows" in graphs[0].code


def test_exported_models_do_not_hold_them():
    class Attention(nn.Module):
        def forward(self, projected, table):
            return ops.attend_windows(projected, table, window=2)

    projected, table, _ = window_leaves(4, 4, 2, 1, 16, False)
    with set_kernels("triton"):
        program = torch.export.export(Attention(), (projected, table))
    assert "triton" not in program.graph_module.code
    torch.testing.assert_close(program.module()(projected, table), operators.windows(projected, table, 2, None))


@pytest.mark.slow
def test_a_whole_model_trains_with_them():
    grads = []
    for kernels in ("torch", "triton"):
        torch.manual_seed(0)
        model = create_model("gcvit_xxtiny", image_size=32, num_classes=2, drop_path=0.0).to(DEVICE)
        with set_kernels(kernels):
            model(torch.ones(1, 3, 32, 32, device=DEVICE)).square().sum().backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    assert_relative(*grads, 1e-3)


def taken(projected, heads=1, **words):
    """Whether a call is computed by the kernels."""
    table = torch.zeros(9, heads, dtype=projected.dtype, device=projected.device)
    accepts = ops.attend_windows.implementations["triton"].accepts
    return ops.unavailable("triton") is None and accepts(projected, table, window=2, **words)


def test_what_the_kernels_do_not_compute_is_left_to_pytorch():
    projected = torch.randn(1, 2, 2, 48, device=DEVICE)
    assert taken(projected)
    assert not taken(projected.double())
    assert not taken(torch.randn(1, 2, 2, 3 * 256, device=DEVICE))
    assert not taken(torch.randn(1, 2, 3, 48, device=DEVICE))
    assert not taken(torch.randn(0, 2, 2, 48, device=DEVICE))
    assert not taken(projected, heads=5)
    if DEVICE == "cpu":
        # Triton's interpreter multiplies bfloat16 wrongly.
        assert not taken(projected.bfloat16())


MISSING = {
    "HAS_TRITON": r"Triton is not installed \(it comes with PyTorch for CUDA, on Linux\)",
    "IS_INTERPRETED": "PyTorch finds no NVIDIA GPU here",
}


@pytest.mark.skipif(DEVICE == "cuda", reason="about machines without a GPU")
@pytest.mark.parametrize(("name", "words"), MISSING.items())
def test_without_triton_or_a_gpu_they_are_refused(name, words, monkeypatch):
    monkeypatch.setattr(f"globalvit.kernels.gpu.support.{name}", False)
    ops.unavailable.cache_clear()
    try:
        with pytest.raises(ValueError, match=f"kernels='triton' cannot be used here: {words}; use kernels='auto'"):
            set_kernels("triton")
    finally:
        ops.unavailable.cache_clear()


def test_they_are_used_only_when_asked_for():
    assert ops.kernels_for("cuda") == "torch"
    with set_kernels("triton"):
        assert ops.kernels_for("cuda") == "triton"

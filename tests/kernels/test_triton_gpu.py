"""The kernels on a GPU: whole models equal to the plain formula, half types, autocast, compiled, memory, same bits."""

import copy

import pytest
import torch

from globalvit import create_model, set_kernels
from globalvit.models import ops

operators = pytest.importorskip("globalvit.kernels.gpu.operators", exc_type=ImportError)
pytestmark = [
    pytest.mark.gpu,
    # Triton 3.9 says what a later one will change.
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset"),
]
MODELS = ["gcvit_xxtiny", "gpvit_l1"]


@pytest.fixture(autouse=True)
def _full_products():
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def build(name):
    torch.manual_seed(0)
    return create_model(name, num_classes=10, drop_path=0.0).cuda()


def relative(ours, exact):
    return ((ours.double() - exact.double()).abs().max() / exact.double().abs().max()).item()


@pytest.mark.parametrize("size", [(224, 224), (320, 256)])
@pytest.mark.parametrize("name", MODELS)
def test_models_equal_the_plain_formula_in_float32(name, size):
    images = torch.randn(3, 3, *size, device="cuda")
    outs, grads = [], []
    for kernels in ("torch", "triton"):
        model = build(name)
        with set_kernels(kernels):
            out = model(images)
            out.square().sum().backward()
        outs.append(out.detach())
        grads.append([parameter.grad for parameter in model.parameters()])
    assert relative(outs[1], outs[0]) < 1e-4
    scale = max(grad.abs().max() for grad in grads[0])
    assert max((a - b).abs().max() for a, b in zip(*grads, strict=True)) < 1e-3 * scale


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_half_types_stay_as_close_to_float32_as_the_plain_formula_does(name, dtype):
    images = torch.randn(2, 3, 224, 224, device="cuda")
    exact, errors = build(name).eval()(images), []
    for kernels in ("torch", "triton"):
        with set_kernels(kernels):
            errors.append(relative(build(name).eval().to(dtype)(images.to(dtype)), exact))
    assert errors[1] < 1.5 * errors[0] + 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_autocast_trains(name):
    model = build(name)
    with set_kernels("triton"), torch.autocast("cuda", dtype=torch.bfloat16):
        loss = model(torch.randn(2, 3, 224, 224, device="cuda")).square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.dtype == p.dtype for p in model.parameters())


def test_autocast_decides_the_type_of_what_comes_in_float32():
    projected, table = torch.randn(1, 14, 14, 192, device="cuda"), torch.randn(169, 2, device="cuda")
    with torch.autocast("cuda", dtype=torch.float16):
        assert operators.windows(projected, table, 7, None).dtype == torch.float16


@pytest.mark.parametrize("name", MODELS)
def test_compiled_models_have_no_graph_break_and_train(name):
    model = build(name)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True)
    images = torch.randn(2, 3, 224, 224, device="cuda")
    grads = []
    for one in (model, compiled):
        with set_kernels("triton"):
            one(images).square().sum().backward()
        grads.append([parameter.grad for parameter in one.parameters()])
    scale = max(grad.abs().max() for grad in grads[0])
    assert max((a - b).abs().max() for a, b in zip(*grads, strict=True)) < 1e-3 * scale


def test_cuda_graphs_replay_it():
    model = build("gcvit_xxtiny").eval()
    compiled = torch.compile(model, mode="reduce-overhead")
    images = torch.randn(1, 3, 224, 224, device="cuda")
    with set_kernels("triton"), torch.no_grad():
        for _ in range(3):
            out = compiled(images).clone()
        assert relative(out, model(images)) < 1e-4


def test_training_takes_less_memory_than_the_plain_formula():
    peaks = []
    for kernels in ("torch", "triton"):
        model = build("gcvit_xxtiny")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with set_kernels(kernels), torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(torch.randn(32, 3, 224, 224, device="cuda")).square().mean()
        loss.backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del model, loss
    assert peaks[1] < 0.8 * peaks[0]


@pytest.mark.parametrize("window", [7, 14])
def test_the_same_inputs_give_the_same_bits(window):
    leaves = [
        torch.randn(64, 14, 14, 2 * 256, device="cuda", dtype=torch.bfloat16),
        torch.randn((2 * window - 1) ** 2, 8, device="cuda"),
        torch.randn(64, 8, window**2, 32, device="cuda", dtype=torch.bfloat16),
    ]
    results = []
    for _ in range(3):
        projected, table, query = (leaf.clone().requires_grad_() for leaf in leaves)
        operators.windows(projected, table, window, query).square().sum().backward()
        results.append((projected.grad, table.grad, query.grad))
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


@pytest.mark.parametrize(("window", "heads"), [(7, 2), (12, 8), (14, 8), (24, 4), (32, 2)])
@pytest.mark.parametrize("is_global", [False, True])
def test_windows_of_all_published_sides_equal_the_plain_formula(window, heads, is_global):
    B, side, dim = 2, 2 * window, 32
    leaves = [
        torch.randn(B, side, side, heads * dim * (2 if is_global else 3)),
        torch.randn((2 * window - 1) ** 2, heads),
    ]
    leaves += [torch.randn(B, heads, window**2, dim)] if is_global else []
    cotangent = torch.randn(B, side, side, heads * dim)
    results = []
    for dtype in (torch.float32, torch.float64):
        projected, table, *query = ours = [leaf.to("cuda", dtype).requires_grad_() for leaf in leaves]
        query = query[0] if is_global else None
        if dtype == torch.float32:
            out = operators.windows(projected, table, window, query)
        else:
            out = ops.attend_windows.plain(projected, table, window=window, query_BhNd=query)
        out.backward(cotangent.to(out))
        results.append([out.detach(), *(leaf.grad for leaf in ours)])
    assert max(relative(got, wanted) for got, wanted in zip(*results, strict=True)) < 1e-5

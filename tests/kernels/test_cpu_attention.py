"""Attention by the C kernels: equal to the formula in float64, differentiable, the same bits with any threads."""

import pytest
import torch
from gradients import gradients, relative_error, with_threads
from torch import nn
from torch.nn import functional as F

from globalvit.kernels.cpu import attention
from globalvit.models import ops

BOUNDS = [(torch.float32, 3e-6), (torch.bfloat16, 1e-2)]
# Windows of one and of many vectors, token counts that fill no register tile, heads of odd and of published widths.
WINDOW_CASES = [
    # H, W, window, heads, channels a head, is global
    (14, 21, 7, 2, 32, False),
    (14, 14, 14, 2, 32, True),
    (24, 24, 24, 1, 24, True),
    (8, 16, 8, 1, 52, False),
    (6, 3, 3, 2, 5, True),
]
STRIPE_CASES = [(8, 12, 3, 18), (14, 6, 2, 29)]  # H, W, heads of a direction, channels a head


def window_leaves(H, W, window, heads, dim, is_global):
    width = heads * dim * (2 if is_global else 3)
    projected, table = torch.randn(2, H, W, width), torch.randn((2 * window - 1) ** 2, heads)
    return projected, table, torch.randn(2, heads, window**2, dim) if is_global else None


def formula(window):
    return lambda x, table, query=None: ops.attend_windows.plain(x, table, window=window, query_BhNd=query)


def kernels(window):
    return lambda x, table, query=None: attention.windows(x, table, window, query)


@pytest.mark.parametrize("dims", WINDOW_CASES)
@pytest.mark.parametrize(("dtype", "bound"), BOUNDS)
def test_windows_equal_the_formula_forward_and_backward(dims, dtype, bound):
    window = dims[2]
    leaves = [None if leaf is None else leaf.to(dtype) for leaf in window_leaves(*dims)]
    ours, exact = gradients(kernels(window), leaves, dtype), gradients(formula(window), leaves, torch.float64)
    assert all(relative_error(got, wanted) <= bound for got, wanted in zip(ours, exact, strict=True))


def stripes(function, heads, *leaves):
    qkv, *parameters = leaves
    convs = [
        lambda x, w=w, b=b: F.conv2d(x, w, b, padding=1, groups=len(w))
        for w, b in zip(parameters[::2], parameters[1::2], strict=True)
    ]
    return function(qkv, *convs, stripe=2, heads=heads)


@pytest.mark.parametrize("dims", STRIPE_CASES)
@pytest.mark.parametrize(("dtype", "bound"), BOUNDS)
def test_stripes_equal_the_formula_forward_and_backward(dims, dtype, bound):
    H, W, heads, dim = dims
    convs = [nn.Conv2d(heads * dim, heads * dim, 3, padding=1, groups=heads * dim) for _ in range(2)]
    leaves = [torch.randn(2, H, W, 6 * heads * dim).to(dtype), *(p.detach() for c in convs for p in c.parameters())]
    ours = gradients(lambda qkv, *others: attention.stripes(qkv, others, 2, heads, None), leaves, dtype)
    exact = gradients(lambda *given: stripes(ops.attend_stripes.plain, heads, *given), leaves, torch.float64)
    assert all(relative_error(got, wanted) <= bound for got, wanted in zip(ours, exact, strict=True))


def test_projections_need_not_be_contiguous():
    projected, table, _ = window_leaves(14, 7, 7, 2, 8, False)
    transposed = projected.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(attention.windows(transposed, table, 7, None), attention.windows(projected, table, 7, None))


def test_any_number_of_threads_gives_the_same_bits():
    leaves = window_leaves(56, 28, 7, 2, 8, True)
    results = with_threads((1, 2, 5), lambda: gradients(kernels(7), leaves, torch.float32))
    assert all(torch.equal(one, other) for other in results[1:] for one, other in zip(results[0], other, strict=True))


def test_gradients_are_differentiable():
    leaves = [leaf.double() for leaf in window_leaves(6, 3, 3, 2, 5, True)]

    def penalty(function, dtype):
        x, table, query = (leaf.to(dtype).requires_grad_() for leaf in leaves)
        # The query is computed from the projection, as in a network.
        out = function(x, table, query + x.mean())
        (gradient,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), (x, table, query))

    for ours, exact in zip(penalty(kernels(3), torch.float32), penalty(formula(3), torch.float64), strict=True):
        assert relative_error(ours, exact) < 1e-5


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # a check's own doing
def test_operators_follow_pytorchs_rules():
    projected, table, query = (leaf.requires_grad_() for leaf in window_leaves(*WINDOW_CASES[4]))
    torch.library.opcheck(attention.window_attention, (projected, table, 3, query))
    convs = [torch.randn(shape, requires_grad=True) for shape in ((6, 1, 3, 3), (6,)) * 2]
    torch.library.opcheck(attention.stripe_attention, (torch.randn(1, 4, 6, 36, requires_grad=True), *convs, 2, 2))


@pytest.mark.parametrize(("height", "width"), [(10, 17), (7, 3), (14, 14)])
@pytest.mark.parametrize("is_global", [False, True])
def test_windows_beyond_the_grid_see_what_stands_outside(height, width, is_global, vectors):
    window, heads, C = 7, 2, 10
    projected, outside = torch.randn(2, height, width, C * (3 - is_global)), torch.randn(C * (3 - is_global))
    table, query = torch.randn((2 * window - 1) ** 2, heads), torch.randn(2, heads, window**2, C // heads)
    query = query if is_global else None
    with torch.inference_mode():
        ours = attention.windows(projected, table, window, query, outside)
    filled = outside.double().expand(2, -(-height // window) * window, -(-width // window) * window, -1).clone()
    filled[:, :height, :width] = projected.double()
    exact = formula(window)(filled, table.double(), None if query is None else query.double())
    assert relative_error(ours, exact[:, :height, :width]) < 2e-6


@pytest.mark.parametrize(("queries", "keys", "heads", "dim"), [(5, 130, 2, 18), (100, 7, 3, 5), (1, 1, 1, 8)])
def test_sequences_equal_the_formula(queries, keys, heads, dim, dtype):
    q, k, v = (torch.randn(2, length, heads * dim).to(dtype) for length in (queries, keys, keys))
    with torch.inference_mode():
        ours = attention.sequences(q, k, v, heads)
    exact = ops.attention.plain(q.double(), k.double(), v.double(), heads=heads)
    assert relative_error(ours, exact) < {torch.float32: 2e-6, torch.bfloat16: 6e-3}[dtype]


@pytest.mark.parametrize("magnitude", [1e9, 1e11, 1e20, 1e30])
def test_huge_logits_choose_one_key(magnitude, vectors):
    projected, table = torch.randn(1, 3, 3, 12), torch.zeros(25, 2)
    projected[..., :8] *= magnitude**0.5
    with torch.no_grad():
        ours, exact = kernels(3)(projected, table), formula(3)(projected.double(), table.double())
    assert relative_error(ours, exact) < 1e-5


def test_logits_of_minus_infinity_are_as_in_pytorch(vectors):
    projected, table = torch.randn(1, 3, 3, 12), torch.full((25, 2), -torch.inf)
    table[12] = 0.0  # every token sees itself
    with torch.no_grad():
        torch.testing.assert_close(kernels(3)(projected, table), formula(3)(projected, table))
        nothing = kernels(3)(projected, torch.full((25, 2), -torch.inf))
    assert nothing.isnan().all()


def test_very_negative_logits_are_not_lost_to_the_padding(vectors):
    projected = torch.zeros(1, 3, 3, 12)
    projected[..., 8:] = torch.randn(1, 3, 3, 4)
    with torch.no_grad():
        ours = kernels(3)(projected, torch.full((25, 2), -1e35))
    torch.testing.assert_close(ours, projected[..., 8:].mean((1, 2), keepdim=True).expand_as(ours))


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, 0x7FFFFFFF, -0x3FFFFF])
def test_what_is_not_a_number_stays_so(bits, vectors):
    nan = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
    assert nan.isnan()
    projected = torch.ones(3, 9, 9, 12)
    projected[1, 4, 4, 0] = nan
    with torch.inference_mode():
        out = kernels(3)(projected, torch.zeros(25, 2))
        table = torch.zeros(25, 2)
        table[12, 0] = nan
        from_table = kernels(3)(torch.ones(1, 3, 3, 12), table)
    # The query of one head of one token.
    assert out.isnan().nonzero().tolist() == [[1, 4, 4, 0], [1, 4, 4, 1]]
    assert from_table[..., :2].isnan().all()
    assert not from_table[..., 2:].isnan().any()


def test_compiled_models_hold_the_operators_in_one_graph():
    table = torch.randn(25, 2)
    compiled = torch.compile(lambda x: ops.attend_windows(x, table, window=3) * 2, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 6, 6, 48)
    torch.testing.assert_close(compiled(x), formula(3)(x, table) * 2)

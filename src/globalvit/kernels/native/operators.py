"""The compiled attention as operators of PyTorch: `globalvit::native_windows` and `globalvit::native_stripes`.

Legend: `B` images · `H W` grid · `C` channels · `N` tokens of a window · `h` heads · `d` channels a head · `L` entries
of a position table.

Neither operator keeps anything for its backward pass but its inputs: the weights are computed again, which costs less
than writing and reading them would. Sums over windows are made of parts that are added up in a fixed order, so that a
training gives the same bits with any number of threads.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.library import custom_op
from torch.utils.flop_counter import register_flop_formula

from globalvit.kernels.native import library
from globalvit.kernels.native.call import DTYPES, Case, Sums, backward, forward
from globalvit.kernels.native.direct import is_direct


def refusal(projected: Tensor, head_dim: int) -> str | None:  # noqa: ARG001 - any width will do
    """Why such a projection cannot be attended to by these operators, None where it can."""
    if projected.device.type != "cpu":
        return f"it runs on a CPU, the tensors are on {projected.device.type}"
    if projected.dtype not in DTYPES:
        return f"it computes float32 and bfloat16, not {str(projected.dtype).removeprefix('torch.')}"
    return _unavailable()


@torch.compiler.assume_constant_result
def _unavailable() -> str | None:
    return library.unavailable()


def windows(
    projected_BHWC: Tensor,
    table_Lh: Tensor,
    window: int,
    query_BhNd: Tensor | None,
    outside_C: Tensor | None = None,
) -> Tensor:
    """See `globalvit.models.attention.window_attention`."""
    projected, query = projected_BHWC, None if query_BhNd is None else query_BhNd.to(projected_BHWC.dtype)
    run = _windows if is_direct(projected, table_Lh, query, outside_C) else native_windows
    return run(projected, table_Lh, window, query, outside_C)


def stripes(
    qkv_BHWC: Tensor,
    vertical: nn.Conv2d,
    horizontal: nn.Conv2d,
    stripe: int,
    heads: int,
    outside_C: Tensor | None = None,
) -> Tensor:
    """See `globalvit.models.attention.stripe_attention`."""
    assert vertical.bias is not None
    assert horizontal.bias is not None
    convs = (vertical.weight, vertical.bias, horizontal.weight, horizontal.bias)
    run = _stripes if is_direct(qkv_BHWC, *convs, outside_C) else native_stripes
    return run(qkv_BHWC, *convs, stripe, heads, outside_C)


def _windows(
    projected: Tensor, table: Tensor, window: int, query: Tensor | None, outside: Tensor | None = None
) -> Tensor:
    """(B, H, W, 3C) or (B, H, W, 2C) and a table (L, h) → (B, H, W, C); queries are (B, h, N, d)."""
    case = _windows_case(projected, table, window, query, outside)
    out = projected.new_empty((*projected.shape[:3], case.channels))
    forward(case, out)
    return out


@custom_op("globalvit::native_windows_backward", mutates_args=(), device_types="cpu")
def native_windows_backward(
    gradient: Tensor, projected: Tensor, table: Tensor, window: int, query: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the projection, of the table and of the queries, which are empty where there are none."""
    case = _windows_case(projected, table, window, query)
    d_projected = torch.empty_like(case.projected)
    lead = (projected.shape[0], case.heads, case.sum_parts[0])
    d_query = None if query is None else _zeros(*lead, case.tokens, case.dim)
    d_table = _zeros(*lead, table.shape[0])
    backward(case, gradient.contiguous(), d_projected, Sums(query=d_query, table=d_table))
    d_table_Lh = d_table.sum((0, 2)).flip(1).t().contiguous().to(table.dtype)
    return d_projected, d_table_Lh, _no_query(projected) if d_query is None else d_query.sum(2).to(projected.dtype)


def _stripes(
    qkv: Tensor,
    vertical: Tensor,
    v_bias: Tensor,
    horizontal: Tensor,
    h_bias: Tensor,
    stripe: int,
    heads: int,
    outside: Tensor | None = None,
) -> Tensor:
    """(B, H, W, 3C) and the weights (C/2, 1, 3, 3) and biases (C/2,) of both convolutions → (B, H, W, C)."""
    out = qkv.new_empty((*qkv.shape[:3], qkv.shape[3] // 3))
    for case in _stripe_cases(qkv, vertical, v_bias, horizontal, h_bias, stripe, heads, outside):
        forward(case, out)
    return out


native_windows = custom_op("globalvit::native_windows", _windows, mutates_args=(), device_types="cpu")
native_stripes = custom_op("globalvit::native_stripes", _stripes, mutates_args=(), device_types="cpu")


@custom_op("globalvit::native_stripes_backward", mutates_args=(), device_types="cpu")
def native_stripes_backward(
    gradient: Tensor,
    qkv: Tensor,
    vertical: Tensor,
    v_bias: Tensor,
    horizontal: Tensor,
    h_bias: Tensor,
    stripe: int,
    heads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the five tensors that `native_stripes` reads."""
    gradient, d_qkv, d_convs = gradient.contiguous(), qkv.new_empty(qkv.shape), []
    for case in _stripe_cases(qkv, vertical, v_bias, horizontal, h_bias, stripe, heads):
        lead = (qkv.shape[0], heads, case.sum_parts[0])
        d_taps, d_offsets = _zeros(*lead, 9, case.dim), _zeros(*lead, case.dim)
        backward(case, gradient, d_qkv, Sums(taps=d_taps, offsets=d_offsets))
        d_weight = d_taps.sum((0, 2)).transpose(1, 2).reshape(vertical.shape)
        d_convs += [d_weight.to(vertical.dtype), d_offsets.sum((0, 2)).flatten().to(v_bias.dtype)]
    return d_qkv, d_convs[0], d_convs[1], d_convs[2], d_convs[3]


def _windows_case(
    projected: Tensor, table: Tensor, window: int, query: Tensor | None, outside: Tensor | None = None
) -> Case:
    parts, heads = 3 if query is None else 2, table.shape[1]
    channels = projected.shape[-1] // parts
    biases = table.detach() if table.dtype in DTYPES else table.detach().float()
    return Case(
        projected=projected.contiguous(),
        parts=parts,
        first=0,
        channels=channels,
        shape=(window, window),
        heads=heads,
        query=None if query is None else query.contiguous(),
        table=biases.contiguous(),
        outside=_of_type(outside, projected),
    )


def _stripe_cases(
    qkv: Tensor,
    vertical: Tensor,
    v_bias: Tensor,
    horizontal: Tensor,
    h_bias: Tensor,
    stripe: int,
    heads: int,
    outside: Tensor | None = None,
) -> list[Case]:
    qkv, half = qkv.contiguous(), vertical.shape[0]
    rows, columns = (-(-side // stripe) * stripe for side in qkv.shape[1:3])
    directions = ((vertical, v_bias, (rows, stripe)), (horizontal, h_bias, (stripe, columns)))
    return [
        Case(
            projected=qkv,
            parts=3,
            first=index * half,
            channels=half,
            shape=shape,
            heads=heads,
            taps=weight.detach().float().view(half, 9).t().contiguous(),
            offsets=bias.detach().float().contiguous(),
            outside=_of_type(outside, qkv),
        )
        for index, (weight, bias, shape) in enumerate(directions)
    ]


def _of_type(outside: Tensor | None, projected: Tensor) -> Tensor | None:
    return None if outside is None else outside.detach().to(projected.dtype).contiguous()


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float32)


def _no_query(projected: Tensor) -> Tensor:
    return projected.new_empty(0)


@native_windows.register_fake
def _(
    projected: Tensor,
    table: Tensor,  # noqa: ARG001
    window: int,  # noqa: ARG001
    query: Tensor | None,
    outside: Tensor | None = None,  # noqa: ARG001
) -> Tensor:
    return projected.new_empty((*projected.shape[:3], projected.shape[3] // (3 if query is None else 2)))


@native_windows_backward.register_fake
def _(
    gradient: Tensor,  # noqa: ARG001
    projected: Tensor,
    table: Tensor,
    window: int,  # noqa: ARG001
    query: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    d_query = _no_query(projected) if query is None else query.new_empty(query.shape)
    return projected.new_empty(projected.shape), table.new_empty(table.shape), d_query


@native_stripes.register_fake
def _(qkv: Tensor, *others: Any) -> Tensor:  # noqa: ARG001
    return qkv.new_empty((*qkv.shape[:3], qkv.shape[3] // 3))


@native_stripes_backward.register_fake
def _(gradient: Tensor, *inputs: Any) -> tuple[Tensor, ...]:  # noqa: ARG001
    return tuple(x.new_empty(x.shape) for x in inputs[:5])


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    *kept, outside = inputs
    assert outside is None, "the backward pass wants whole windows"
    tensors = [x if isinstance(x, Tensor) else None for x in kept]
    ctx.save_for_backward(*tensors)
    ctx.settings = [None if isinstance(x, Tensor) else x for x in kept]


def _inputs(ctx: Any) -> list[Any]:
    return [
        setting if tensor is None else tensor for tensor, setting in zip(ctx.saved_tensors, ctx.settings, strict=True)
    ]


def _windows_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    d_projected, d_table, d_query = native_windows_backward(gradient, *_inputs(ctx))
    return d_projected, d_table, None, d_query if d_query.numel() else None, None


def _stripes_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return (*native_stripes_backward(gradient, *_inputs(ctx)), None, None, None)


native_windows.register_autograd(_windows_gradients, setup_context=_keep_inputs)
native_stripes.register_autograd(_stripes_gradients, setup_context=_keep_inputs)


def _products(tokens: int, keys: int, channels: int) -> int:
    """Operations of both products for that many tokens, each of which sees `keys` others; 2 a multiply-add."""
    return 4 * tokens * keys * channels


def _whole(side: int, window: int) -> int:
    """The side that windows cover."""
    return -(-side // window) * window


@register_flop_formula(torch.ops.globalvit.native_windows)
def _(projected: torch.Size, table: torch.Size, window: int, query: torch.Size | None, *_: Any, **__: Any) -> int:  # noqa: ARG001
    B, H, W, width = projected
    tokens = B * _whole(H, window) * _whole(W, window)
    return _products(tokens, window**2, width // (3 if query is None else 2))


@register_flop_formula(torch.ops.globalvit.native_windows_backward)
def _(gradient: torch.Size, projected: torch.Size, table: torch.Size, window: int, *_: Any, **__: Any) -> int:  # noqa: ARG001
    # Counted as the formula's own backward pass: what is computed again is not, as under checkpointing.
    return 2 * _products(gradient.numel() // gradient[-1], window**2, gradient[-1])


@register_flop_formula(torch.ops.globalvit.native_stripes)
def _(qkv: torch.Size, vertical: torch.Size, *others: Any, **_: Any) -> int:
    B, H, W, _width = qkv
    half, stripe = vertical[0], others[3]
    H, W = _whole(H, stripe), _whole(W, stripe)
    products = _products(B * H * W, stripe * (H + W), half)
    return products + 2 * (2 * B * H * W * half * 9)


@register_flop_formula(torch.ops.globalvit.native_stripes_backward)
def _(gradient: torch.Size, qkv: torch.Size, vertical: torch.Size, *others: Any, **_: Any) -> int:  # noqa: ARG001
    B, H, W, _width = qkv
    half, stripe = vertical[0], others[3]
    return 2 * _products(B * H * W, stripe * (H + W), half) + 4 * (2 * B * H * W * half * 9)

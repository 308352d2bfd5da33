"""The compiled attention as operators of PyTorch: `globalvit::native_windows` and `globalvit::native_stripes`.

Legend: `B` images · `H W` grid · `C` channels · `N` tokens of a window · `h` heads · `d` channels a head · `L` entries
of a position table.

Neither operator keeps anything for its backward pass but its inputs: the weights are computed again, which costs less
than writing and reading them would. Sums over windows are made of parts that are added up in a fixed order, so that a
training gives the same bits with any number of threads.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.library import custom_op
from torch.utils.flop_counter import register_flop_formula

from globalvit.kernels.native import library
from globalvit.kernels.native.call import DTYPES, Case, Sums, backward, forward

# Reading whole vectors, the library looks up to 16 numbers past the end of a table.
SLACK = 16


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


def windows(projected_BHWC: Tensor, table_Lh: Tensor, window: int, query_BhNd: Tensor | None) -> Tensor:
    """See `globalvit.models.attention.window_attention`."""
    query_BhNd = None if query_BhNd is None else query_BhNd.to(projected_BHWC.dtype)
    return native_windows(projected_BHWC, table_Lh, window, query_BhNd)


def stripes(qkv_BHWC: Tensor, vertical: nn.Conv2d, horizontal: nn.Conv2d, stripe: int, heads: int) -> Tensor:
    """See `globalvit.models.attention.stripe_attention`."""
    assert vertical.bias is not None
    assert horizontal.bias is not None
    convs = (vertical.weight, vertical.bias, horizontal.weight, horizontal.bias)
    return native_stripes(qkv_BHWC, *convs, stripe, heads)


@custom_op("globalvit::native_windows", mutates_args=(), device_types="cpu")
def native_windows(projected: Tensor, table: Tensor, window: int, query: Tensor | None) -> Tensor:
    """(B, H, W, 3C) or (B, H, W, 2C) and a table (L, h) → (B, H, W, C); queries are (B, h, N, d)."""
    case = _windows_case(projected, table, window, query)
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


@custom_op("globalvit::native_stripes", mutates_args=(), device_types="cpu")
def native_stripes(
    qkv: Tensor, vertical: Tensor, v_bias: Tensor, horizontal: Tensor, h_bias: Tensor, stripe: int, heads: int
) -> Tensor:
    """(B, H, W, 3C) and the weights (C/2, 1, 3, 3) and biases (C/2,) of both convolutions → (B, H, W, C)."""
    out = qkv.new_empty((*qkv.shape[:3], qkv.shape[3] // 3))
    for case in _stripe_cases(qkv, vertical, v_bias, horizontal, h_bias, stripe, heads):
        forward(case, out)
    return out


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


def _windows_case(projected: Tensor, table: Tensor, window: int, query: Tensor | None) -> Case:
    parts, heads = 3 if query is None else 2, table.shape[1]
    channels = projected.shape[-1] // parts
    # The library adds the biases before it scales, and reads them from query to key.
    flat = table.detach().float().t().flip(1).flatten() * (channels // heads) ** 0.5
    return Case(
        projected=projected.contiguous(),
        parts=parts,
        first=0,
        channels=channels,
        shape=(window, window),
        heads=heads,
        query=None if query is None else query.contiguous(),
        table=F.pad(flat, (0, SLACK)),
    )


def _stripe_cases(
    qkv: Tensor, vertical: Tensor, v_bias: Tensor, horizontal: Tensor, h_bias: Tensor, stripe: int, heads: int
) -> list[Case]:
    qkv, half = qkv.contiguous(), vertical.shape[0]
    directions = ((vertical, v_bias, (qkv.shape[1], stripe)), (horizontal, h_bias, (stripe, qkv.shape[2])))
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
        )
        for index, (weight, bias, shape) in enumerate(directions)
    ]


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float32)


def _no_query(projected: Tensor) -> Tensor:
    return projected.new_empty(0)


@native_windows.register_fake
def _(projected: Tensor, table: Tensor, window: int, query: Tensor | None) -> Tensor:  # noqa: ARG001
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
    tensors = [x if isinstance(x, Tensor) else None for x in inputs]
    ctx.save_for_backward(*tensors)
    ctx.settings = [None if isinstance(x, Tensor) else x for x in inputs]


def _inputs(ctx: Any) -> list[Any]:
    return [
        setting if tensor is None else tensor for tensor, setting in zip(ctx.saved_tensors, ctx.settings, strict=True)
    ]


def _windows_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    d_projected, d_table, d_query = native_windows_backward(gradient, *_inputs(ctx))
    return d_projected, d_table, None, d_query if d_query.numel() else None


def _stripes_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return (*native_stripes_backward(gradient, *_inputs(ctx)), None, None)


native_windows.register_autograd(_windows_gradients, setup_context=_keep_inputs)
native_stripes.register_autograd(_stripes_gradients, setup_context=_keep_inputs)


def _products(tokens: int, keys: int, channels: int) -> int:
    """Operations of both products for that many tokens, each of which sees `keys` others; 2 a multiply-add."""
    return 4 * tokens * keys * channels


@register_flop_formula(torch.ops.globalvit.native_windows)
def _(projected: torch.Size, table: torch.Size, window: int, query: torch.Size | None, **_: Any) -> int:  # noqa: ARG001
    B, H, W, width = projected
    return _products(B * H * W, window**2, width // (3 if query is None else 2))


@register_flop_formula(torch.ops.globalvit.native_windows_backward)
def _(gradient: torch.Size, projected: torch.Size, table: torch.Size, window: int, *_: Any, **__: Any) -> int:  # noqa: ARG001
    # Counted as the formula's own backward pass: what is computed again is not, as under checkpointing.
    return 2 * _products(gradient.numel() // gradient[-1], window**2, gradient[-1])


@register_flop_formula(torch.ops.globalvit.native_stripes)
def _(qkv: torch.Size, vertical: torch.Size, *others: Any, **_: Any) -> int:
    B, H, W, _width = qkv
    half, stripe = vertical[0], others[3]
    products = _products(B * H * W, stripe * (H + W), half)
    return products + 2 * (2 * B * H * W * half * 9)


@register_flop_formula(torch.ops.globalvit.native_stripes_backward)
def _(gradient: torch.Size, qkv: torch.Size, vertical: torch.Size, *others: Any, **_: Any) -> int:  # noqa: ARG001
    B, H, W, _width = qkv
    half, stripe = vertical[0], others[3]
    return 2 * _products(B * H * W, stripe * (H + W), half) + 4 * (2 * B * H * W * half * 9)

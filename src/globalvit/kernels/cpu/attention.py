"""Attention in windows, in stripes and between sequences by the C kernels, as operators of PyTorch.

Legend: `B` images · `H W` grid · `C` channels · `N` tokens of a window · `h` heads · `d` channels a head · `L` entries
of a position table · `P` parts of a sum over windows.

The operators save only their inputs for the backward pass: computing the attention weights again costs less than
writing and reading them. Sums over windows are split into parts that are added in a fixed order, so that training gives
the same bits with any number of threads.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op
from torch.utils.flop_counter import register_flop_formula

from globalvit.kernels.cpu import library, structs
from globalvit.kernels.cpu.dispatch import differentiable_gradients, is_direct, takes_formula
from globalvit.kernels.cpu.tensors import DTYPES, address, check_memory, floats, optional
from globalvit.models import ops

TOKENS_A_PART = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One attention over all windows of a batch.

    Attributes:
        projected: (B, H, W, parts · C), float32 or bfloat16.
        parts: 3 if q, k and v are side by side, 2 if k and v are.
        first: the first channel of each part that is attended to.
        channels: number of these channels, cut as heads × d.
        shape: rows and columns of a window.
        heads: number of heads.
        query: (B, h, N, d) if `parts` is 2, in `projected`'s dtype.
        table: (L, h) biases, query minus key, float32 or bfloat16.
        taps: (9, channels) float32, the convolution of the values.
        offsets: (channels,) float32, its bias.
        outside: (parts · C,), what tokens outside the grid have in place of a projection; None if there are none.
    """

    projected: Tensor
    parts: int
    first: int
    channels: int
    shape: tuple[int, int]
    heads: int
    query: Tensor | None = None
    table: Tensor | None = None
    taps: Tensor | None = None
    offsets: Tensor | None = None
    outside: Tensor | None = None

    def __post_init__(self) -> None:
        _, H, W, width = self.projected.shape
        is_whole = H % self.shape[0] == 0 and W % self.shape[1] == 0
        if width % self.parts or self.channels % self.heads or not (is_whole or self.outside is not None):
            raise RuntimeError(
                f"a C kernel expected {self.parts} × C channels for {self.heads} heads and a grid of whole windows "
                f"{self.shape}, got {tuple(self.projected.shape)}; use kernels='torch' instead"
            )

    @property
    def dim(self) -> int:
        """Channels of a head."""
        return self.channels // self.heads

    @property
    def tokens(self) -> int:
        """Tokens of a window."""
        return self.shape[0] * self.shape[1]

    @property
    def sum_parts(self) -> tuple[int, int]:
        """Number of parts of a sum over an image's windows, and windows of a part; they do not depend on threads."""
        _, H, W, _ = self.projected.shape
        count = H // self.shape[0] * (W // self.shape[1])
        windows_a_part = max(1, TOKENS_A_PART // self.tokens)
        return -(-count // windows_a_part), windows_a_part

    def task(self) -> structs.Task:
        """Return the case as the kernels take it."""
        B, H, W, stride = self.projected.shape
        (rows, columns), dtype = self.shape, self.projected.dtype
        query, key, value = self.addresses(self.projected)
        no_query, no_key, no_value = (None, None, None) if self.outside is None else self.addresses(self.outside)
        if self.parts == 2:
            assert self.query is not None
            query, no_query = address(self.query, (B, self.heads, self.tokens, self.dim), (dtype,)), None
        entries = (2 * rows - 1) * (2 * columns - 1)
        return structs.Task(
            images=B,
            height=H,
            width=W,
            rows=rows,
            columns=columns,
            heads=self.heads,
            dim=self.dim,
            type=DTYPES[dtype],
            query=query,
            key=key,
            value=value,
            no_query=no_query,
            no_key=no_key,
            no_value=no_value,
            stride=stride,
            is_global=int(self.query is not None),
            table=optional(self.table, (entries, self.heads), tuple(DTYPES)),
            table_type=0 if self.table is None else DTYPES[self.table.dtype],
            taps=optional(self.taps, (9, self.channels)),
            offsets=optional(self.offsets, (self.channels,)),
            scale=self.dim**-0.5,
        )

    def addresses(self, tensor: Tensor) -> tuple[int | None, int, int]:
        """Return the addresses of queries, if there are any, keys and values in a tensor (…, parts · C)."""
        width = self.projected.shape[-1] // self.parts
        shape = (*tensor.shape[:-1], self.parts * width)
        *queries, key, value = (
            address(tensor, shape, (self.projected.dtype,), part * width + self.first) for part in range(self.parts)
        )
        return queries[0] if queries else None, key, value


@dataclass(frozen=True, kw_only=True, slots=True)
class Sums:
    """Zeros of float32 (B, h, P, …) that sums over windows are added to; None for what the case does not have."""

    query: Tensor | None = None
    table: Tensor | None = None
    taps: Tensor | None = None
    offsets: Tensor | None = None


def run_forward(case: Case, out: Tensor) -> None:
    """Write the results to the channels of `out` (B, H, W, C) that belong to `case`."""
    if out.numel():
        to = address(out, (*case.projected.shape[:3], out.shape[-1]), (case.projected.dtype,), case.first)
        check_memory(library.load().attention_forward(ctypes.byref(case.task()), to, out.shape[-1]))


def run_backward(case: Case, gradient: Tensor, d_projected: Tensor, sums: Sums) -> None:
    """Write the gradient of `case.projected` from that of the results (B, H, W, C), and add to `sums`."""
    if not gradient.numel():
        return
    (parts, windows_a_part), B, h = case.sum_parts, case.projected.shape[0], case.heads
    lead, (rows, columns) = (B, h, parts), case.shape
    query, key, value = case.addresses(d_projected)
    to = structs.Gradients(
        query=query,
        key=key,
        value=value,
        stride=d_projected.shape[-1],
        global_query=optional(sums.query, (*lead, case.tokens, case.dim)),
        table=optional(sums.table, (*lead, (2 * rows - 1) * (2 * columns - 1))),
        taps=optional(sums.taps, (*lead, 9, case.dim)),
        offsets=optional(sums.offsets, (*lead, case.dim)),
        parts=parts,
        windows_a_part=windows_a_part,
    )
    shape = (*case.projected.shape[:3], gradient.shape[-1])
    d_out = address(gradient, shape, (case.projected.dtype,), case.first)
    status = library.load().attention_backward(ctypes.byref(case.task()), d_out, shape[-1], ctypes.byref(to))
    check_memory(status)


def windows(
    projected_BHWC: Tensor, table_Lh: Tensor, window: int, query_BhNd: Tensor | None, outside_C: Tensor | None = None
) -> Tensor:
    """`ops.attend_windows`, also on a grid of any size if `outside_C` gives the projection of tokens outside it."""
    query = None if query_BhNd is None else query_BhNd.to(projected_BHWC.dtype)
    run = _windows if is_direct(projected_BHWC, table_Lh, query, outside_C) else window_attention
    return run(projected_BHWC, table_Lh, window, query, outside_C)


def stripes(
    qkv_BHWC: Tensor, convs: tuple[Tensor, Tensor, Tensor, Tensor], stripe: int, heads: int, outside_C: Tensor | None
) -> Tensor:
    """`ops.attend_stripes` with the weights and biases of both convolutions; `outside_C` as for `windows`."""
    run = _stripes if is_direct(qkv_BHWC, *convs, outside_C) else stripe_attention
    return run(qkv_BHWC, *convs, stripe, heads, outside_C)


def sequences(q_BNC: Tensor, k_BSC: Tensor, v_BSC: Tensor, heads: int) -> Tensor:
    """`ops.attention` without gradients."""
    run = _sequences if is_direct(q_BNC, k_BSC, v_BSC) else sequence_attention
    return run(q_BNC, k_BSC, v_BSC, heads)


def _windows(
    projected: Tensor, table: Tensor, window: int, query: Tensor | None, outside: Tensor | None = None
) -> Tensor:
    case = _windows_case(projected, table, window, query, outside)
    out = projected.new_empty((*projected.shape[:3], case.channels))
    run_forward(case, out)
    return out


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
    out = qkv.new_empty((*qkv.shape[:3], qkv.shape[3] // 3))
    for case in _stripe_cases(qkv, vertical, v_bias, horizontal, h_bias, stripe, heads, outside):
        run_forward(case, out)
    return out


def _sequences(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    (B, N, C), S, dtypes, out = q.shape, k.shape[1], (q.dtype,), q.new_empty(q.shape)
    if out.numel() == 0:
        return out
    addresses = (address(x, (B, length, C), dtypes) for x, length in ((q, N), (k, S), (v, S), (out, N)))
    task = structs.Sequences(B, N, S, heads, C // heads, DTYPES[q.dtype], *addresses, (C // heads) ** -0.5)
    check_memory(library.load().attention_sequences(ctypes.byref(task)))
    return out


window_attention = custom_op("globalvit::window_attention", _windows, mutates_args=(), device_types="cpu")
stripe_attention = custom_op("globalvit::stripe_attention", _stripes, mutates_args=(), device_types="cpu")
sequence_attention = custom_op("globalvit::sequence_attention", _sequences, mutates_args=(), device_types="cpu")


@custom_op("globalvit::window_attention_backward", mutates_args=(), device_types="cpu")
def window_attention_backward(
    gradient: Tensor, projected: Tensor, table: Tensor, window: int, query: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the projection, the table and the queries; the last is empty if there are none."""
    case = _windows_case(projected, table, window, query)
    d_projected = torch.empty_like(case.projected)
    lead = (projected.shape[0], case.heads, case.sum_parts[0])
    d_query = None if query is None else floats(gradient, *lead, case.tokens, case.dim).zero_()
    d_table = floats(gradient, *lead, table.shape[0]).zero_()
    run_backward(case, gradient.contiguous(), d_projected, Sums(query=d_query, table=d_table))
    d_table_Lh = d_table.sum((0, 2)).flip(1).t().contiguous().to(table.dtype)
    return d_projected, d_table_Lh, projected.new_empty(0) if d_query is None else d_query.sum(2).to(projected.dtype)


@custom_op("globalvit::stripe_attention_backward", mutates_args=(), device_types="cpu")
def stripe_attention_backward(
    gradient: Tensor,
    qkv: Tensor,
    vertical: Tensor,
    v_bias: Tensor,
    horizontal: Tensor,
    h_bias: Tensor,
    stripe: int,
    heads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the five tensors that `stripe_attention` reads."""
    gradient, d_qkv, d_convs = gradient.contiguous(), qkv.new_empty(qkv.shape), []
    for case in _stripe_cases(qkv, vertical, v_bias, horizontal, h_bias, stripe, heads):
        lead = (qkv.shape[0], heads, case.sum_parts[0])
        d_taps, d_offsets = floats(gradient, *lead, 9, case.dim).zero_(), floats(gradient, *lead, case.dim).zero_()
        run_backward(case, gradient, d_qkv, Sums(taps=d_taps, offsets=d_offsets))
        d_weight = d_taps.sum((0, 2)).transpose(1, 2).reshape(vertical.shape)
        d_convs += [d_weight.to(vertical.dtype), d_offsets.sum((0, 2)).flatten().to(v_bias.dtype)]
    return d_qkv, d_convs[0], d_convs[1], d_convs[2], d_convs[3]


def _windows_case(
    projected: Tensor, table: Tensor, window: int, query: Tensor | None, outside: Tensor | None = None
) -> Case:
    parts = 3 if query is None else 2
    biases = table.detach() if table.dtype in DTYPES else table.detach().float()
    return Case(
        projected=projected.contiguous(),
        parts=parts,
        first=0,
        channels=projected.shape[-1] // parts,
        shape=(window, window),
        heads=table.shape[1],
        query=None if query is None else query.contiguous(),
        table=biases.contiguous(),
        outside=_in_dtype_of(projected, outside),
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
            taps=weight.detach().float().reshape(half, 9).t().contiguous(),
            offsets=bias.detach().float().contiguous(),
            outside=_in_dtype_of(qkv, outside),
        )
        for index, (weight, bias, shape) in enumerate(directions)
    ]


def _in_dtype_of(projected: Tensor, outside: Tensor | None) -> Tensor | None:
    return None if outside is None else outside.detach().to(projected.dtype).contiguous()


@window_attention.register_fake
def _(projected: Tensor, table: Tensor, window: int, query: Tensor | None, outside: Tensor | None = None) -> Tensor:  # noqa: ARG001
    return projected.new_empty((*projected.shape[:3], projected.shape[3] // (3 if query is None else 2)))


@window_attention_backward.register_fake
def _(
    gradient: Tensor,  # noqa: ARG001
    projected: Tensor,
    table: Tensor,
    window: int,  # noqa: ARG001
    query: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    d_query = projected.new_empty(0) if query is None else query.new_empty(query.shape)
    return projected.new_empty(projected.shape), table.new_empty(table.shape), d_query


@stripe_attention.register_fake
def _(qkv: Tensor, *others: Any) -> Tensor:  # noqa: ARG001
    return qkv.new_empty((*qkv.shape[:3], qkv.shape[3] // 3))


@stripe_attention_backward.register_fake
def _(gradient: Tensor, *inputs: Any) -> tuple[Tensor, ...]:  # noqa: ARG001
    return tuple(x.new_empty(x.shape) for x in inputs[:5])


@sequence_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:  # noqa: ARG001
    return q.new_empty(q.shape)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    *kept, outside = inputs
    assert outside is None, "the backward pass is for whole windows"
    ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in kept))
    ctx.settings = [None if isinstance(x, Tensor) else x for x in kept]


def _saved_inputs(ctx: Any) -> list[Any]:
    return [
        setting if tensor is None else tensor for tensor, setting in zip(ctx.saved_tensors, ctx.settings, strict=True)
    ]


def _windows_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    inputs = _saved_inputs(ctx)
    if takes_formula(gradient):
        return *differentiable_gradients(_plain_windows, inputs, ctx.needs_input_grad[:4], gradient), None
    d_projected, d_table, d_query = window_attention_backward(gradient, *inputs)
    return d_projected, d_table, None, d_query if d_query.numel() else None, None


def _stripes_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    inputs = _saved_inputs(ctx)
    if takes_formula(gradient):
        return *differentiable_gradients(_plain_stripes, inputs, ctx.needs_input_grad[:7], gradient), None
    return (*stripe_attention_backward(gradient, *inputs), None, None, None)


def _plain_windows(projected: Tensor, table: Tensor, window: int, query: Tensor | None) -> Tensor:
    return ops.attend_windows.plain(projected, table, window=window, query_BhNd=query)


def _plain_stripes(
    qkv: Tensor, vertical: Tensor, v_bias: Tensor, horizontal: Tensor, h_bias: Tensor, stripe: int, heads: int
) -> Tensor:
    def convolve(weight: Tensor, bias: Tensor) -> Any:
        return lambda x: F.conv2d(x, weight.to(x.dtype), bias.to(x.dtype), padding=1, groups=len(weight))

    directions = convolve(vertical, v_bias), convolve(horizontal, h_bias)
    return ops.attend_stripes.plain(qkv, *directions, stripe=stripe, heads=heads)


window_attention.register_autograd(_windows_gradients, setup_context=_save_inputs)
stripe_attention.register_autograd(_stripes_gradients, setup_context=_save_inputs)


def _products(tokens: int, keys: int, channels: int) -> int:
    """Operations of both products for that many tokens, each of which sees `keys` others; 2 a multiply-add."""
    return 4 * tokens * keys * channels


def _covered(side: int, window: int) -> int:
    """The side that whole windows cover."""
    return -(-side // window) * window


@register_flop_formula(torch.ops.globalvit.window_attention)
def _(projected: torch.Size, table: torch.Size, window: int, query: torch.Size | None, *_: Any, **__: Any) -> int:  # noqa: ARG001
    B, H, W, width = projected
    tokens = B * _covered(H, window) * _covered(W, window)
    return _products(tokens, window**2, width // (3 if query is None else 2))


@register_flop_formula(torch.ops.globalvit.stripe_attention)
def _(qkv: torch.Size, vertical: torch.Size, *others: Any, **_: Any) -> int:
    B, H, W, _width = qkv
    half, stripe = vertical[0], others[3]
    H, W = _covered(H, stripe), _covered(W, stripe)
    return _products(B * H * W, stripe * (H + W), half) + 2 * (2 * B * H * W * half * 9)


@register_flop_formula(torch.ops.globalvit.sequence_attention)
def _(q: torch.Size, k: torch.Size, v: torch.Size, heads: int, *_: object, **__: object) -> int:  # noqa: ARG001
    B, N, C = q
    return 4 * B * N * k[1] * C

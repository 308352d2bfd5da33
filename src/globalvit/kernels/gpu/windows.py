"""Attention in windows as an operator of PyTorch.

It is opaque to `torch.compile`, which therefore needs no graph break: sizes become numbers only inside, where the
kernels are chosen, so that one graph serves all sizes. The gradient is an operator too and has no derivative itself.

Legend: `B` images · `H W` grid · `C` channels · `N` tokens of a window · `h` heads · `d` channels a head ·
`L` entries of a position table, (2w − 1)².
"""

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from globalvit.kernels.gpu.launch import Case, attend, attend_backward


@custom_op("globalvit::triton_windows", mutates_args=())
def triton_windows(
    projected: Tensor, table: Tensor, query: Tensor | None, window: int, with_statistics: bool
) -> tuple[Tensor, Tensor]:
    """(B, H, W, C), and what the backward pass wants of every query (B·H·W·h,), empty without `with_statistics`."""
    projected = projected.contiguous()
    out, statistics = _window_outputs(projected, table, query, window, with_statistics)
    attend(_window_case(projected, table, query, window), out, statistics if with_statistics else None)
    return out, statistics


@triton_windows.register_fake
def _window_outputs(
    projected: Tensor, table: Tensor, query: Tensor | None, _window: int, with_statistics: bool
) -> tuple[Tensor, Tensor]:
    B, H, W, channels = projected.shape
    out = projected.new_empty(B, H, W, channels // (3 if query is None else 2))
    size = B * H * W * table.shape[1] if with_statistics else 0
    return out, projected.new_empty(size, dtype=torch.float32)


@custom_op("globalvit::triton_windows_backward", mutates_args=())
def triton_windows_backward(
    grad: Tensor,
    projected: Tensor,
    table: Tensor,
    query: Tensor | None,
    out: Tensor,
    statistics: Tensor,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the projection, the table and the query, the last one empty where there is none."""
    projected = projected.contiguous()
    dprojected = torch.empty_like(projected)
    case = _window_case(projected, table, query, window)
    sums = attend_backward(case, grad.contiguous(), out, statistics, dprojected)
    assert sums.table is not None
    dquery = projected.new_empty(0) if sums.query is None else sums.query.to(projected.dtype)
    return dprojected, sums.table.to(table.dtype), dquery


@triton_windows_backward.register_fake
def _window_gradients(
    _grad: Tensor, projected: Tensor, table: Tensor, query: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    dquery = projected.new_empty(0 if query is None else query.shape)
    return projected.new_empty(projected.shape), table.new_empty(table.shape), dquery


def _window_case(projected: Tensor, table: Tensor, query: Tensor | None, window: int) -> Case:
    heads = table.shape[1]
    width = projected.shape[-1] // (3 if query is None else 2)
    return Case(
        projected=projected,
        heads=heads,
        dim=width // heads,
        window=(window, window),
        starts=(0, width, 2 * width) if query is None else (0, 0, width),
        out_channels=width,
        queries=None if query is None else query.contiguous(),
        # A transposed copy of the small table, not of the N² biases a head: see `read_bias`.
        table=table.t().float().contiguous(),
    )


def _keep_window(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    projected, table, query, ctx.window, _ = inputs
    ctx.save_for_backward(projected, table, query, *output)


def _differentiate_windows(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    projected, table, query, out, statistics = ctx.saved_tensors
    gradients = triton_windows_backward(grad, projected, table, query, out, statistics, ctx.window)
    dprojected, dtable, dquery = gradients
    return dprojected, dtable, None if query is None else dquery, None, None


triton_windows.register_autograd(_differentiate_windows, setup_context=_keep_window)

"""Attention in stripes with its position convolutions as an operator of PyTorch; see `windows` beside this.

Both directions are one operator: each reads its half of the channels and writes its half of the output, so that no
halves are cut out or put together. Legend: `B` images · `H W` grid · `C` channels · `h` heads of a direction.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from globalvit.kernels.gpu.launch import Case, attend, attend_backward


@custom_op("globalvit::triton_stripes", mutates_args=())
def triton_stripes(
    qkv: Tensor, position: Sequence[Tensor], stripe: int, heads: int, with_statistics: bool
) -> tuple[Tensor, Tensor]:
    """(B, H, W, C), and what the backward pass wants of every query (2, B·H·W·h), (2, 0) without `with_statistics`.

    `position` is weight and bias of the vertical convolution, then of the horizontal one.
    """
    qkv = qkv.contiguous()
    out, statistics = _outputs(qkv, position, stripe, heads, with_statistics)
    for direction in range(2):
        case = _case(qkv, position, stripe, heads, direction)
        attend(case, out, statistics[direction] if with_statistics else None)
    return out, statistics


@triton_stripes.register_fake
def _outputs(
    qkv: Tensor, _position: Sequence[Tensor], _stripe: int, heads: int, with_statistics: bool
) -> tuple[Tensor, Tensor]:
    B, H, W, channels = qkv.shape
    size = B * H * W * heads if with_statistics else 0
    return qkv.new_empty(B, H, W, channels // 3), qkv.new_empty(2, size, dtype=torch.float32)


@custom_op("globalvit::triton_stripes_backward", mutates_args=())
def triton_stripes_backward(
    grad: Tensor,
    qkv: Tensor,
    position: Sequence[Tensor],
    out: Tensor,
    statistics: Tensor,
    stripe: int,
    heads: int,
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of the projection and of the four tensors of `position`."""
    qkv, grad = qkv.contiguous(), grad.contiguous()
    dqkv = torch.empty_like(qkv)
    own: list[Tensor] = []
    for direction in range(2):
        case = _case(qkv, position, stripe, heads, direction)
        sums = attend_backward(case, grad, out, statistics[direction], dqkv)
        assert sums.position is not None
        own += _position_gradients(sums.position, *position[2 * direction : 2 * direction + 2])
    return dqkv, own


@triton_stripes_backward.register_fake
def _gradients(_grad: Tensor, qkv: Tensor, position: Sequence[Tensor], *_: Any) -> tuple[Tensor, list[Tensor]]:
    return qkv.new_empty(qkv.shape), [one.new_empty(one.shape) for one in position]


def _position_gradients(sums_h10d: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Taps and bias of all heads as the convolution's own parameters."""
    lines = sums_h10d.transpose(1, 2).flatten(0, 1)
    return lines[:, :-1].to(weight.dtype).reshape(weight.shape), lines[:, -1].to(bias.dtype, copy=True)


def _case(qkv: Tensor, position: Sequence[Tensor], stripe: int, heads: int, direction: int) -> Case:
    _, H, W, channels = qkv.shape
    width = channels // 3
    start = direction * width // 2
    weight, shift = (one.contiguous() for one in position[2 * direction : 2 * direction + 2])
    return Case(
        projected=qkv,
        heads=heads,
        dim=width // (2 * heads),
        window=(H, stripe) if direction == 0 else (stripe, W),
        starts=(start, width + start, 2 * width + start),
        out_channels=width,
        out_start=start,
        weight=weight,
        shift=shift,
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, position, ctx.stripe, ctx.heads, _ = inputs
    ctx.save_for_backward(qkv, *position, *output)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    qkv, *position, out, statistics = ctx.saved_tensors
    dqkv, dposition = triton_stripes_backward(grad, qkv, position, out, statistics, ctx.stripe, ctx.heads)
    return dqkv, dposition, None, None, None


triton_stripes.register_autograd(_differentiate, setup_context=_keep)

"""Operations of the attention operators, as PyTorch counts those of the plain formula (two for a multiply-add).

What the kernels compute twice to save memory, and what they compute for padded tokens, does not count. One count
differs: the gradient of the position convolution's weight, which PyTorch counts as if it were not depthwise.
"""

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

# Defines the operators, which are looked up by name below.
import globalvit.kernels.triton.stripes
import globalvit.kernels.triton.windows  # noqa: F401

Shape = tuple[int, ...]
TAPS = 9


def _products(tokens: int, others: int, channels: int) -> int:
    """Queries by keys, and weights by values."""
    return 2 * 2 * tokens * others * channels


@register_flop_formula(torch.ops.globalvit.triton_windows)
def windows_forward(projected: Shape, table: Shape, query: Shape | None, window: int, *_: Any, **__: Any) -> int:  # noqa: ARG001
    """(B, H, W, 3C), or (B, H, W, 2C) with a query → operations."""
    B, H, W, channels = projected
    return _products(B * H * W, window**2, channels // (3 if query is None else 2))


@register_flop_formula(torch.ops.globalvit.triton_windows_backward)
def windows_backward(
    grad: Shape,  # noqa: ARG001
    projected: Shape,
    table: Shape,
    query: Shape | None,
    out: Shape,  # noqa: ARG001
    statistics: Shape,  # noqa: ARG001
    window: int,
    **_: Any,
) -> int:
    """Each product has two gradients."""
    return 2 * windows_forward(projected, table, query, window)


@register_flop_formula(torch.ops.globalvit.triton_stripes)
def stripes_forward(qkv: Shape, position: list[Shape], stripe: int, *_: Any, **__: Any) -> int:  # noqa: ARG001
    """(B, H, W, 3C) → operations of both directions and their convolutions."""
    B, H, W, channels = qkv
    tokens, half = B * H * W, channels // 6
    return _products(tokens, stripe * (H + W), half) + 2 * 2 * TAPS * tokens * half


@register_flop_formula(torch.ops.globalvit.triton_stripes_backward)
def stripes_backward(
    grad: Shape,  # noqa: ARG001
    qkv: Shape,
    position: list[Shape],
    out: Shape,  # noqa: ARG001
    statistics: Shape,  # noqa: ARG001
    stripe: int,
    *_: Any,
    **__: Any,
) -> int:
    """Each product has two gradients, and so has the convolution."""
    return 2 * stripes_forward(qkv, position, stripe)

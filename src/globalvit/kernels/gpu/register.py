"""Registers the Triton kernels as implementations of the networks' operations, and says which calls they accept."""

from typing import Any

import torch
from torch import Tensor, nn

from globalvit.kernels.gpu.support import computes, unavailable
from globalvit.models import ops
from globalvit.pytorch import is_plain_call, is_plain_module

__all__ = ["slower_operations", "unavailable"]


def slower_operations(dtype: torch.dtype) -> frozenset[str]:  # noqa: ARG001 - as the C kernels ask
    """Return no operation: the Triton kernels run only where they are asked for."""
    return frozenset()


def _accepts_windows(projected: Tensor, table: Tensor, *, window: int, query_BhNd: Tensor | None = None) -> bool:
    heads, parts = table.shape[-1], 3 if query_BhNd is None else 2
    if _is_captured() or projected.ndim != 4 or heads == 0 or projected.shape[-1] % (parts * heads):
        return False
    head_dim = projected.shape[-1] // (parts * heads)
    if torch.compiler.is_compiling():
        return computes(projected, head_dim)
    return (
        is_plain_call(projected, table, query_BhNd)
        and computes(projected, head_dim)
        and projected.shape[1] % window == projected.shape[2] % window == 0
        and table.shape == ((2 * window - 1) ** 2, heads)
        and (query_BhNd is None or query_BhNd.shape == (len(projected), heads, window**2, head_dim))
    )


@ops.attend_windows.implement("triton", _accepts_windows)
def _attend_windows(projected: Tensor, table: Tensor, *, window: int, query_BhNd: Tensor | None = None) -> Tensor:
    # Imported late: Triton does not exist on every system.
    from globalvit.kernels.gpu import operators

    return operators.windows(projected, table, window, query_BhNd)


def _accepts_stripes(qkv: Tensor, vertical: Any, horizontal: Any, *, stripe: int, heads: int) -> bool:
    convs = (vertical, horizontal)
    if _is_captured() or not all(is_plain_module(conv, nn.Conv2d) and conv.bias is not None for conv in convs):
        return False
    head_dim = qkv.shape[-1] // (6 * heads)
    if torch.compiler.is_compiling():
        return computes(qkv, head_dim)
    return (
        is_plain_call(qkv, *(parameter for conv in convs for parameter in conv.parameters()))
        and qkv.ndim == 4
        and computes(qkv, head_dim)
        and qkv.shape[1] % stripe == qkv.shape[2] % stripe == qkv.shape[-1] % (6 * heads) == 0
        and all(tuple(conv.weight.shape) == (qkv.shape[-1] // 6, 1, 3, 3) for conv in convs)
    )


@ops.attend_stripes.implement("triton", _accepts_stripes)
def _attend_stripes(qkv: Tensor, vertical: Any, horizontal: Any, *, stripe: int, heads: int) -> Tensor:
    from globalvit.kernels.gpu import operators

    return operators.stripes(qkv, vertical, horizontal, stripe, heads)


def _is_captured() -> bool:
    """Whether the call becomes part of an exported graph, which must run without the kernels."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]

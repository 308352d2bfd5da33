"""Windowed attention by the Triton kernels."""

from typing import Any

import torch
from torch import Tensor

from globalvit.kernels.gpu.stripes import triton_stripes
from globalvit.kernels.gpu.windows import triton_windows


def windows(projected_BHWC: Tensor, table_Lh: Tensor, window: int, query_BhNd: Tensor | None) -> Tensor:
    """`ops.attend_windows`."""
    dtype = _product_dtype(projected_BHWC)
    query = None if query_BhNd is None else query_BhNd.to(dtype)
    return triton_windows(projected_BHWC.to(dtype), table_Lh, query, window, torch.is_grad_enabled())[0]


def stripes(qkv_BHWC: Tensor, vertical: Any, horizontal: Any, stripe: int, heads: int) -> Tensor:
    """`ops.attend_stripes` of two convolutions with biases."""
    position = [vertical.weight, vertical.bias, horizontal.weight, horizontal.bias]
    qkv = qkv_BHWC.to(_product_dtype(qkv_BHWC))
    return triton_stripes(qkv, position, stripe, heads, torch.is_grad_enabled())[0]


def _product_dtype(projected: Tensor) -> torch.dtype:
    """Autocast's dtype if it is on, as for matrix products, otherwise the projection's.

    `torch.library.register_autocast` would take one dtype for good, and users choose between two.
    """
    device = projected.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else projected.dtype

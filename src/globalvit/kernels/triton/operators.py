"""What `globalvit.models.attention` calls. Importing this registers the operators and their counts of operations."""

import torch
from torch import Tensor, nn

import globalvit.kernels.triton.flops  # noqa: F401 - registers itself
from globalvit.kernels.triton.stripes import triton_stripes
from globalvit.kernels.triton.windows import triton_windows


def windows(projected_BHWC: Tensor, table_Lh: Tensor, window: int, query_BhNd: Tensor | None) -> Tensor:
    """`globalvit.models.attention.window_attention` by the kernels."""
    dtype = _computing_dtype(projected_BHWC)
    query = None if query_BhNd is None else query_BhNd.to(dtype)
    return triton_windows(projected_BHWC.to(dtype), table_Lh, query, window, torch.is_grad_enabled())[0]


def stripes(qkv_BHWC: Tensor, vertical: nn.Conv2d, horizontal: nn.Conv2d, stripe: int, heads: int) -> Tensor:
    """`globalvit.models.attention.stripe_attention` by the kernels."""
    assert vertical.bias is not None
    assert horizontal.bias is not None
    position = [vertical.weight, vertical.bias, horizontal.weight, horizontal.bias]
    qkv = qkv_BHWC.to(_computing_dtype(qkv_BHWC))
    return triton_stripes(qkv, position, stripe, heads, torch.is_grad_enabled())[0]


def _computing_dtype(projected: Tensor) -> torch.dtype:
    """Autocast's type where it is on, as for matrix products, else the projection's.

    `torch.library.register_autocast` would want one type for good, and users choose between two.
    """
    device = projected.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else projected.dtype

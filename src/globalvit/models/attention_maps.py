"""Attention as numbers to look at: which token takes how much from which.

Fused attention never writes these numbers down, so the attention modules compute them here, on demand, from the same
queries and keys. `forward` knows nothing of it.

Legend: `B` images · `H W` grid · `C` channels · `M` windows an image · `N` tokens of a window · `S` keys ·
`h` heads · `d` channels a head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from globalvit.models import windows
from globalvit.models.ops import position_bias


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowMaps:
    """Who attends to whom inside windows that tile a padded grid.

    The maps of all windows together can be larger than the image's features by far, so queries and keys are kept and
    the maps of some windows are computed when they are asked for.

    Attributes:
        query: of each window's tokens, (B, M, h, N, d).
        key: likewise.
        bias: (h, N, N), added to the logits, or None.
        rows: tokens of a window from top to bottom.
        columns: tokens of a window from left to right.
        grid: rows and columns of the padded grid, multiples of the window's.
        size: rows and columns of it that are not padding; they lie at the top and the left.
    """

    query: Tensor
    key: Tensor
    bias: Tensor | None
    rows: int
    columns: int
    grid: tuple[int, int]
    size: tuple[int, int]

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.query.shape[2]

    def of_windows(self, chosen: Tensor) -> Tensor:
        """The maps of some windows: indices (m,), row-major → (B, m, h, N, N), each query's sum to 1 with the padding.

        float32, or float64 from a model in float64.
        """
        return probabilities(self.query[:, chosen], self.key[:, chosen], self.bias)


def window_maps(
    projected_BHWC: Tensor, table_Lh: Tensor, *, window: int, query_BhNd: Tensor | None, size: tuple[int, int]
) -> WindowMaps:
    """The maps of `attention.window_attention` for the same arguments; `size` is the grid's without its padding."""
    parts = 3 if query_BhNd is None else 2
    cut = windows.partition(projected_BHWC.unflatten(-1, (parts, -1)), window, window, table_Lh.shape[1])
    k_BMhNd = cut[-2]
    return WindowMaps(
        query=cut[0] if query_BhNd is None else query_BhNd.unsqueeze(1).expand_as(k_BMhNd),
        key=k_BMhNd,
        bias=position_bias(table_Lh, window),
        rows=window,
        columns=window,
        grid=(projected_BHWC.shape[1], projected_BHWC.shape[2]),
        size=size,
    )


def stripe_maps(qkv_BHWC: Tensor, *, stripe: int, heads: int, size: tuple[int, int]) -> tuple[WindowMaps, WindowMaps]:
    """The maps of `attention.stripe_attention` for the same arguments, vertical and horizontal; `size` as above."""
    grid = (qkv_BHWC.shape[1], qkv_BHWC.shape[2])
    vertical, horizontal = qkv_BHWC.unflatten(-1, (3, 2, -1)).unbind(4)
    return (
        _one_direction(vertical, grid[0], stripe, heads, grid, size),
        _one_direction(horizontal, stripe, grid[1], heads, grid, size),
    )


def _one_direction(
    qkv_BHWPC: Tensor, rows: int, columns: int, heads: int, grid: tuple[int, int], size: tuple[int, int]
) -> WindowMaps:
    q_BMhNd, k_BMhNd, _ = windows.partition(qkv_BHWPC, rows, columns, heads).unbind(0)
    return WindowMaps(query=q_BMhNd, key=k_BMhNd, bias=None, rows=rows, columns=columns, grid=grid, size=size)


def probabilities(q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ/√d + bias): (…, N, d) and (…, S, d) → (…, N, S), in float32 or, where the inputs are, float64."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    logits = (q.to(dtype) * q.shape[-1] ** -0.5) @ k.to(dtype).transpose(-2, -1)
    return (logits if bias is None else logits + bias.to(dtype)).softmax(-1)


def sequence_map(q_BNC: Tensor, k_BSC: Tensor, heads: int) -> Tensor:
    """What `attention.attention` weighs its values with: (B, N, C) and (B, S, C) → (B, h, N, S)."""
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q_BNC, k_BSC))
    return probabilities(q, k)


def to_windows(x_HW: Tensor, rows: int, columns: int) -> Tensor:
    """Cut one number a token into windows: (H, W) → (M, N)."""
    return windows.partition(x_HW[None, :, :, None, None], rows, columns, 1).reshape(-1, rows * columns)


def to_grid(x_MN: Tensor, rows: int, columns: int, grid: tuple[int, int]) -> Tensor:
    """Undo `to_windows`: (M, N) → (H, W)."""
    return windows.merge(x_MN[None, :, None, :, None], rows, columns, *grid)[0, ..., 0]

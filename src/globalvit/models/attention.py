"""Attention in windows, in stripes and over whole grids: what every backbone calls, and its implementations.

Legend: `B` images · `H W` grid · `C` channels · `M` windows an image · `N` tokens of a window · `h` heads ·
`d` channels a head.

The projections come in as the Linear layers write them, channels-last over the whole grid, and the result leaves the
same way: an implementation decides for itself whether it copies windows out or reads them in place.
"""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from globalvit.models import windows

Implementation = Literal["auto", "plain", "fused"]
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def position_bias(table_Lh: Tensor, window: int) -> Tensor:
    """Spread a table of relative positions over all pairs of tokens of a window.

    Entry (Δrow + w − 1)(2w − 1) + (Δcol + w − 1) of the table belongs to Δ = query − key. Sliding a w×w view over the
    flipped table visits exactly these entries, so no index tensor (N² numbers a block) has to be kept.

    Args:
        table_Lh: ((2w − 1)², h).
        window: side w of the window in tokens.

    Returns:
        (h, N, N), query before key, N = w².
    """
    side = 2 * window - 1
    table = table_Lh.t().reshape(-1, side, side).flip(1, 2)
    pairs = table.unfold(1, window, 1).unfold(2, window, 1).flip(1, 2)
    return pairs.reshape(-1, window * window, window * window)


def window_attention(
    projected_BHWC: Tensor,
    bias_hNN: Tensor,
    *,
    window: int,
    query_BhNd: Tensor | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """softmax(q kᵀ/√d + bias)·v inside non-overlapping windows.

    Args:
        projected_BHWC: (B, H, W, 3C) holding q, k, v, or (B, H, W, 2C) holding k, v when a query is handed in;
            each is cut as heads × d. H and W are multiples of `window`.
        bias_hNN: (h, N, N), added to the logits of every window.
        window: side of the window in tokens.
        query_BhNd: one set of N queries an image, used by every window of that image and of no other.
        implementation: `plain` (matrix products and a softmax), `fused` (PyTorch's scaled-dot-product attention), or
            `auto`, the faster of the two on the device.

    Returns:
        (B, H, W, C) in `projected_BHWC`'s dtype.

    Raises:
        ValueError: the implementation has another name.
    """
    attend = _implementation(implementation, projected_BHWC.device.type)
    _, H, W, _ = projected_BHWC.shape
    parts = 3 if query_BhNd is None else 2
    cut = windows.partition(projected_BHWC.unflatten(-1, (parts, -1)), window, window, heads=bias_hNN.shape[0])
    k_BMhNd, v_BMhNd = cut[-2:].unbind(0)
    q_BMhNd = cut[0] if query_BhNd is None else query_BhNd.to(cut.dtype).unsqueeze(1).expand_as(k_BMhNd)
    out_BMhNd = attend(q_BMhNd, k_BMhNd, v_BMhNd, bias_hNN.to(cut.dtype))
    return windows.merge(out_BMhNd, window, window, H, W)


def stripe_attention(
    qkv_BHWPC: Tensor,
    position: nn.Conv2d,
    *,
    rows: int,
    columns: int,
    heads: int,
    implementation: Implementation = "auto",
) -> Tensor:
    """softmax(q kᵀ/√d)·v + position(v) inside stripes of `rows` × `columns` tokens.

    Args:
        qkv_BHWPC: (B, H, W, 3, C) holding q, k and v, each cut as heads × d; H is a multiple of `rows`, W of `columns`.
        position: depthwise 3×3 convolution that sees one stripe at a time, zero-padded at the stripe's border.
        rows: height of a stripe.
        columns: width of a stripe.
        heads: attention heads.
        implementation: as for `window_attention`.

    Returns:
        (B, H, W, C) in `qkv_BHWPC`'s dtype.

    Raises:
        ValueError: the implementation has another name.
    """
    attend = _implementation(implementation, qkv_BHWPC.device.type)
    _, H, W, _, _ = qkv_BHWPC.shape
    q_BMhNd, k_BMhNd, v_BMhNd = windows.partition(qkv_BHWPC, rows, columns, heads).unbind(0)
    out_BMhNd = attend(q_BMhNd, k_BMhNd, v_BMhNd, None) + _within_stripes(position, v_BMhNd, rows, columns)
    return windows.merge(out_BMhNd, rows, columns, H, W)


def attention(q_BNC: Tensor, k_BSC: Tensor, v_BSC: Tensor, heads: int) -> Tensor:
    """softmax(q kᵀ/√d)·v over whole sequences: (B, N, C) and twice (B, S, C) → (B, N, C)."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q_BNC, k_BSC, v_BSC))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _within_stripes(position: nn.Conv2d, v_BMhNd: Tensor, rows: int, columns: int) -> Tensor:
    """Convolve the values of each stripe by itself: (B, M, h, N, d) → the same."""
    B, M, heads, _, _ = v_BMhNd.shape
    v_SCRT = v_BMhNd.transpose(3, 4).reshape(B * M, -1, rows, columns)
    return position(v_SCRT).view(B, M, heads, -1, rows * columns).transpose(3, 4)


def _attend_plain(q_BMhNd: Tensor, k_BMhNd: Tensor, v_BMhNd: Tensor, bias_hNN: Tensor | None) -> Tensor:
    """The formula as it is written."""
    scale = q_BMhNd.shape[-1] ** -0.5
    logits = (q_BMhNd * scale) @ k_BMhNd.transpose(-2, -1)
    if bias_hNN is not None:
        # In place: the logits are the largest tensor here, and nothing needs them without the bias.
        logits += bias_hNN
    return logits.softmax(-1).to(v_BMhNd.dtype) @ v_BMhNd


def _attend_fused(q_BMhNd: Tensor, k_BMhNd: Tensor, v_BMhNd: Tensor, bias_hNN: Tensor | None) -> Tensor:
    """PyTorch's fused kernels, which want images and windows on one axis."""
    shape = q_BMhNd.shape
    q, k, v = (part.flatten(0, 1) for part in (q_BMhNd, k_BMhNd, v_BMhNd))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias_hNN).view(shape)


IMPLEMENTATIONS: dict[str, Attend] = {
    "plain": _attend_plain,
    "fused": _attend_fused,
}


def _implementation(name: str, device: str) -> Attend:
    if name == "auto":
        name = fastest(device)
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={name!r} is not one of 'auto', {', '.join(map(repr, IMPLEMENTATIONS))}")
    return IMPLEMENTATIONS[name]


def fastest(device: str) -> str:
    """The implementation measured to be the faster one: on CPU the fused kernel pays for copies it makes itself."""
    return "plain" if device == "cpu" else "fused"

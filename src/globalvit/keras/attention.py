"""Attention in windows, in stripes and over whole grids, in the operations that every backend has.

Legend: `B` images · `H W` grid · `C` channels · `M` windows an image · `N S` tokens · `h` heads · `d` channels a head ·
`P` projections side by side.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from globalvit.keras import windows
from globalvit.keras.untyped import ops
from globalvit.weights.gcvit_official import position_index


def position_bias(table_Lh: Any, window: int) -> Any:
    """Spread a table of relative positions ((2w − 1)², h) over all pairs of tokens: (h, N, N), query before key."""
    pairs = ops.take(table_Lh, _pairs(window), axis=0)
    return ops.transpose(ops.reshape(pairs, (window**2, window**2, -1)), (2, 0, 1))


@cache
def _pairs(window: int) -> np.ndarray:
    return position_index((2 * window - 1) ** 2).astype(np.int32).ravel()


def window_attention(projected_BHWC: Any, bias_hNN: Any, *, window: int, query_BhNd: Any = None) -> Any:
    """softmax(q kᵀ/√d + bias)·v inside non-overlapping windows.

    Args:
        projected_BHWC: (B, H, W, 3C) holding q, k, v, or (B, H, W, 2C) holding k, v when a query is handed in;
            each is cut as heads × d. H and W are multiples of `window`.
        bias_hNN: (h, N, N), added to the logits of every window.
        window: side of the window in tokens.
        query_BhNd: one set of N queries an image, used by every window of that image and of no other.

    Returns:
        (B, H, W, C) in `projected_BHWC`'s dtype.
    """
    height, width = windows.sides(projected_BHWC)
    parts = 3 if query_BhNd is None else 2
    apart = ops.reshape(projected_BHWC, (-1, height, width, parts, projected_BHWC.shape[-1] // parts))
    cut = windows.partition(apart, window, window, heads=bias_hNN.shape[0])
    q_BMhNd = cut[0] if query_BhNd is None else ops.expand_dims(query_BhNd, 1)
    return windows.merge(_attend(q_BMhNd, cut[-2], cut[-1], bias_hNN), window, window, height, width)


def stripe_attention(qkv_BHWPC: Any, position: Callable[[Any], Any], *, rows: Any, columns: Any, heads: int) -> Any:
    """softmax(q kᵀ/√d)·v + position(v) inside stripes of `rows` × `columns` tokens.

    Args:
        qkv_BHWPC: (B, H, W, 3, C) holding q, k and v, each cut as heads × d; H is a multiple of `rows`, W of `columns`.
        position: depthwise 3×3 convolution that sees one stripe at a time, zero-padded at the stripe's border.
        rows: height of a stripe.
        columns: width of a stripe.
        heads: attention heads.

    Returns:
        (B, H, W, C) in `qkv_BHWPC`'s dtype.
    """
    height, width = windows.sides(qkv_BHWPC)
    cut = windows.partition(qkv_BHWPC, rows, columns, heads)
    out_BMhNd = _attend(cut[0], cut[1], cut[2]) + _within_stripes(position, cut[2], rows, columns)
    return windows.merge(out_BMhNd, rows, columns, height, width)


def attention(q_BNC: Any, k_BSC: Any, v_BSC: Any, heads: int) -> Any:
    """softmax(q kᵀ/√d)·v over whole sequences: (B, N, C) and twice (B, S, C) → (B, N, C); q may be (1, N, C)."""
    out_BhNd = _attend(*(_heads_apart(x, heads) for x in (q_BNC, k_BSC, v_BSC)))
    return ops.reshape(ops.transpose(out_BhNd, (0, 2, 1, 3)), (-1, ops.shape(q_BNC)[1], q_BNC.shape[-1]))


def _heads_apart(x_BNC: Any, heads: int) -> Any:
    cut = ops.reshape(x_BNC, (-1, ops.shape(x_BNC)[1], heads, x_BNC.shape[-1] // heads))
    return ops.transpose(cut, (0, 2, 1, 3))


def _within_stripes(position: Callable[[Any], Any], v_BMhNd: Any, rows: Any, columns: Any) -> Any:
    """Convolve the values of each stripe by itself: (B, M, h, N, d) → the same."""
    stripes = ops.shape(v_BMhNd)[1]
    heads, dim = v_BMhNd.shape[2], v_BMhNd.shape[4]
    v_SRTC = ops.reshape(ops.transpose(v_BMhNd, (0, 1, 3, 2, 4)), (-1, rows, columns, heads * dim))
    out_BMNhd = ops.reshape(position(v_SRTC), (-1, stripes, rows * columns, heads, dim))
    return ops.transpose(out_BMNhd, (0, 1, 3, 2, 4))


def _attend(q: Any, k: Any, v: Any, bias: Any = None) -> Any:
    """The formula on (…, N, d) and (…, S, d); the softmax is in float32, as autocast has it in PyTorch."""
    logits = ops.matmul(q * q.shape[-1] ** -0.5, ops.swapaxes(k, -1, -2))
    if bias is not None:
        logits = logits + bias
    return ops.matmul(ops.cast(_softmax(ops.cast(logits, "float32")), v.dtype), v)


def _softmax(logits: Any) -> Any:
    """Over the last axis. That of a window of one token is 1, which Keras' own would warn of."""
    return ops.exp(logits - logits) if logits.shape[-1] == 1 else ops.softmax(logits)

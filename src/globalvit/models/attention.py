"""Attention in windows, in stripes and over whole grids: what every backbone calls, and its implementations.

Legend: `B` images · `H W` grid · `C` channels · `M` windows an image · `N` tokens of a window · `h` heads ·
`d` channels a head · `L` entries of a position table, (2w − 1)² · `P` projections side by side.

The projections come in as the Linear layers write them, channels-last over the whole grid, and the result leaves the
same way: an implementation decides for itself whether it copies windows out or reads them in place. To add one is to
add a row to `IMPLEMENTATIONS`, its name to `Implementation` and, where it is the fastest, to `FASTEST`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from globalvit.kernels.native import operators as native
from globalvit.kernels.triton import support as triton_support
from globalvit.models import windows

Implementation = Literal["auto", "plain", "fused", "native", "triton"]
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Routines:
    """What an implementation consists of.

    Attributes:
        windows: computes `window_attention`: (projected_BHWC, table_Lh, window, query_BhNd or None, outside_C or None).
        stripes: computes `stripe_attention`: (qkv_BHWC, vertical, horizontal, stripe, heads, outside_C or None).
        takes_any_grid: whether they may be given `outside_C` where no gradients are wanted; otherwise, and others
            always, they get grids of whole windows.
        refusal: (a projection, channels a head) → why such a case cannot be computed, None where it can.
        is_exportable: whether a graph of it stands for itself; exported graphs get the plain formula otherwise.
    """

    windows: Callable[[Tensor, Tensor, int, Tensor | None, Tensor | None], Tensor]
    stripes: Callable[[Tensor, nn.Conv2d, nn.Conv2d, int, int, Tensor | None], Tensor]
    takes_any_grid: bool
    refusal: Callable[[Tensor, int], str | None]
    is_exportable: bool


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
    table_Lh: Tensor,
    *,
    window: int,
    query_BhNd: Tensor | None = None,
    outside_C: Tensor | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """softmax(q kᵀ/√d + position bias)·v inside non-overlapping windows.

    Args:
        projected_BHWC: (B, H, W, 3C) holding q, k, v, or (B, H, W, 2C) holding k, v when a query is handed in;
            each is cut as heads × d. H and W are multiples of `window`, or `outside_C` is given.
        table_Lh: ((2w − 1)², h), the bias of every relative position as `position_bias` spreads it.
        window: side w of the window in tokens.
        query_BhNd: one set of N queries an image, used by every window of that image and of no other.
        outside_C: (3C,) or (2C,), what stands in `projected_BHWC`'s place for tokens outside the grid, where windows
            reach over its lower and its right side.
        implementation: a name of `IMPLEMENTATIONS`, or `auto`, the fastest one that can compute the case.

    Returns:
        (B, H, W, C) in `projected_BHWC`'s dtype.

    Raises:
        ValueError: the implementation has another name, or cannot compute the case.
    """
    width = projected_BHWC.shape[-1] // (3 if query_BhNd is None else 2)
    routines = choose(implementation, projected_BHWC, width // table_Lh.shape[1])
    if outside_C is None or (routines.takes_any_grid and not torch.is_grad_enabled()):
        return routines.windows(projected_BHWC, table_Lh, window, query_BhNd, outside_C)
    filled_BHWC = windows.fill(projected_BHWC, window, outside_C)
    return windows.crop(routines.windows(filled_BHWC, table_Lh, window, query_BhNd, None), *projected_BHWC.shape[1:3])


def masked_window_attention(projected_BHWC: Tensor, bias_hNN: Tensor, mask_MNN: Tensor, *, window: int) -> Tensor:
    """As `window_attention` with own queries, by the plain formula and with a mask for each window.

    Args:
        projected_BHWC: (B, H, W, 3C) holding q, k, v; H and W are multiples of `window`.
        bias_hNN: (h, N, N), added to the logits of every window.
        mask_MNN: (M, N, N) bool, whether a query (first) sees a key; windows row-major.
        window: side of the window in tokens.

    Returns:
        (B, H, W, C) in `projected_BHWC`'s dtype.
    """
    _, H, W, _ = projected_BHWC.shape
    cut = windows.partition(projected_BHWC.unflatten(-1, (3, -1)), window, window, heads=bias_hNN.shape[0])
    q_BMhNd, k_BMhNd, v_BMhNd = cut.unbind(0)
    bias_MhNN = bias_hNN.masked_fill(~mask_MNN.unsqueeze(1), float("-inf")).to(cut.dtype)
    out_BMhNd = F.scaled_dot_product_attention(q_BMhNd, k_BMhNd, v_BMhNd, attn_mask=bias_MhNN)
    return windows.merge(out_BMhNd, window, window, H, W)


def stripe_attention(
    qkv_BHWC: Tensor,
    vertical: nn.Conv2d,
    horizontal: nn.Conv2d,
    *,
    stripe: int,
    heads: int,
    outside_C: Tensor | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """softmax(q kᵀ/√d)·v + position(v), by half of the channels in vertical stripes, by the others in horizontal ones.

    Args:
        qkv_BHWC: (B, H, W, 3C) holding q, k and v, each of them its vertical half, then its horizontal one, and each
            half cut as heads × d. H and W are multiples of `stripe`, or `outside_C` is given.
        vertical: depthwise 3×3 convolution that sees one vertical stripe at a time, zero-padded at the stripe's border.
        horizontal: the same for horizontal stripes.
        stripe: tokens across a stripe; vertical ones are H × stripe, horizontal ones stripe × W.
        heads: attention heads of each direction.
        outside_C: (3C,), as for `window_attention`; a grid is filled up to multiples of `stripe` both ways.
        implementation: as for `window_attention`.

    Returns:
        (B, H, W, C) in `qkv_BHWC`'s dtype: the vertical half, then the horizontal one.

    Raises:
        ValueError: the implementation has another name, or cannot compute the case.
    """
    routines = choose(implementation, qkv_BHWC, qkv_BHWC.shape[-1] // (6 * heads))
    if outside_C is None or (routines.takes_any_grid and not torch.is_grad_enabled()):
        return routines.stripes(qkv_BHWC, vertical, horizontal, stripe, heads, outside_C)
    filled_BHWC = windows.fill(qkv_BHWC, stripe, outside_C)
    out_BHWC = routines.stripes(filled_BHWC, vertical, horizontal, stripe, heads, None)
    return windows.crop(out_BHWC, *qkv_BHWC.shape[1:3])


def attention(q_BNC: Tensor, k_BSC: Tensor, v_BSC: Tensor, heads: int) -> Tensor:
    """softmax(q kᵀ/√d)·v over whole sequences: (B, N, C) and twice (B, S, C) → (B, N, C)."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q_BNC, k_BSC, v_BSC))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def choose(name: str, projected: Tensor, head_dim: int) -> Routines:
    """The implementation of that name; for `auto`, the first of the device's `FASTEST` that can compute the case.

    Raises:
        ValueError: there is no implementation of that name, or it cannot compute the case.
    """
    check_name(name)
    is_exported = torch.compiler.is_exporting() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    if name == "auto":
        known = (IMPLEMENTATIONS[one] for one in FASTEST.get(projected.device.type, ("fused",)))
        candidates = (one for one in known if one.is_exportable or not is_exported)
        return next(one for one in candidates if one.refusal(projected, head_dim) is None)
    chosen = IMPLEMENTATIONS[name]
    if is_exported and not chosen.is_exportable:
        return IMPLEMENTATIONS["plain"]
    reason = chosen.refusal(projected, head_dim)
    if reason is not None:
        raise ValueError(f"the attention implementation {name!r} cannot be used here: {reason}; choose 'auto'")
    return chosen


def check_name(name: str) -> None:
    """Refuse what is neither an implementation nor `auto`.

    Raises:
        ValueError: there is no implementation of that name.
    """
    if name != "auto" and name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={name!r} is not one of 'auto', {', '.join(map(repr, IMPLEMENTATIONS))}")


def _copied_windows(
    attend: Attend,
    projected_BHWC: Tensor,
    table_Lh: Tensor,
    window: int,
    query_BhNd: Tensor | None,
    outside_C: Tensor | None = None,  # noqa: ARG001 - as others are called
) -> Tensor:
    """Copy the windows out, attend, and copy the result back."""
    _, H, W, _ = projected_BHWC.shape
    parts = 3 if query_BhNd is None else 2
    cut = windows.partition(projected_BHWC.unflatten(-1, (parts, -1)), window, window, heads=table_Lh.shape[1])
    k_BMhNd, v_BMhNd = cut[-2:].unbind(0)
    q_BMhNd = cut[0] if query_BhNd is None else query_BhNd.to(cut.dtype).unsqueeze(1).expand_as(k_BMhNd)
    out_BMhNd = attend(q_BMhNd, k_BMhNd, v_BMhNd, position_bias(table_Lh, window).to(cut.dtype))
    return windows.merge(out_BMhNd, window, window, H, W)


def _copied_stripes(
    attend: Attend,
    qkv_BHWC: Tensor,
    vertical: nn.Conv2d,
    horizontal: nn.Conv2d,
    stripe: int,
    heads: int,
    outside_C: Tensor | None = None,  # noqa: ARG001 - as others are called
) -> Tensor:
    """Copy the stripes out, attend and convolve, and copy the result back, one direction after the other."""
    _, H, W, _ = qkv_BHWC.shape
    halves = zip(
        qkv_BHWC.unflatten(-1, (3, 2, -1)).unbind(4), (vertical, horizontal), ((H, stripe), (stripe, W)), strict=True
    )
    return torch.cat([_one_direction(attend, half, conv, shape, heads) for half, conv, shape in halves], dim=-1)


def _one_direction(
    attend: Attend, qkv_BHWPC: Tensor, position: nn.Conv2d, shape: tuple[int, int], heads: int
) -> Tensor:
    """(B, H, W, 3, C) → (B, H, W, C) in stripes of `shape`."""
    rows, columns = shape
    q_BMhNd, k_BMhNd, v_BMhNd = windows.partition(qkv_BHWPC, rows, columns, heads).unbind(0)
    out_BMhNd = attend(q_BMhNd, k_BMhNd, v_BMhNd, None) + _within_stripes(position, v_BMhNd, rows, columns)
    return windows.merge(out_BMhNd, rows, columns, qkv_BHWPC.shape[1], qkv_BHWPC.shape[2])


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


def _refuse_nothing(projected: Tensor, head_dim: int) -> None:  # noqa: ARG001 - the table's signature
    return None


def _triton_windows(
    projected_BHWC: Tensor,
    table_Lh: Tensor,
    window: int,
    query_BhNd: Tensor | None,
    outside_C: Tensor | None = None,  # noqa: ARG001 - as others are called
) -> Tensor:
    # Imported late: Triton is absent on some systems, and takes a second where it is not.
    from globalvit.kernels.triton import operators

    return operators.windows(projected_BHWC, table_Lh, window, query_BhNd)


def _triton_stripes(
    qkv_BHWC: Tensor,
    vertical: nn.Conv2d,
    horizontal: nn.Conv2d,
    stripe: int,
    heads: int,
    outside_C: Tensor | None = None,  # noqa: ARG001 - as others are called
) -> Tensor:
    from globalvit.kernels.triton import operators

    return operators.stripes(qkv_BHWC, vertical, horizontal, stripe, heads)


def _routines(attend: Attend) -> Routines:
    return Routines(
        windows=partial(_copied_windows, attend),
        stripes=partial(_copied_stripes, attend),
        takes_any_grid=False,
        refusal=_refuse_nothing,
        is_exportable=True,
    )


IMPLEMENTATIONS: dict[str, Routines] = {
    "plain": _routines(_attend_plain),
    "fused": _routines(_attend_fused),
    "native": Routines(
        windows=native.windows,
        stripes=native.stripes,
        takes_any_grid=True,
        refusal=native.refusal,
        is_exportable=False,
    ),
    "triton": Routines(
        windows=_triton_windows,
        stripes=_triton_stripes,
        takes_any_grid=False,
        refusal=triton_support.refusal,
        is_exportable=False,
    ),
}
# Device → implementations, fastest first: on a CPU as measured (benchmarks/README.md), where PyTorch's fused kernel
# pays for copies it makes itself; on a GPU not measured yet, but the kernels in Triton move the fewest bytes
# (benchmarks/window_attention.py shows whether they win). Devices that are not named here use the fused one.
FASTEST: dict[str, tuple[str, ...]] = {"cpu": ("native", "plain"), "cuda": ("triton", "fused")}

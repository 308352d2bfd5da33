"""Cutting a token grid into windows, and putting it together again.

Legend: `B` images · `H W` grid · `C` channels · `M` windows an image · `N` tokens of a window · `h` heads ·
`d` channels a head ·
`P` projections side by side.
Windows stay behind their image's axis, so that no image can meet another's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def padding(height: int, width: int, window: int) -> tuple[int, int]:
    """Rows and columns missing to the next multiple of `window`, for the bottom and the right side."""
    # By multiples, not remainders: where sides are symbols, divisions merge with those of the strides before them, and
    # a padded side is seen to be a multiple of the window. Remainders cost the compiler minutes.
    return ((height - 1) // window + 1) * window - height, ((width - 1) // window + 1) * window - width


def pad(x_BHWC: Tensor, window: int) -> Tensor:
    """Fill the grid with zeros at the bottom and the right up to a multiple of `window` tokens a side."""
    rows, columns = padding(x_BHWC.shape[1], x_BHWC.shape[2], window)
    return x_BHWC if is_sure(rows == 0, columns == 0) else F.pad(x_BHWC, (0, 0, 0, columns, 0, rows))


def fill(projected_BHWC: Tensor, window: int, outside_C: Tensor) -> Tensor:
    """`pad` with the same numbers for every token: what a Linear makes of zeros is its bias, no product is needed."""
    rows, columns = padding(projected_BHWC.shape[1], projected_BHWC.shape[2], window)
    if is_sure(rows == 0, columns == 0):
        return projected_BHWC
    around = (0, 0, 0, columns, 0, rows)
    inside_BHW1 = F.pad(projected_BHWC.new_ones((1, *projected_BHWC.shape[1:3], 1)), around)
    return F.pad(projected_BHWC, around) + (1 - inside_BHW1) * outside_C.to(projected_BHWC.dtype)


def crop(x_BHWC: Tensor, height: int, width: int) -> Tensor:
    """Undo `pad` and `fill`."""
    rows, columns = height - x_BHWC.shape[1], width - x_BHWC.shape[2]
    # Not a slice: what follows would ask whether that lies in memory without gaps, which depends on the size.
    return x_BHWC if is_sure(rows == 0, columns == 0) else F.pad(x_BHWC, (0, 0, 0, columns, 0, rows))


def is_sure(*conditions: bool) -> bool:
    """Whether conditions on sizes all hold; while a graph for any size is being made, whether they hold for any size.

    A plain `if` would make the graph one for sizes like the example's.
    """
    if not torch.compiler.is_compiling():
        return all(conditions)
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return all(statically_known_true(condition) for condition in conditions)


def partition(x_BHWPC: Tensor, rows: int, columns: int, heads: int) -> Tensor:
    """(B, H, W, P, C) → (P, B, M, h, N, d), windows and the tokens in them row-major, N = rows · columns.

    The P projections that lie side by side (q, k, v) come apart, and one copy brings every head's tokens together, as
    matrix products want them. H is a multiple of `rows`, W of `columns`.
    """
    B, H, W, P, C = x_BHWPC.shape
    assert H % rows == 0, (H, rows)
    assert W % columns == 0, (W, columns)
    x = x_BHWPC.view(B, H // rows, rows, W // columns, columns, P, heads, C // heads)
    return x.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(5, 6).flatten(2, 3)


def merge(x_BMhNd: Tensor, rows: int, columns: int, height: int, width: int) -> Tensor:
    """(B, M, h, N, d) → (B, H, W, h · d): the inverse of `partition` for one projection."""
    x = x_BMhNd.unflatten(3, (rows, columns)).unflatten(1, (height // rows, width // columns))
    return x.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4).flatten(1, 2)

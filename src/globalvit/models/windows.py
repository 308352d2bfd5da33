"""Cutting a token grid into square windows, and putting it together again.

Legend: `B` images · `H W` grid · `C` channels · `M` windows an image · `N` tokens of a window.
Windows stay behind their image's axis, so that no image can meet another's.
"""

import torch.nn.functional as F
from torch import Tensor


def padding(height: int, width: int, window: int) -> tuple[int, int]:
    """Rows and columns missing to the next multiple of `window`, for the bottom and the right side."""
    return -height % window, -width % window


def pad(x_BHWC: Tensor, window: int) -> Tensor:
    """Fill the grid with zeros at the bottom and the right up to a multiple of `window` tokens a side."""
    rows, columns = padding(x_BHWC.shape[1], x_BHWC.shape[2], window)
    return F.pad(x_BHWC, (0, 0, 0, columns, 0, rows)) if rows or columns else x_BHWC


def crop(x_BHWC: Tensor, height: int, width: int) -> Tensor:
    """Undo `pad`."""
    return x_BHWC[:, :height, :width]


def partition(x_BHWC: Tensor, window: int) -> Tensor:
    """(B, H, W, C) → (B, M, N, C), windows and the tokens in them row-major; H and W are multiples of `window`."""
    B, H, W, C = x_BHWC.shape
    assert H % window == 0, (H, window)
    assert W % window == 0, (W, window)
    x = x_BHWC.view(B, H // window, window, W // window, window, C)
    return x.transpose(2, 3).reshape(B, -1, window * window, C)


def merge(x_BMNC: Tensor, window: int, height: int, width: int) -> Tensor:
    """(B, M, N, C) → (B, H, W, C): the inverse of `partition`."""
    B, _, _, C = x_BMNC.shape
    x = x_BMNC.view(B, height // window, width // window, window, window, C)
    return x.transpose(2, 3).reshape(B, height, width, C)

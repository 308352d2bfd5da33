"""Cutting a token grid into windows and putting it together again, as `globalvit.models.windows` does it.

Sides are whole numbers where the backend knows them and scalar tensors where it does not (a TensorFlow graph of
variable image size): every function takes both.

Legend: `B` images · `H W` grid · `C` channels · `M` windows an image · `N` tokens of a window · `h` heads ·
`d` channels a head · `P` projections side by side.
"""

from typing import Any

from globalvit.keras.untyped import ops


def sides(x_BHWC: Any) -> tuple[Any, Any]:
    """Height and width of a grid."""
    _, height, width = ops.shape(x_BHWC)[:3]
    return height, width


def is_grid(x_BHWC: Any, height: int, width: int) -> bool:
    """Whether a grid is known to have these sides; a scalar tensor of a graph cannot be used as a condition."""
    found = sides(x_BHWC)
    return all(isinstance(side, int) for side in found) and found == (height, width)


def pad(x_BHWC: Any, window: int) -> Any:
    """Fill the grid with zeros at the bottom and the right up to a multiple of `window` tokens a side."""
    height, width = sides(x_BHWC)
    rows, columns = -height % window, -width % window
    if isinstance(rows, int) and isinstance(columns, int) and rows == columns == 0:
        return x_BHWC
    return ops.pad(x_BHWC, ((0, 0), (0, rows), (0, columns), (0, 0)))


def border(x_BHWC: Any, width: int, value: float = 0.0) -> Any:
    """Surround the grid by `width` rows and columns of `value`, as the published convolutions and poolings do.

    Keras' own `padding="same"` puts the odd row of a strided layer at the other end.
    """
    return ops.pad(x_BHWC, ((0, 0), (width, width), (width, width), (0, 0)), constant_values=value)


def crop(x_BHWC: Any, height: Any, width: Any) -> Any:
    """Undo `pad`."""
    return x_BHWC[:, :height, :width]


def partition(x_BHWPC: Any, rows: Any, columns: Any, heads: int) -> Any:
    """(B, H, W, P, C) → (P, B, M, h, N, d), windows and the tokens in them row-major, N = rows · columns.

    H is a multiple of `rows`, W of `columns`.
    """
    height, width = sides(x_BHWPC)
    parts, channels = x_BHWPC.shape[3:]
    down, across, dim = height // rows, width // columns, channels // heads
    x = ops.reshape(x_BHWPC, (-1, down, rows, across, columns, parts, heads, dim))
    x = ops.transpose(x, (5, 0, 1, 3, 6, 2, 4, 7))
    return ops.reshape(x, (parts, -1, down * across, heads, rows * columns, dim))


def merge(x_BMhNd: Any, rows: Any, columns: Any, height: Any, width: Any) -> Any:
    """(B, M, h, N, d) → (B, H, W, h · d): the inverse of `partition` for one projection."""
    heads, dim = x_BMhNd.shape[2], x_BMhNd.shape[4]
    x = ops.reshape(x_BMhNd, (-1, height // rows, width // columns, heads, rows, columns, dim))
    x = ops.transpose(x, (0, 1, 4, 2, 5, 3, 6))
    return ops.reshape(x, (-1, height, width, heads * dim))

"""Local attention from a place, and global attention over a whole image.

Legend: `H W` grid · `M` windows · `N` tokens of a window.
"""

import torch
from torch import Tensor

from globalvit.explain.explanation import Explanation
from globalvit.explain.scene import Scene
from globalvit.explain.trace import (
    Asked,
    blocks_of,
    follow,
    follow_all,
    in_image,
    run_backbone,
    window_maps,
)
from globalvit.explain.views import View
from globalvit.models.attention_maps import WindowMaps, to_grid

Cells = tuple[int, int, int, int]


def explain_local(scene: Scene, view: View, asked: Asked) -> Explanation:
    """Where the tokens of a pixel or region attend: sums to 1 with the padding of their windows."""
    (block,) = blocks_of(scene, view)
    inputs, _ = run_backbone(scene, [block])
    parts = window_maps(block, inputs[block])
    stride = view.stride
    weights_HW = scene.start(stride, parts[0].size, asked.pixel, asked.region)
    reached_HW = follow_all(parts, weights_HW, asked.head)
    pixel = None if asked.region else asked.pixel or scene.center()
    shown = parts if asked.head is None else [parts[asked.head // parts[0].heads]]
    return in_image(
        scene,
        view,
        asked,
        reached_HW,
        "local",
        pixel=pixel,
        region=asked.region,
        window=(min(one.rows for one in parts), min(one.columns for one in parts)),
        outlines=_windows_of(shown, weights_HW),
    )


def explain_global(scene: Scene, view: View, asked: Asked) -> Explanation:
    """Where the global query attends in every window: each window's share sums to 1 with its padding.

    The query has as many tokens as a window. They are the image pooled to a window's size, so a pixel chooses the one
    that stands for its part of the image; without a pixel it is the mean over all of them.
    """
    (block,) = blocks_of(scene, view)
    inputs, _ = run_backbone(scene, [block])
    (maps,) = window_maps(block, inputs[block])
    windows = maps.grid[0] // maps.rows * (maps.grid[1] // maps.columns)
    query_N = _query_weights(scene, maps, view.stride, asked)
    weights_HW = to_grid(query_N.expand(windows, -1), maps.rows, maps.columns, maps.grid)
    what = "global" if asked.pixel is None else "global, one query token"
    return in_image(
        scene,
        view,
        asked,
        follow(maps, weights_HW, asked.head),
        what,
        total=windows,
        window=(maps.rows, maps.columns),
        pixel=asked.pixel,
    )


def _query_weights(scene: Scene, maps: WindowMaps, stride: int, asked: Asked) -> Tensor:
    """Weights of the query's tokens: even, or 1 for the one that a pixel's part of the image was pooled into."""
    tokens = maps.rows * maps.columns
    device = maps.query.device
    if asked.pixel is None:
        return torch.full((tokens,), 1 / tokens, dtype=torch.float64, device=device)
    row, column = scene.cell_of(asked.pixel, stride)
    rows, columns = maps.size
    token = (2 * row + 1) * maps.rows // (2 * rows) * maps.columns + (2 * column + 1) * maps.columns // (2 * columns)
    weights_N = torch.zeros(tokens, dtype=torch.float64, device=device)
    weights_N[token] = 1
    return weights_N


def _windows_of(parts: list[WindowMaps], weights_HW: Tensor) -> tuple[Cells, ...]:
    """The windows that hold tokens of some weight, once each, as cells left, top, right, bottom of the real grid."""
    rows_cells, columns_cells = (axis.tolist() for axis in weights_HW.nonzero(as_tuple=True))
    found = (
        (
            column // maps.columns * maps.columns,
            row // maps.rows * maps.rows,
            min(column // maps.columns * maps.columns + maps.columns, maps.size[1]),
            min(row // maps.rows * maps.rows + maps.rows, maps.size[0]),
        )
        for maps in parts
        for row, column in zip(rows_cells, columns_cells, strict=True)
    )
    return tuple(dict.fromkeys(found))

"""The gradient of the position bias: tiles of pairs summed over windows, then pairs folded into the table."""

# Triton's language has types that Python's checkers do not know.
# pyright: reportArgumentType=false

import triton
import triton.language as tl

from globalvit.kernels.gpu.blocks import read_statistic
from globalvit.kernels.gpu.tiles import (
    bias_of,
    first_token,
    logits_of,
    product,
    read_in,
    read_out,
    read_query,
    split,
    write_pairs,
)


@triton.jit
def backward_pairs(
    grad,
    q,
    projected,
    table,
    statistics,
    means,
    dbias,
    grid,
    IS_GLOBAL: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Gradient of the bias of a tile of pairs, summed over GROUP windows: one part of (groups, h, N, N)."""
    blocks = tl.cdiv(grid.tokens, grid.block)
    head, tile, group = split(tl.program_id(0), grid.heads, blocks * blocks)
    query = (tile // blocks) * grid.block + tl.arange(0, grid.block)
    key = (tile % blocks) * grid.block + tl.arange(0, grid.block)
    bias = bias_of(table, head, query, key, grid, True)
    total = tl.zeros([grid.block, grid.block], tl.float32)
    for number in range(0, tl.minimum(GROUP, grid.windows - group * GROUP)):
        window = group * GROUP + number
        first = first_token(window, grid)
        q_tile = read_query(q, window, first, head, query, grid, IS_GLOBAL)
        k_tile = read_in(projected, first, head, key, grid, grid.k_start)
        v_tile = read_in(projected, first, head, key, grid, grid.v_start)
        grad_tile = read_out(grad, first, head, query, grid)
        statistic = read_statistic(statistics, window, head, query, grid)
        mean = read_statistic(means, window, head, query, grid)
        weights = tl.exp2(logits_of(q_tile, k_tile, bias, grid.scale) - statistic[:, None])
        total += weights * (product(grad_tile, tl.trans(v_tile)) - mean[:, None])
    write_pairs(dbias, group, head, query, key, grid, total)


@triton.jit
def fold_pairs(dbias, dtable, window, heads, SIDE: tl.constexpr):
    """Sum the gradient of the bias (h, N, N) over the pairs of each relative position: ((2w − 1)², h).

    One program sums the pairs of one head and one row offset; its tile is a row of queries by a row of keys.
    """
    head = tl.program_id(0) % heads
    offset = tl.program_id(0) // heads
    down = offset - (window - 1)
    tokens = window * window
    query = tl.arange(0, SIDE)[:, None]
    key = tl.arange(0, SIDE)[None, :]
    mask = (query < window) & (key < window)
    total = tl.zeros([SIDE, SIDE], tl.float32)
    for row in range(tl.maximum(0, -down), tl.minimum(window, window - down)):
        rows = dbias + (head * tokens + (row + down) * window) * tokens + row * window
        total += tl.load(rows + query * tokens + key, mask=mask, other=0.0)
    for column in range(0, 2 * window - 1):
        chosen = tl.where(query - key == column - (window - 1), total, 0.0)
        tl.store(dtable + (offset * (2 * window - 1) + column) * heads + head, tl.sum(chosen))

"""The gradient of the position bias: tiles of pairs summed over windows, then pairs folded into the table."""

import triton
import triton.language as tl

from globalvit.kernels.triton.blocks import read_statistic
from globalvit.kernels.triton.tiles import bias_of, first_token, logits_of, read, read_query, split, write_pairs


@triton.jit
def backward_pairs(
    grad,
    q,
    k,
    v,
    table,
    statistics,
    means,
    dbias,
    grid,
    IS_GLOBAL: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradient of the bias of a tile of pairs, summed over GROUP windows: one part of (groups, h, N, N)."""
    blocks = tl.cdiv(grid.rows * grid.columns, BLOCK)
    head, tile, group = split(tl.program_id(0), grid.heads, blocks * blocks)
    query = (tile // blocks) * BLOCK + tl.arange(0, BLOCK)
    key = (tile % blocks) * BLOCK + tl.arange(0, BLOCK)
    bias = bias_of(table, head, query, key, grid, True)
    total = tl.zeros([BLOCK, BLOCK], tl.float32)
    for number in range(0, tl.minimum(GROUP, grid.windows - group * GROUP)):
        window = group * GROUP + number
        first = first_token(window, grid)
        q_tile = read_query(q, window, first, head, query, grid, IS_GLOBAL, DIM, BLOCK_D)
        k_tile = read(k, first, head, key, grid, grid.in_step, DIM, BLOCK_D)
        v_tile = read(v, first, head, key, grid, grid.in_step, DIM, BLOCK_D)
        grad_tile = read(grad, first, head, query, grid, grid.out_step, DIM, BLOCK_D)
        statistic = read_statistic(statistics, window, head, query, grid)
        mean = read_statistic(means, window, head, query, grid)
        weights = tl.exp2(logits_of(q_tile, k_tile, bias, grid.scale) - statistic[:, None])
        total += weights * (tl.dot(grad_tile, tl.trans(v_tile), input_precision="ieee") - mean[:, None])
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
        tl.store(dtable + (offset * (2 * window - 1) + column) * heads + head, tl.sum(tl.sum(chosen, 1), 0))

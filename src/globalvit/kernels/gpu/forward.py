"""The forward pass: one program takes a block of queries of one head through all keys of its windows."""

# Triton's language has types that Python's checkers do not know.
# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false

import triton
import triton.language as tl

from globalvit.kernels.gpu.position import convolve
from globalvit.kernels.gpu.tiles import (
    bias_of,
    first_token,
    is_inside,
    logits_of,
    product,
    read_in,
    read_query,
    row_of,
    split,
    write_out,
)


@triton.jit
def forward(
    q,
    projected,
    table,
    weight,
    shift,
    out,
    statistics,
    grid,
    IS_GLOBAL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_POSITION: tl.constexpr,
    WITH_STATISTICS: tl.constexpr,
    IS_WHOLE: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Out = softmax(q kᵀ · scale + bias)·v [+ position(v)], for GROUP windows one after the other.

    Where a window fits one tile (IS_WHOLE) the group's windows share the bias, which is read once and stays in
    registers: that is what groups are for.
    """
    blocks = tl.cdiv(grid.tokens, grid.block)
    head, block, group = split(tl.program_id(0), grid.heads, blocks)
    query = block * grid.block + tl.arange(0, grid.block)
    if IS_WHOLE:
        bias = bias_of(table, head, query, tl.arange(0, grid.block), grid, HAS_BIAS)
    for number in range(0, tl.minimum(GROUP, grid.windows - group * GROUP)):
        window = group * GROUP + number
        first = first_token(window, grid)
        q_tile = read_query(q, window, first, head, query, grid, IS_GLOBAL)
        highest = tl.full([grid.block], float("-inf"), tl.float32)
        total = tl.zeros([grid.block], tl.float32)
        result = tl.zeros([grid.block, grid.lanes], tl.float32)
        for start in range(0, grid.tokens, grid.block):
            key = start + tl.arange(0, grid.block)
            k_tile = read_in(projected, first, head, key, grid, grid.k_start)
            v_tile = read_in(projected, first, head, key, grid, grid.v_start)
            if IS_WHOLE:
                logits = logits_of(q_tile, k_tile, bias, grid.scale)
            else:
                logits = logits_of(q_tile, k_tile, bias_of(table, head, query, key, grid, HAS_BIAS), grid.scale)
            # Softmax over blocks of keys: what was summed so far is scaled down whenever a higher logit shows up.
            new_highest = tl.maximum(highest, tl.max(logits, 1))
            weights = tl.exp2(logits - new_highest[:, None])
            fade = tl.exp2(highest - new_highest)
            total = total * fade + tl.sum(weights, 1)
            result = result * fade[:, None] + product(weights.to(v_tile.dtype), v_tile)
            highest = new_highest
        result = result / total[:, None]
        if HAS_POSITION:
            result += convolve(projected, first, weight, shift, head, query, grid)
        write_out(out, first, head, query, grid, result)
        if WITH_STATISTICS:
            row = row_of(window, head, query, grid)
            tl.store(statistics + row, highest + tl.log2(total), mask=is_inside(query, grid))

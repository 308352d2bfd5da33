"""The backward pass where a window fits one tile: everything in one kernel that reads each operand once."""

# Triton's language has types that Python's checkers do not know.
# pyright: reportArgumentType=false

import triton
import triton.language as tl

from globalvit.kernels.gpu.position import convolve_back, write_position
from globalvit.kernels.gpu.tiles import (
    bias_of,
    first_token,
    is_inside,
    logits_of,
    product,
    read_in,
    read_out,
    read_query,
    row_of,
    split,
    write_in,
    write_pairs,
    write_query,
)


@triton.jit
def backward_whole(
    grad,
    q,
    projected,
    table,
    weight,
    statistics,
    dprojected,
    dq,
    dbias,
    dposition,
    grid,
    IS_GLOBAL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_POSITION: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Gradients of GROUP windows of one head; those of bias, shared query and position are summed over the group.

    Nothing but registers holds the sums, and each program writes its own: no atomics, the same bits every time.
    """
    head, _, group = split(tl.program_id(0), grid.heads, 1)
    token = tl.arange(0, grid.block)
    bias_sum = tl.zeros([grid.block, grid.block], tl.float32)
    query_sum = tl.zeros([grid.block, grid.lanes], tl.float32)
    position_sum = tl.zeros([16, grid.lanes], tl.float32)
    bias = bias_of(table, head, token, token, grid, HAS_BIAS)
    for number in range(0, tl.minimum(GROUP, grid.windows - group * GROUP)):
        window = group * GROUP + number
        first = first_token(window, grid)
        q_tile = read_query(q, window, first, head, token, grid, IS_GLOBAL)
        k_tile = read_in(projected, first, head, token, grid, grid.k_start)
        v_tile = read_in(projected, first, head, token, grid, grid.v_start)
        grad_tile = read_out(grad, first, head, token, grid)
        statistic = tl.load(statistics + row_of(window, head, token, grid), mask=is_inside(token, grid), other=0.0)
        weights = tl.exp2(logits_of(q_tile, k_tile, bias, grid.scale) - statistic[:, None])
        dv_tile = product(tl.trans(weights.to(grad_tile.dtype)), grad_tile)
        if HAS_POSITION:
            back, own = convolve_back(grad, first, weight, v_tile, head, token, grid)
            dv_tile += back
            position_sum += own
        write_in(dprojected, first, head, token, grid, grid.v_start, dv_tile)
        # The whole row is here: its weighted mean needs no output of the forward pass.
        dweights = product(grad_tile, tl.trans(v_tile))
        dlogits = weights * (dweights - tl.sum(weights * dweights, 1)[:, None])
        if HAS_BIAS:
            bias_sum += dlogits
        low = dlogits.to(k_tile.dtype)
        write_in(dprojected, first, head, token, grid, grid.k_start, product(tl.trans(low), q_tile) * grid.scale)
        dq_tile = product(low, k_tile) * grid.scale
        if IS_GLOBAL:
            query_sum += dq_tile
        else:
            write_in(dprojected, first, head, token, grid, grid.q_start, dq_tile)
    if IS_GLOBAL:
        write_query(dq, group, head, token, grid, query_sum)
    if HAS_BIAS:
        write_pairs(dbias, group, head, token, token, grid, bias_sum)
    if HAS_POSITION:
        write_position(dposition, group * grid.heads + head, position_sum, grid)

"""The backward pass where a window fits one tile: everything in one kernel that reads each operand once."""

import triton
import triton.language as tl

from globalvit.kernels.triton.position import convolve_back, write_position
from globalvit.kernels.triton.tiles import (
    bias_of,
    first_token,
    is_inside,
    logits_of,
    read,
    read_query,
    row_of,
    split,
    write,
    write_pairs,
    write_rows,
)


@triton.jit
def backward_whole(
    grad,
    q,
    k,
    v,
    table,
    weight,
    statistics,
    dq,
    dk,
    dv,
    dbias,
    dposition,
    grid,
    IS_GLOBAL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_POSITION: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of GROUP windows of one head; those of bias, shared query and position are summed over the group.

    Nothing but registers holds the sums, and each program writes its own: no atomics, the same bits every time.
    """
    head, _, group = split(tl.program_id(0), grid.heads, 1)
    token = tl.arange(0, BLOCK)
    is_token = is_inside(token, grid)
    bias_sum = tl.zeros([BLOCK, BLOCK], tl.float32)
    query_sum = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    position_sum = tl.zeros([16, BLOCK_D], tl.float32)
    bias = bias_of(table, head, token, token, grid, HAS_BIAS)
    for number in range(0, tl.minimum(GROUP, grid.windows - group * GROUP)):
        window = group * GROUP + number
        first = first_token(window, grid)
        q_tile = read_query(q, window, first, head, token, grid, IS_GLOBAL, DIM, BLOCK_D)
        k_tile = read(k, first, head, token, grid, grid.in_step, DIM, BLOCK_D)
        v_tile = read(v, first, head, token, grid, grid.in_step, DIM, BLOCK_D)
        grad_tile = read(grad, first, head, token, grid, grid.out_step, DIM, BLOCK_D)
        statistic = tl.load(statistics + row_of(window, head, token, grid), mask=is_token, other=0.0)
        weights = tl.exp2(logits_of(q_tile, k_tile, bias, grid.scale) - statistic[:, None])
        dv_tile = tl.dot(tl.trans(weights.to(grad_tile.dtype)), grad_tile, input_precision="ieee")
        if HAS_POSITION:
            back, own = convolve_back(grad, first, weight, v_tile, head, token, grid, DIM, BLOCK_D, BLOCK)
            dv_tile += back
            position_sum += own
        write(dv, first, head, token, grid, grid.in_step, dv_tile, DIM, BLOCK_D)
        # The whole row is here: its weighted mean needs no output of the forward pass.
        dweights = tl.dot(grad_tile, tl.trans(v_tile), input_precision="ieee")
        dlogits = weights * (dweights - tl.sum(weights * dweights, 1)[:, None])
        if HAS_BIAS:
            bias_sum += dlogits
        low = dlogits.to(k_tile.dtype)
        dk_tile = tl.dot(tl.trans(low), q_tile, input_precision="ieee") * grid.scale
        write(dk, first, head, token, grid, grid.in_step, dk_tile, DIM, BLOCK_D)
        dq_tile = tl.dot(low, k_tile, input_precision="ieee") * grid.scale
        if IS_GLOBAL:
            query_sum += dq_tile
        else:
            write(dq, first, head, token, grid, grid.in_step, dq_tile, DIM, BLOCK_D)
    if IS_GLOBAL:
        write_rows(dq + row_of(group, head, 0, grid) * DIM, token * DIM, is_token, query_sum, DIM, BLOCK_D)
    if HAS_BIAS:
        write_pairs(dbias, group, head, token, token, grid, bias_sum)
    if HAS_POSITION:
        write_position(dposition, group * grid.heads + head, position_sum, DIM, BLOCK_D)

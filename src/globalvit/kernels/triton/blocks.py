"""The backward pass of windows that do not fit one tile, in three kernels that each recompute the weights.

One kernel for the queries, one for keys and values, one for the bias: each keeps what it sums in registers and writes
it once. A single kernel would have to add one of the three up in memory, with atomics, in an order that changes from
run to run; recomputing a tile costs two small matrix products and no traffic beyond the cache.
"""

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
    write_rows,
)


@triton.jit
def read_statistic(pointer, window, head, query, grid):
    """One number for each of a block of queries from (windows, h, N)."""
    return tl.load(pointer + row_of(window, head, query, grid), mask=is_inside(query, grid), other=0.0)


@triton.jit
def mean_of_row(
    q_tile, grad_tile, statistic, k, v, first, head, query, grid, DIM: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Σ weight · gradient of the weight for each of a block of queries of a stripe, which has no bias."""
    mean = tl.zeros(query.shape, tl.float32)
    for start in range(0, grid.rows * grid.columns, query.shape[0]):
        key = start + tl.arange(0, query.shape[0])
        k_tile = read(k, first, head, key, grid, grid.in_step, DIM, BLOCK_D)
        v_tile = read(v, first, head, key, grid, grid.in_step, DIM, BLOCK_D)
        bias = bias_of(k, head, query, key, grid, False)
        weights = tl.exp2(logits_of(q_tile, k_tile, bias, grid.scale) - statistic[:, None])
        mean += tl.sum(weights * tl.dot(grad_tile, tl.trans(v_tile), input_precision="ieee"), 1)
    return mean


@triton.jit
def backward_queries(
    grad,
    q,
    k,
    v,
    out,
    table,
    statistics,
    means,
    dq,
    grid,
    IS_GLOBAL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_POSITION: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of a block of queries, summed over GROUP windows where they share the query, and each row's mean.

    The mean is Σ weight · gradient of the weight, which the gradient of every logit of the row subtracts. It equals the
    output times its gradient, unless a convolution was added to the output: then a loop of its own finds it.
    """
    head, block, group = split(tl.program_id(0), grid.heads, tl.cdiv(grid.rows * grid.columns, BLOCK))
    query = block * BLOCK + tl.arange(0, BLOCK)
    query_sum = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for number in range(0, tl.minimum(GROUP, grid.windows - group * GROUP)):
        window = group * GROUP + number
        first = first_token(window, grid)
        q_tile = read_query(q, window, first, head, query, grid, IS_GLOBAL, DIM, BLOCK_D)
        grad_tile = read(grad, first, head, query, grid, grid.out_step, DIM, BLOCK_D)
        statistic = read_statistic(statistics, window, head, query, grid)
        if HAS_POSITION:
            mean = mean_of_row(q_tile, grad_tile, statistic, k, v, first, head, query, grid, DIM, BLOCK_D)
        else:
            out_tile = read(out, first, head, query, grid, grid.out_step, DIM, BLOCK_D)
            mean = tl.sum(out_tile.to(tl.float32) * grad_tile.to(tl.float32), 1)
        tl.store(means + row_of(window, head, query, grid), mean, mask=is_inside(query, grid))
        dq_tile = tl.zeros([BLOCK, BLOCK_D], tl.float32)
        for start in range(0, grid.rows * grid.columns, BLOCK):
            key = start + tl.arange(0, BLOCK)
            k_tile = read(k, first, head, key, grid, grid.in_step, DIM, BLOCK_D)
            v_tile = read(v, first, head, key, grid, grid.in_step, DIM, BLOCK_D)
            bias = bias_of(table, head, query, key, grid, HAS_BIAS)
            weights = tl.exp2(logits_of(q_tile, k_tile, bias, grid.scale) - statistic[:, None])
            dlogits = weights * (tl.dot(grad_tile, tl.trans(v_tile), input_precision="ieee") - mean[:, None])
            dq_tile = tl.dot(dlogits.to(k_tile.dtype), k_tile, dq_tile, input_precision="ieee")
        if IS_GLOBAL:
            query_sum += dq_tile * grid.scale
        else:
            write(dq, first, head, query, grid, grid.in_step, dq_tile * grid.scale, DIM, BLOCK_D)
    if IS_GLOBAL:
        part = dq + row_of(group, head, 0, grid) * DIM
        write_rows(part, query * DIM, is_inside(query, grid), query_sum, DIM, BLOCK_D)


@triton.jit
def backward_keys(
    grad,
    q,
    k,
    v,
    table,
    weight,
    statistics,
    means,
    dk,
    dv,
    dposition,
    grid,
    IS_GLOBAL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_POSITION: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of a block of keys and values of one window, and its share of the position convolution's."""
    blocks = tl.cdiv(grid.rows * grid.columns, BLOCK)
    head, block, window = split(tl.program_id(0), grid.heads, blocks)
    key = block * BLOCK + tl.arange(0, BLOCK)
    first = first_token(window, grid)
    k_tile = read(k, first, head, key, grid, grid.in_step, DIM, BLOCK_D)
    v_tile = read(v, first, head, key, grid, grid.in_step, DIM, BLOCK_D)
    dk_tile = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    dv_tile = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for start in range(0, grid.rows * grid.columns, BLOCK):
        query = start + tl.arange(0, BLOCK)
        q_tile = read_query(q, window, first, head, query, grid, IS_GLOBAL, DIM, BLOCK_D)
        grad_tile = read(grad, first, head, query, grid, grid.out_step, DIM, BLOCK_D)
        statistic = read_statistic(statistics, window, head, query, grid)
        mean = read_statistic(means, window, head, query, grid)
        bias = bias_of(table, head, query, key, grid, HAS_BIAS)
        weights = tl.exp2(logits_of(q_tile, k_tile, bias, grid.scale) - statistic[:, None])
        dv_tile = tl.dot(tl.trans(weights.to(grad_tile.dtype)), grad_tile, dv_tile, input_precision="ieee")
        dlogits = weights * (tl.dot(grad_tile, tl.trans(v_tile), input_precision="ieee") - mean[:, None])
        dk_tile = tl.dot(tl.trans(dlogits.to(q_tile.dtype)), q_tile, dk_tile, input_precision="ieee")
    if HAS_POSITION:
        back, own = convolve_back(grad, first, weight, v_tile, head, key, grid, DIM, BLOCK_D, BLOCK)
        dv_tile += back
        write_position(dposition, (window * blocks + block) * grid.heads + head, own, DIM, BLOCK_D)
    write(dk, first, head, key, grid, grid.in_step, dk_tile * grid.scale, DIM, BLOCK_D)
    write(dv, first, head, key, grid, grid.in_step, dv_tile, DIM, BLOCK_D)

"""The backward pass of windows that do not fit one tile, in three kernels that each recompute the weights.

One kernel for the queries, one for keys and values, one for the bias: each keeps what it sums in registers and writes
it once. A single kernel would have to add one of the three up in memory, with atomics, in an order that changes from
run to run; recomputing a tile costs two small matrix products and no traffic beyond the cache.
"""

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
    no_bias,
    product,
    read_in,
    read_out,
    read_query,
    row_of,
    split,
    write_in,
    write_query,
)


@triton.jit
def read_statistic(pointer, window, head, query, grid):
    """One number for each of a block of queries from (windows, h, N)."""
    return tl.load(pointer + row_of(window, head, query, grid), mask=is_inside(query, grid), other=0.0)


@triton.jit
def mean_of_row(q_tile, grad_tile, statistic, projected, first, head, grid):
    """Σ weight · gradient of the weight for each of a block of queries of a stripe, which has no bias."""
    mean = tl.zeros([grid.block], tl.float32)
    for start in range(0, grid.tokens, grid.block):
        key = start + tl.arange(0, grid.block)
        k_tile = read_in(projected, first, head, key, grid, grid.k_start)
        v_tile = read_in(projected, first, head, key, grid, grid.v_start)
        bias = no_bias(key, grid)
        weights = tl.exp2(logits_of(q_tile, k_tile, bias, grid.scale) - statistic[:, None])
        mean += tl.sum(weights * product(grad_tile, tl.trans(v_tile)), 1)
    return mean


@triton.jit
def backward_queries(
    grad,
    q,
    projected,
    out,
    table,
    statistics,
    means,
    dprojected,
    dq,
    grid,
    IS_GLOBAL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_POSITION: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Gradients of a block of queries, summed over GROUP windows where they share the query, and each row's mean.

    The mean is Σ weight · gradient of the weight, which the gradient of every logit of the row subtracts. It equals the
    output times its gradient, unless a convolution was added to the output: then a loop of its own finds it.
    """
    head, block, group = split(tl.program_id(0), grid.heads, tl.cdiv(grid.tokens, grid.block))
    query = block * grid.block + tl.arange(0, grid.block)
    query_sum = tl.zeros([grid.block, grid.lanes], tl.float32)
    for number in range(0, tl.minimum(GROUP, grid.windows - group * GROUP)):
        window = group * GROUP + number
        first = first_token(window, grid)
        q_tile = read_query(q, window, first, head, query, grid, IS_GLOBAL)
        grad_tile = read_out(grad, first, head, query, grid)
        statistic = read_statistic(statistics, window, head, query, grid)
        if HAS_POSITION:
            mean = mean_of_row(q_tile, grad_tile, statistic, projected, first, head, grid)
        else:
            out_tile = read_out(out, first, head, query, grid)
            mean = tl.sum(out_tile.to(tl.float32) * grad_tile.to(tl.float32), 1)
        tl.store(means + row_of(window, head, query, grid), mean, mask=is_inside(query, grid))
        dq_tile = tl.zeros([grid.block, grid.lanes], tl.float32)
        for start in range(0, grid.tokens, grid.block):
            key = start + tl.arange(0, grid.block)
            k_tile = read_in(projected, first, head, key, grid, grid.k_start)
            v_tile = read_in(projected, first, head, key, grid, grid.v_start)
            bias = bias_of(table, head, query, key, grid, HAS_BIAS)
            weights = tl.exp2(logits_of(q_tile, k_tile, bias, grid.scale) - statistic[:, None])
            dlogits = weights * (product(grad_tile, tl.trans(v_tile)) - mean[:, None])
            dq_tile += product(dlogits.to(k_tile.dtype), k_tile)
        if IS_GLOBAL:
            query_sum += dq_tile * grid.scale
        else:
            write_in(dprojected, first, head, query, grid, grid.q_start, dq_tile * grid.scale)
    if IS_GLOBAL:
        write_query(dq, group, head, query, grid, query_sum)


@triton.jit
def backward_keys(
    grad,
    q,
    projected,
    table,
    weight,
    statistics,
    means,
    dprojected,
    dposition,
    grid,
    IS_GLOBAL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_POSITION: tl.constexpr,
):
    """Gradients of a block of keys and values of one window, and its share of the position convolution's."""
    blocks = tl.cdiv(grid.tokens, grid.block)
    head, block, window = split(tl.program_id(0), grid.heads, blocks)
    key = block * grid.block + tl.arange(0, grid.block)
    first = first_token(window, grid)
    k_tile = read_in(projected, first, head, key, grid, grid.k_start)
    v_tile = read_in(projected, first, head, key, grid, grid.v_start)
    dk_tile = tl.zeros([grid.block, grid.lanes], tl.float32)
    dv_tile = tl.zeros([grid.block, grid.lanes], tl.float32)
    for start in range(0, grid.tokens, grid.block):
        query = start + tl.arange(0, grid.block)
        q_tile = read_query(q, window, first, head, query, grid, IS_GLOBAL)
        grad_tile = read_out(grad, first, head, query, grid)
        statistic = read_statistic(statistics, window, head, query, grid)
        mean = read_statistic(means, window, head, query, grid)
        bias = bias_of(table, head, query, key, grid, HAS_BIAS)
        weights = tl.exp2(logits_of(q_tile, k_tile, bias, grid.scale) - statistic[:, None])
        dv_tile += product(tl.trans(weights.to(grad_tile.dtype)), grad_tile)
        dlogits = weights * (product(grad_tile, tl.trans(v_tile)) - mean[:, None])
        dk_tile += product(tl.trans(dlogits.to(q_tile.dtype)), q_tile)
    if HAS_POSITION:
        back, own = convolve_back(grad, first, weight, v_tile, head, key, grid)
        dv_tile += back
        write_position(dposition, (window * blocks + block) * grid.heads + head, own, grid)
    write_in(dprojected, first, head, key, grid, grid.k_start, dk_tile * grid.scale)
    write_in(dprojected, first, head, key, grid, grid.v_start, dv_tile)

"""The position convolution of stripes, depthwise 3×3 with zeros around the stripe: forward and backward.

No kernel of its own: the values and the gradient it reads are the ones that attention has just read, so its nine
shifted tiles come from the cache, and a pass over memory is saved.
"""

# Triton's language has types that Python's checkers do not know.
# pyright: reportArgumentType=false

import triton
import triton.language as tl

from globalvit.kernels.gpu.tiles import first_element, is_inside, read_out, read_rows


@triton.jit
def read_neighbors(pointer, first, head, token, grid, step, start, down, right):
    """The tokens that lie `down` and `right` of those of a block, float32, 0 where the stripe ends."""
    row = token // grid.columns + down
    column = token % grid.columns + right
    mask = is_inside(token, grid) & (row >= 0) & (row < grid.rows) & (column >= 0) & (column < grid.columns)
    base = pointer + first_element(first, head, grid, step, start)
    return read_rows(base, (row * grid.width + column) * (step * grid.align), mask, grid).to(tl.float32)


@triton.jit
def read_channels(pointer, head, grid, step):
    """One number for each of a head's channels, `step` elements apart: (1, lanes) float32."""
    dim = tl.arange(0, grid.lanes)
    return tl.load(pointer + (head * grid.dim + dim) * step, mask=dim < grid.dim, other=0.0).to(tl.float32)[None, :]


@triton.jit
def convolve(projected, first, weight, shift, head, token, grid):
    """The convolution of the values at a block of tokens, float32; weight (C, 3, 3), shift (C,)."""
    result = tl.zeros([grid.block, grid.lanes], tl.float32) + read_channels(shift, head, grid, 1)
    # Not unrolled: all nine tiles on their way at once do not fit the registers.
    for tap in range(9):
        tile = read_neighbors(
            projected, first, head, token, grid, grid.in_step, grid.v_start, tap // 3 - 1, tap % 3 - 1
        )
        result += tile * read_channels(weight + tap, head, grid, 9)
    return result


@triton.jit
def convolve_back(grad, first, weight, v_tile, head, token, grid):
    """Gradients of the values at a block of tokens, and the block's share of the parameters' gradients.

    Value i went into the outputs i − tap, so the upstream gradient shifted the other way serves both: times the weight
    it is the value's gradient, times the value it is the weight's.

    Returns:
        (block, lanes) and (16, lanes): rows 0 to 8 the weight's taps, row 9 the shift, the others 0.
    """
    line = tl.arange(0, 16)[:, None]
    values = v_tile.to(tl.float32)
    back = tl.zeros([grid.block, grid.lanes], tl.float32)
    own = tl.zeros([16, grid.lanes], tl.float32)
    for tap in range(9):
        tile = read_neighbors(grad, first, head, token, grid, grid.out_step, grid.out_start, 1 - tap // 3, 1 - tap % 3)
        back += tile * read_channels(weight + tap, head, grid, 9)
        own += tl.where(line == tap, tl.sum(tile * values, 0)[None, :], 0.0)
    middle = read_out(grad, first, head, token, grid).to(tl.float32)
    return back, own + tl.where(line == 9, tl.sum(middle, 0)[None, :], 0.0)


@triton.jit
def write_position(pointer, part, total, grid):
    """Store the ten rows of `convolve_back`'s sums as one part of (parts, 10, d)."""
    line = tl.arange(0, 16)[:, None]
    dim = tl.arange(0, grid.lanes)[None, :]
    base = pointer + part.to(tl.int64) * (10 * grid.dim)
    tl.store(base + line * grid.dim + dim, total, mask=(line < 10) & (dim < grid.dim))

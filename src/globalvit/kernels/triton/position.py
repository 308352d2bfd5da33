"""The position convolution of stripes, depthwise 3×3 with zeros around the stripe: forward and backward.

No kernel of its own: the values and the gradient it reads are the ones that attention has just read, so its nine
shifted tiles come from the cache, and a pass over memory is saved.
"""

import triton
import triton.language as tl

from globalvit.kernels.triton.tiles import is_inside, read_rows


@triton.jit
def read_neighbours(
    pointer, first, head, token, grid, step, down, right, DIM: tl.constexpr, BLOCK_D: tl.constexpr
):
    """The tokens that lie `down` and `right` of those of a block, float32, 0 where the stripe ends."""
    row = token // grid.columns + down
    column = token % grid.columns + right
    mask = is_inside(token, grid) & (row >= 0) & (row < grid.rows) & (column >= 0) & (column < grid.columns)
    base = pointer + first * step + head * DIM
    return read_rows(base, (row * grid.width + column) * step, mask, DIM, BLOCK_D).to(tl.float32)


@triton.jit
def read_channels(pointer, head, step, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """One number for each of a head's channels, `step` elements apart: (1, BLOCK_D) float32."""
    dim = tl.arange(0, BLOCK_D)
    return tl.load(pointer + (head * DIM + dim) * step, mask=dim < DIM, other=0.0).to(tl.float32)[None, :]


@triton.jit
def convolve(
    v, first, weight, shift, head, token, grid, DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr
):
    """The convolution of the values at a block of tokens, float32; weight (C, 3, 3), shift (C,)."""
    result = tl.zeros([BLOCK, BLOCK_D], tl.float32) + read_channels(shift, head, 1, DIM, BLOCK_D)
    for tap in tl.static_range(9):
        tile = read_neighbours(v, first, head, token, grid, grid.in_step, tap // 3 - 1, tap % 3 - 1, DIM, BLOCK_D)
        result += tile * read_channels(weight + tap, head, 9, DIM, BLOCK_D)
    return result


@triton.jit
def convolve_back(
    grad, first, weight, v_tile, head, token, grid, DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr
):
    """Gradients of the values at a block of tokens, and the block's share of the parameters' gradients.

    Value i went into the outputs i − tap, so the upstream gradient shifted the other way serves both: times the weight
    it is the value's gradient, times the value it is the weight's.

    Returns:
        (BLOCK, BLOCK_D) and (16, BLOCK_D): rows 0 to 8 the weight's taps, row 9 the shift, the others 0.
    """
    line = tl.arange(0, 16)[:, None]
    values = v_tile.to(tl.float32)
    back = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    own = tl.zeros([16, BLOCK_D], tl.float32)
    for tap in tl.static_range(9):
        tile = read_neighbours(
            grad, first, head, token, grid, grid.out_step, 1 - tap // 3, 1 - tap % 3, DIM, BLOCK_D
        )
        back += tile * read_channels(weight + tap, head, 9, DIM, BLOCK_D)
        own += tl.where(line == tap, tl.sum(tile * values, 0)[None, :], 0.0)
        if tap == 4:
            own += tl.where(line == 9, tl.sum(tile, 0)[None, :], 0.0)
    return back, own


@triton.jit
def write_position(pointer, part, total, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Store the ten rows of `convolve_back`'s sums as one part of (parts, 10, DIM)."""
    line = tl.arange(0, 16)[:, None]
    dim = tl.arange(0, BLOCK_D)[None, :]
    base = pointer + part.to(tl.int64) * (10 * DIM)
    tl.store(base + line * DIM + dim, total, mask=(line < 10) & (dim < DIM))

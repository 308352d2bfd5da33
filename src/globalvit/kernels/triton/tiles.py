"""What all kernels share: where a window's tokens lie in the grid, and how a tile of them is read and written.

A window is `rows` × `columns` tokens of a (B, H, W) grid; a stripe is a long window. Windows are numbered row-major
over all images, tokens row-major in a window. A tile is a block of a window's tokens by one head's channels. Tokens
past the window's end and channels past the head's (blocks are powers of two) read as 0 and are never written.
"""

from typing import NamedTuple

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


class Grid(NamedTuple):
    """The numbers that every kernel needs.

    Attributes:
        windows: windows of all images.
        height: tokens of an image's grid, top to bottom.
        width: tokens of an image's grid, left to right.
        rows: height of a window.
        columns: width of a window.
        heads: attention heads.
        in_step: elements from a token's projection to the next one's.
        out_step: elements from a token's output to the next one's.
        scale: 1/√d.
    """

    windows: int
    height: int
    width: int
    rows: int
    columns: int
    heads: int
    in_step: int
    out_step: int
    scale: float


@triton.jit
def split(program, heads, blocks):
    """Head, block of tokens and group of windows of a program.

    Heads run fastest: the programs that run side by side read neighbouring channels of the same tokens, so that the
    64 bytes of a head (32 channels of bfloat16) share cache lines with the next head's. Then come the blocks of one
    window, which read the same keys.
    """
    rest = program // heads
    return program % heads, rest % blocks, rest // blocks


@triton.jit
def image_of(window, grid):
    """The image a window lies in."""
    return window // ((grid.height // grid.rows) * (grid.width // grid.columns))


@triton.jit
def first_token(window, grid):
    """The first token of a window in the flattened (B, H, W); 64 bits, because it is multiplied by channels."""
    across = grid.width // grid.columns
    inside = window % ((grid.height // grid.rows) * across)
    row = image_of(window, grid) * grid.height + (inside // across) * grid.rows
    return row.to(tl.int64) * grid.width + (inside % across) * grid.columns


@triton.jit
def row_of(window, head, token, grid):
    """Where what is kept for each query lies in (windows, h, N)."""
    return (window * grid.heads + head).to(tl.int64) * (grid.rows * grid.columns) + token


@triton.jit
def is_inside(token, grid):
    """Whether a token is one of the window's."""
    return token < grid.rows * grid.columns


@triton.jit
def places(token, grid, step):
    """How far tokens of a window lie from its first one, in elements."""
    return ((token // grid.columns) * grid.width + token % grid.columns) * step


@triton.jit
def read_rows(pointer, place, mask, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """(tokens, BLOCK_D) from a place for each token."""
    dim = tl.arange(0, BLOCK_D)
    mask = mask[:, None]
    if DIM < BLOCK_D:
        mask = mask & (dim[None, :] < DIM)
    return tl.load(pointer + place[:, None] + dim[None, :], mask=mask, other=0.0)


@triton.jit
def write_rows(pointer, place, mask, tile, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """The inverse of `read_rows`, rounding to the pointer's type."""
    dim = tl.arange(0, BLOCK_D)
    mask = mask[:, None]
    if DIM < BLOCK_D:
        mask = mask & (dim[None, :] < DIM)
    tl.store(pointer + place[:, None] + dim[None, :], tile.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def read(pointer, first, head, token, grid, step, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """A tile of the window that starts at token `first` of a tensor (B, H, W, …)."""
    base = pointer + first * step + head * DIM
    return read_rows(base, places(token, grid, step), is_inside(token, grid), DIM, BLOCK_D)


@triton.jit
def write(pointer, first, head, token, grid, step, tile, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """The inverse of `read`."""
    base = pointer + first * step + head * DIM
    write_rows(base, places(token, grid, step), is_inside(token, grid), tile, DIM, BLOCK_D)


@triton.jit
def read_query(
    q, window, first, head, token, grid, IS_GLOBAL: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Queries of a window: its own or, from (B, h, N, d), its image's."""
    if IS_GLOBAL:
        queries = q + row_of(image_of(window, grid), head, 0, grid) * DIM
        return read_rows(queries, token * DIM, is_inside(token, grid), DIM, BLOCK_D)
    return read(q, first, head, token, grid, grid.in_step, DIM, BLOCK_D)


@triton.jit
def read_bias(table, head, query, key, grid):
    """The position bias of a tile of pairs, times log₂e, −∞ where there is no key.

    The entry of a pair is a number of the query minus a number of the key, so that a tile costs one subtraction and one
    load a pair. The table comes as (h, (2w − 1)²): neighbouring keys then read neighbouring numbers, which 32 lanes get
    in one or two accesses of the cache, where the parameter's own layout ((2w − 1)², h) would take one a line.
    """
    window = grid.columns
    side = 2 * window - 1
    # A query past the end gets the last one's bias, not −∞ throughout: that would turn into NaN.
    query = tl.minimum(query, window * window - 1)
    of_query = (query // window) * side + query % window
    of_key = (key // window) * side + key % window
    entry = of_query[:, None] - of_key[None, :] + (window - 1) * (side + 1)
    mask = tl.broadcast_to(is_inside(key, grid)[None, :], entry.shape)
    return tl.load(table + head * side * side + entry, mask=mask, other=float("-inf")) * LOG2E


@triton.jit
def no_bias(key, grid, BLOCK: tl.constexpr):
    """As `read_bias` where there is none: only the keys past the end are ruled out."""
    none = tl.where(is_inside(key, grid), 0.0, float("-inf"))
    return tl.broadcast_to(none[None, :], [BLOCK, key.shape[0]])


@triton.jit
def bias_of(table, head, query, key, grid, HAS_BIAS: tl.constexpr):
    """What is added to the logits of a tile of pairs, in base 2."""
    if HAS_BIAS:
        return read_bias(table, head, query, key, grid)
    return no_bias(key, grid, query.shape[0])


@triton.jit
def logits_of(q_tile, k_tile, bias, scale):
    """Logits of a tile of pairs in base 2, in which exponentials are one instruction."""
    # "ieee" is about float32 alone: full products, where the default would round to TF32. Half types are unaffected.
    return tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * (scale * LOG2E) + bias


@triton.jit
def write_pairs(pointer, group, head, query, key, grid, tile):
    """Store a tile of pairs as one part of (groups, h, N, N)."""
    part = pointer + row_of(group, head, 0, grid) * (grid.rows * grid.columns)
    mask = is_inside(query, grid)[:, None] & is_inside(key, grid)[None, :]
    tl.store(part + query[:, None] * (grid.rows * grid.columns) + key[None, :], tile, mask=mask)

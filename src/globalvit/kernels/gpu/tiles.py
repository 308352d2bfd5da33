"""What all kernels share: where a window's tokens lie in the grid, and how a tile of them is read and written.

A window is `rows` × `columns` tokens of a (B, H, W) grid; a stripe is a long window. Windows are numbered row-major
over all images, tokens row-major in a window. A tile is a block of a window's tokens by one head's channels. Tokens
past the window's end and channels past the head's (blocks are powers of two) read as 0 and are never written.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


class Grid(NamedTuple):
    """The numbers that every kernel needs. Those typed Any are constants of the compiled kernel (`tl.constexpr`).

    Elements are counted in units of `align`, a power of two, so that the compiler knows how wide a load may be.

    Attributes:
        windows: windows of all images.
        height: tokens of an image's grid, top to bottom.
        width: tokens of an image's grid, left to right.
        heads: attention heads.
        in_step: from a token's projection to the next one's.
        out_step: from a token's output to the next one's.
        q_start: where the first head's query begins in a projection.
        k_start: where the first head's key begins.
        v_start: where the first head's value begins.
        out_start: where the first head begins in an output.
        scale: 1/√d.
        rows: height of a window; a constant but for vertical stripes, whose height is the image's.
        columns: width of a window; a constant but for horizontal stripes. Then dividing by it is a multiplication.
        tokens: of a window; a constant but for stripes.
        align: elements that starts and steps count.
        dim: channels of a head.
        lanes: the next power of two.
        block: tokens of a side of a tile.
    """

    windows: int
    height: int
    width: int
    heads: int
    in_step: int
    out_step: int
    q_start: int
    k_start: int
    v_start: int
    out_start: int
    scale: float
    rows: Any
    columns: Any
    tokens: Any
    align: Any
    dim: Any
    lanes: Any
    block: Any


@triton.jit
def split(program, heads, blocks):
    """Head, block of tokens and group of windows of a program.

    Heads run fastest: the programs that run side by side read neighboring channels of the same tokens, so that the
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
    return (window * grid.heads + head).to(tl.int64) * grid.tokens + token


@triton.jit
def is_inside(token, grid):
    """Whether a token is one of the window's."""
    return token < grid.tokens


@triton.jit
def places(token, grid, step):
    """How far tokens of a window lie from its first one, in elements."""
    return ((token // grid.columns) * grid.width + token % grid.columns) * (step * grid.align)


@triton.jit
def first_element(first, head, grid, step, start):
    """Where one head's channels of a token begin."""
    return first * (step * grid.align) + start * grid.align + head * grid.dim


@triton.jit
def read_rows(pointer, place, mask, grid):
    """(tokens, lanes) from a place for each token."""
    dim = tl.arange(0, grid.lanes)
    mask = mask[:, None]
    if grid.dim < grid.lanes:
        mask = mask & (dim[None, :] < grid.dim)
    return tl.load(pointer + place[:, None] + dim[None, :], mask=mask, other=0.0)


@triton.jit
def write_rows(pointer, place, mask, tile, grid):
    """The inverse of `read_rows`, rounding to the pointer's type."""
    dim = tl.arange(0, grid.lanes)
    mask = mask[:, None]
    if grid.dim < grid.lanes:
        mask = mask & (dim[None, :] < grid.dim)
    tl.store(pointer + place[:, None] + dim[None, :], tile.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def read_in(projected, first, head, token, grid, start):
    """A tile of the projection of the window that begins at token `first`: its queries, keys or values by `start`."""
    base = projected + first_element(first, head, grid, grid.in_step, start)
    return read_rows(base, places(token, grid, grid.in_step), is_inside(token, grid), grid)


@triton.jit
def write_in(projected, first, head, token, grid, start, tile):
    """The inverse of `read_in`."""
    base = projected + first_element(first, head, grid, grid.in_step, start)
    write_rows(base, places(token, grid, grid.in_step), is_inside(token, grid), tile, grid)


@triton.jit
def read_out(out, first, head, token, grid):
    """A tile of the output, or of its gradient."""
    base = out + first_element(first, head, grid, grid.out_step, grid.out_start)
    return read_rows(base, places(token, grid, grid.out_step), is_inside(token, grid), grid)


@triton.jit
def write_out(out, first, head, token, grid, tile):
    """The inverse of `read_out`."""
    base = out + first_element(first, head, grid, grid.out_step, grid.out_start)
    write_rows(base, places(token, grid, grid.out_step), is_inside(token, grid), tile, grid)


@triton.jit
def read_query(q, window, first, head, token, grid, IS_GLOBAL: tl.constexpr):
    """Queries of a window: its own or, from (B, h, N, d), its image's."""
    if IS_GLOBAL:
        queries = q + row_of(image_of(window, grid), head, 0, grid) * grid.dim
        return read_rows(queries, token * grid.dim, is_inside(token, grid), grid)
    return read_in(q, first, head, token, grid, grid.q_start)


@triton.jit
def write_query(dq, group, head, token, grid, tile):
    """Store a group's share of the shared queries' gradient as one part of (groups, h, N, d)."""
    base = dq + row_of(group, head, 0, grid) * grid.dim
    write_rows(base, token * grid.dim, is_inside(token, grid), tile, grid)


@triton.jit
def read_bias(table, head, query, key, grid):
    """The position bias of a tile of pairs, times log₂e, −∞ where there is no key.

    The entry of a pair is a number of the query minus a number of the key, so that a tile costs one subtraction and one
    load a pair. The table comes as (h, (2w − 1)²): neighboring keys then read neighboring numbers, which 32 lanes get
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
def no_bias(key, grid):
    """As `read_bias` where there is none: only the keys past the end are ruled out."""
    none = tl.where(is_inside(key, grid), 0.0, float("-inf"))
    return tl.broadcast_to(none[None, :], [grid.block, grid.block])


@triton.jit
def bias_of(table, head, query, key, grid, HAS_BIAS: tl.constexpr):
    """What is added to the logits of a tile of pairs, in base 2."""
    if HAS_BIAS:
        return read_bias(table, head, query, key, grid)
    return no_bias(key, grid)


@triton.jit
def product(left, right):
    """Matrix product in float32. "ieee" concerns float32 tiles alone, which the default would round to TF32."""
    return tl.dot(left, right, input_precision="ieee")


@triton.jit
def logits_of(q_tile, k_tile, bias, scale):
    """Logits of a tile of pairs in base 2, in which exponentials are one instruction."""
    return product(q_tile, tl.trans(k_tile)) * (scale * LOG2E) + bias


@triton.jit
def write_pairs(pointer, group, head, query, key, grid, tile):
    """Store a tile of pairs as one part of (groups, h, N, N)."""
    part = pointer + row_of(group, head, 0, grid) * grid.tokens
    mask = is_inside(query, grid)[:, None] & is_inside(key, grid)[None, :]
    tl.store(part + query[:, None] * grid.tokens + key[None, :], tile, mask=mask)

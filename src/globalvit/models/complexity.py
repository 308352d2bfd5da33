"""Multiply-adds, activations and memory of the networks at any image size, by formula. No torch here.

A network is the list of its convolutions, Linears and matrix products; norms, activation functions and resizing count
nothing, as in torch's `FlopCounterMode`. With H×W tokens of C channels and windows of w² tokens, an attention takes

- local (Swin's W-MSA, arXiv 2103.14030, equation 2): 4 HW C² + 2 w² HW C multiply-adds,
- global (GC ViT): 3 HW C² + 2 w² HW C, since its queries are pooled once for all blocks of a stage,
- full self-attention (equation 1 there): 4 HW C² + 2 (HW)² C,

where windows do not divide the grid with H and W of the products, not of the projections, rounded up to whole windows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

from globalvit.models.variants import GCViTConfig, GPViTConfig, Size, choose_window

# `own`: the network as it is; `swin`: local windows in all blocks of GC ViT and no global query; `full`: full
# self-attention in place of all attention in windows or stripes.
AttentionKind = Literal["own", "swin", "full"]
Part = Literal["stem", "attention", "mlp", "convolutions", "global query", "groups", "head"]

SQUEEZE = 4
QUERY_BLOCKS = (3, 2, 1, 1)
STEM_WIDTH = 64
FLOAT32_BYTES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A convolution, a Linear or a matrix product, for one image.

    Attributes:
        part: what it belongs to.
        macs: multiply-adds.
        reads: elements of activations that go in.
        writes: elements that come out.
        padding: multiply-adds of `macs` that are spent on the padding of windows.
    """

    part: Part
    macs: int
    reads: int
    writes: int
    padding: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Complexity:
    """The sum over a network's layers, for one image.

    Attributes:
        macs: multiply-adds.
        attention_macs: of these, those of attention, with its projections and global queries.
        activations: elements that all layers write.
        memory: bytes in float32 that the largest layer reads and writes, attention's logits written out.
        padding_share: part of the multiply-adds that is spent on the padding of windows.
    """

    macs: int
    attention_macs: int
    activations: int
    memory: int
    padding_share: float


def complexity(
    config: GCViTConfig | GPViTConfig, image_size: Size, kind: AttentionKind = "own", num_classes: int = 1000
) -> Complexity:
    """Sum up a classifier for one image.

    Args:
        config: a value of `variants.VARIANTS`. GC ViT's windows follow `image_size` as in `create_model`.
        image_size: (height, width) in pixels.
        kind: the attention.
        num_classes: outputs of the head.

    Raises:
        ValueError: Swin's attention is asked of a network that has no windows.
    """
    found = list(layers(config, image_size, kind, num_classes))
    macs = sum(layer.macs for layer in found)
    return Complexity(
        macs=macs,
        attention_macs=sum(layer.macs for layer in found if layer.part in ("attention", "global query", "groups")),
        activations=sum(layer.writes for layer in found),
        memory=FLOAT32_BYTES * max(layer.reads + layer.writes for layer in found),
        padding_share=sum(layer.padding for layer in found) / macs,
    )


def layers(
    config: GCViTConfig | GPViTConfig, image_size: Size, kind: AttentionKind = "own", num_classes: int = 1000
) -> Iterator[Layer]:
    """Every layer of a classifier in order; arguments and errors as in `complexity`."""
    if isinstance(config, GCViTConfig):
        yield from _gcvit(config, image_size, kind)
        yield _linear("head", 1, config.channels[-1], num_classes)
    else:
        if kind == "swin":
            raise ValueError(
                "Swin's windows have no place in GPViT, whose tokens all have stride 8; choose own or full"
            )
        yield from _gpvit(config, image_size, kind)
        yield _linear("head", 1, config.width, num_classes)


def _gcvit(config: GCViTConfig, image_size: Size, kind: AttentionKind) -> Iterator[Layer]:
    window = choose_window(config, image_size, None)
    grid = _halved(image_size)
    yield _convolution("stem", image_size, grid, config.in_channels, config.width, kernel=3)
    yield from _downsample("stem", grid, config.width, config.width)
    grid = _halved(grid)
    for stage, (dim, heads) in enumerate(zip(config.channels, config.num_heads, strict=True)):
        if kind == "own":
            yield from _global_query(grid, dim, QUERY_BLOCKS[stage], config.query_pools[stage])
        side = window[stage]
        for block in range(config.depths[stage]):
            is_global = kind == "own" and block % 2 == 1
            yield from _attention(grid, grid if kind == "full" else (side, side), dim, heads, is_global=is_global)
            yield from _mlp("mlp", prod(grid), dim, int(dim * config.mlp_ratio))
        if stage < len(config.depths) - 1:
            yield from _downsample("convolutions", grid, dim, 2 * dim)
            grid = _halved(grid)


def _attention(grid: Size, window: Size, dim: int, heads: int, *, is_global: bool = False) -> Iterator[Layer]:
    """Attention in windows over a grid: projections, two products over whole windows, the output."""
    rows, columns = (-(-side // part) * part for side, part in zip(grid, window, strict=True))
    tokens, real = rows * columns, prod(grid)
    waste = (tokens - real) / tokens
    yield _linear("attention", real, dim, dim * (2 if is_global else 3))
    yield from _products("attention", tokens // prod(window) * heads, prod(window), prod(window), dim // heads, waste)
    yield _linear("attention", real, dim, dim)


def _global_query(grid: Size, dim: int, blocks: int, pools: int) -> Iterator[Layer]:
    for block in range(blocks):
        yield from _fused_mbconv("global query", grid, dim)
        grid = _halved(grid) if block < pools else grid


def _downsample(part: Part, grid: Size, dim: int, out_dim: int) -> Iterator[Layer]:
    yield from _fused_mbconv(part, grid, dim)
    yield _convolution(part, grid, _halved(grid), dim, out_dim, kernel=3)


def _fused_mbconv(part: Part, grid: Size, dim: int) -> Iterator[Layer]:
    yield _convolution(part, grid, grid, dim, dim, kernel=3, groups=dim)
    yield from _mlp(part, 1, dim, dim // SQUEEZE)
    yield _convolution(part, grid, grid, dim, dim, kernel=1)


def _gpvit(config: GPViTConfig, image_size: Size, kind: AttentionKind) -> Iterator[Layer]:
    dim, wide = config.width, _halved(image_size)
    yield _convolution("stem", image_size, wide, config.in_channels, STEM_WIDTH, kernel=7)
    for _ in range(config.stem_convs):
        yield _convolution("stem", wide, wide, STEM_WIDTH, STEM_WIDTH, kernel=3)
    grid = (-(-wide[0] // 4), -(-wide[1] // 4))
    yield _convolution("stem", (4 * grid[0], 4 * grid[1]), grid, STEM_WIDTH, dim, kernel=4)
    groups = dict(config.group_tokens)
    for block in range(config.depth):
        if block in groups:
            yield from _group_propagation(prod(grid), groups[block], config)
        elif kind == "full":
            yield from _attention(grid, grid, dim, config.num_heads)
        else:
            yield from _stripes(grid, config)
        yield from _mlp("mlp", prod(grid), dim, int(dim * config.mlp_ratio))
        yield _convolution("convolutions", grid, grid, dim, dim, kernel=3, groups=dim)
    if config.pooling == "group":
        yield _linear("head", prod(grid), dim, dim)
        yield from _products("head", config.num_group_heads, 1, prod(grid), dim // config.num_group_heads)


def _stripes(grid: Size, config: GPViTConfig) -> Iterator[Layer]:
    """Half of the channels attend in stripes along each axis; grids are padded to whole stripes."""
    dim, stripe, half = config.width, config.stripe, config.width // 2
    rows, columns = (-(-side // stripe) * stripe for side in grid)
    tokens, heads = rows * columns, config.num_heads // 2
    waste = (tokens - prod(grid)) / tokens
    yield _linear("attention", prod(grid), dim, 3 * dim)
    for side in (rows, columns):
        length = side * stripe
        yield from _products("attention", tokens // length * heads, length, length, half // heads, waste)
        yield _convolution("attention", (rows, columns), (rows, columns), half, half, kernel=3, groups=half)
    yield _linear("attention", prod(grid), dim, dim)


def _group_propagation(tokens: int, groups: int, config: GPViTConfig) -> Iterator[Layer]:
    """Gather, mix and scatter, up to the MLP."""
    dim, heads = config.width, config.num_group_heads
    yield _linear("groups", tokens, dim, dim)
    yield from _products("groups", heads, groups, tokens, dim // heads)
    yield from _mlp("groups", dim, groups, dim // 2)
    yield from _mlp("groups", groups, dim, 4 * dim)
    for count in (tokens, groups, groups):
        yield _linear("groups", count, dim, dim)
    yield from _products("groups", heads, tokens, groups, dim // heads)
    yield _linear("groups", tokens, dim, dim)
    yield _linear("groups", tokens, 2 * dim, dim)


def _convolution(
    part: Part, grid: Size, out_grid: Size, dim: int, out_dim: int, *, kernel: int, groups: int = 1
) -> Layer:
    writes = prod(out_grid) * out_dim
    return Layer(part=part, macs=kernel * kernel * dim // groups * writes, reads=prod(grid) * dim, writes=writes)


def _linear(part: Part, tokens: int, dim: int, out_dim: int) -> Layer:
    return Layer(part=part, macs=tokens * dim * out_dim, reads=tokens * dim, writes=tokens * out_dim)


def _mlp(part: Part, tokens: int, dim: int, hidden: int) -> Iterator[Layer]:
    yield _linear(part, tokens, dim, hidden)
    yield _linear(part, tokens, hidden, dim)


def _products(part: Part, count: int, queries: int, keys: int, dim: int, waste: float = 0.0) -> Iterator[Layer]:
    """`count` times q kᵀ and its product with v."""
    macs, logits = count * queries * keys * dim, count * queries * keys
    small, large = count * queries * dim, count * keys * dim
    yield Layer(part=part, macs=macs, reads=small + large, writes=logits, padding=macs * waste)
    yield Layer(part=part, macs=macs, reads=logits + large, writes=small, padding=macs * waste)


def _halved(grid: Size) -> Size:
    return -(-grid[0] // 2), -(-grid[1] // 2)

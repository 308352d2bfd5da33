"""GC ViT, the Global Context Vision Transformer: a hierarchical backbone of local and global window attention.

Paper: Hatamizadeh et al., ICML 2023, arXiv 2206.09959. Where the code released with it differs from the paper (residual
on the normed map in the downsampling, global queries without a projection) this file follows the released weights.

Deviations from the released code, none of which changes a released result: any input size (the grid is padded for each
block, the pooled query resized), any number of channels, position tables spread without a stored index.

Legend: `B` images · `H W` grid · `C` channels · `M` windows an image · `N` tokens of a window · `h` heads ·
`d` channels a head. Grids are channels-last inside, NCHW at the border of the backbone.
"""

import re
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from globalvit.models import ops, windows
from globalvit.models.attention_maps import WindowMaps, window_maps
from globalvit.models.backbone import AttentionView, Backbone
from globalvit.models.layers import (
    INIT_STD,
    DropPath,
    Mlp,
    SqueezeExcite,
    add_branch,
    channels_last,
    drop_path_rates,
    init_linear_,
    resize_bicubic,
    to_nchw,
    to_nhwc,
)
from globalvit.models.variants import GCViTConfig

NORM_EPS = 1e-5
QUERY_BLOCKS = (3, 2, 1, 1)


class FusedMBConv(nn.Module):
    """A map plus the paper's convolutional branch of it (equation 2): depthwise 3×3, GELU, squeeze-excite, 1×1."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.activation = nn.GELU()
        self.squeeze_excite = SqueezeExcite(dim)
        self.pointwise = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        return ops.conv_branch(x_BCHW, self.depthwise, self.activation, self.squeeze_excite, self.pointwise)


class Downsample(nn.Module):
    """Halve the grid, rounding up (section 2.2): LN, residual on the normed map, strided convolution, LN."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.branch = FusedMBConv(dim)
        self.reduction = nn.Conv2d(dim, out_dim, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.LayerNorm(out_dim, eps=NORM_EPS)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) → (B, ⌈H/2⌉, ⌈W/2⌉, C')."""
        x = self.branch(to_nchw(self.norm1(x_BHWC)))
        return self.norm2(to_nhwc(self.reduction(x)))


class Stem(nn.Module):
    """Images to the first stage's grid of stride 4: a strided convolution and a downsample that keeps the width."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, dim, 3, stride=2, padding=1)
        self.downsample = Downsample(dim, dim)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) → (B, ⌈H/4⌉, ⌈W/4⌉, width)."""
        # Channels-last from the first convolution on: every later change of layout is then a view.
        x = self.conv(channels_last(images_BCHW))
        return self.downsample(to_nhwc(x))


class GlobalQuery(nn.Module):
    """Pool a stage's whole input map into the queries of one window (section 2.1, equation 1)."""

    def __init__(self, dim: int, num_heads: int, window: int, blocks: int, pools: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window = window
        self.pools = pools
        self.blocks = nn.ModuleList(FusedMBConv(dim) for _ in range(blocks))

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) → (B, h, N, d)."""
        x = to_nchw(x_BHWC)
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index < self.pools:
                x = F.max_pool2d(x, 3, stride=2, padding=1)
        if not windows.is_sure(x.shape[2] == self.window, x.shape[3] == self.window):
            x = resize_bicubic(x, self.window, self.window)
        # Laid out once for all blocks that read it.
        return to_nhwc(x).flatten(1, 2).unflatten(-1, (self.num_heads, -1)).transpose(1, 2).contiguous()


class WindowAttention(nn.Module):
    """Attention inside windows: local (own queries) or global (the image's pooled queries), section 2.1.

    Attributes:
        has_maps: whether `attention_maps` can show it.
    """

    has_maps = True

    def __init__(self, dim: int, num_heads: int, window: int, *, is_global: bool) -> None:
        super().__init__()
        self.window = window
        self.bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        if is_global:
            self.kv = nn.Linear(dim, 2 * dim)
        else:
            self.qkv = nn.Linear(dim, 3 * dim)
        self.is_global = is_global
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BHWC: Tensor, query_BhNd: Tensor, norm: nn.LayerNorm | None = None) -> Tensor:
        """(B, H, W, C) → (B, H, W, C), `x_BHWC` going through `norm` first where it is given.

        Tokens outside the grid are attended to like others: released detectors need it.
        """
        out_BHWC = ops.window_attention(
            x_BHWC,
            norm,
            self.kv if self.is_global else self.qkv,
            self.bias_table,
            window=self.window,
            query_BhNd=query_BhNd if self.is_global else None,
        )
        return ops.linear(out_BHWC, self.proj)

    def attention_maps(self, x_BHWC: Tensor, query_BhNd: Tensor) -> WindowMaps:
        """Who attends to whom when `forward` gets the same."""
        padded_BHWC = windows.pad(x_BHWC, self.window)
        return window_maps(
            self.kv(padded_BHWC) if self.is_global else self.qkv(padded_BHWC),
            self.bias_table,
            window=self.window,
            query_BhNd=query_BhNd if self.is_global else None,
            size=(x_BHWC.shape[1], x_BHWC.shape[2]),
        )


class Block(nn.Module):
    """Norm, attention, norm, MLP, with residuals, drop path and, in the wider variants, layer scale."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: int,
        mlp_ratio: float,
        layer_scale: float | None,
        drop_path: float,
        *,
        is_global: bool,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attention = WindowAttention(dim, num_heads, window, is_global=is_global)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)
        has_scale = layer_scale is not None
        self.scale1 = nn.Parameter(torch.full((dim,), layer_scale)) if has_scale else None
        self.scale2 = nn.Parameter(torch.full((dim,), layer_scale)) if has_scale else None

    def forward(self, x_BHWC: Tensor, query_BhNd: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, C)."""
        x = add_branch(x_BHWC, self, self.drop_path, self._attend, query_BhNd)
        return add_branch(x, self, self.drop_path, self._transform)

    def attention_maps(self, x_BHWC: Tensor, query_BhNd: Tensor) -> WindowMaps:
        """Who attends to whom in this block when `forward` gets the same."""
        return self.attention.attention_maps(self.norm1(x_BHWC), query_BhNd)

    def _attend(self, x_BHWC: Tensor, query_BhNd: Tensor) -> Tensor:
        return _scale(self.attention(x_BHWC, query_BhNd, self.norm1), self.scale1)

    def _transform(self, x_BHWC: Tensor) -> Tensor:
        return _scale(ops.norm_mlp(x_BHWC, self.norm2, self.mlp), self.scale2)


def _scale(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else x * scale


class Stage(nn.Module):
    """The parts of a stage: blocks, even ones local and odd ones global, and what makes the query of the global ones.

    `downsample` leads to the next stage and is None in the last one. The backbone calls the parts, because its outputs
    are the maps before the downsampling.
    """

    def __init__(self, config: GCViTConfig, index: int, drop_path: list[float]) -> None:
        super().__init__()
        dim, heads, window = config.channels[index], config.num_heads[index], config.window[index]
        self.global_query = GlobalQuery(dim, heads, window, QUERY_BLOCKS[index], config.query_pools[index])
        self.blocks = nn.ModuleList(
            Block(dim, heads, window, config.mlp_ratio, config.layer_scale, rate, is_global=bool(number % 2))
            for number, rate in enumerate(drop_path)
        )
        is_last = index == len(config.depths) - 1
        self.downsample = None if is_last else Downsample(dim, 2 * dim)


class GCViT(Backbone):
    """Four maps: the stages' outputs before downsampling.

    In the classification form only the last one is normed, in the detection form (`output_norms="every"`) each has an
    LN of its own.
    """

    strides = (4, 8, 16, 32)

    def __init__(self, config: GCViTConfig) -> None:
        super().__init__()
        self.config = config
        self.in_channels = config.in_channels
        self.channels = config.channels
        rates = drop_path_rates(config.drop_path, config.depths)
        self.stem = Stem(config.in_channels, config.width)
        self.stages = nn.ModuleList(Stage(config, index, rates[index]) for index in range(len(config.depths)))
        if config.output_norms == "last":
            self.norm = nn.LayerNorm(config.channels[-1], eps=NORM_EPS)
        else:
            self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=NORM_EPS) for dim in config.channels)

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        """See `Backbone`."""
        self.check(images_BCHW)
        x = self.stem(images_BCHW)
        maps = []
        for stage in cast("list[Stage]", self.stages):
            query_BhNd = stage.global_query(x)
            for block in stage.blocks:
                x = self.run_block(block, x, query_BhNd)
            maps.append(x)
            if stage.downsample is not None:
                x = stage.downsample(x)
        return [to_nchw(x_BHWC) for x_BHWC in self._norm(maps)]

    def _norm(self, maps_BHWC: list[Tensor]) -> list[Tensor]:
        if self.config.output_norms == "last":
            return [*maps_BHWC[:-1], self.norm(maps_BHWC[-1])]
        return [norm(x_BHWC) for norm, x_BHWC in zip(self.norms, maps_BHWC, strict=True)]

    def init_weights(self) -> None:
        """Truncated normal 0.02 for Linears and bias tables, 0 for biases; convolutions at torch's default."""
        init_linear_(self)
        for module in self.modules():
            if isinstance(module, WindowAttention):
                nn.init.trunc_normal_(module.bias_table, std=INIT_STD)

    def block_modules(self) -> list[nn.Module]:
        """The blocks of all stages."""
        return [block for stage in cast("list[Stage]", self.stages) for block in stage.blocks]

    def leave_out(self, maps: int) -> None:
        """See `Backbone`; only the detection form has norms of single maps."""
        self.norms[:maps].requires_grad_(False)

    def attention_views(self) -> list[AttentionView]:
        """See `Backbone`."""
        views = []
        for number, stage in enumerate(cast("list[Stage]", self.stages)):
            stride = self.strides[number]
            blocks = [one.attention for one in cast("list[Block]", stage.blocks)]
            views += [
                AttentionView(
                    kind="global" if attention.is_global else "local",
                    stage=number,
                    block=block,
                    heads=self.config.num_heads[number],
                    stride=stride,
                )
                for block, attention in enumerate(blocks)
                if attention.has_maps
            ]
            if all(attention.has_maps for attention in blocks):
                views.append(AttentionView(kind="rollout", stage=number, stride=stride))
            views.append(AttentionView(kind="grad_cam", stage=number, stride=stride))
        return views

    def blocks_of(self, stage: int | None) -> list[nn.Module]:
        """See `Backbone`."""
        assert stage is not None
        return list(cast("Stage", self.stages[stage]).blocks)

    def no_decay_names(self) -> set[str]:
        """The tables of position biases."""
        return {name for name, _ in self.named_parameters() if name.endswith("bias_table")}

    @property
    def num_depths(self) -> int:
        """The stem and every block."""
        return 1 + sum(self.config.depths)

    def depth_of(self, name: str) -> int:
        """A stage's global query goes with its first block, its downsample with its last."""
        if name.startswith("stem."):
            return 0
        found = re.match(r"stages\.(\d+)\.(?:blocks\.(\d+)|global_query|downsample)", name)
        if found is None:
            return self.num_depths - 1
        stage = int(found[1])
        before = sum(self.config.depths[:stage])
        if found[2] is not None:
            return before + int(found[2]) + 1
        return before + (1 if "global_query" in found[0] else self.config.depths[stage])

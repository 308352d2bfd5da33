"""GPViT, the Group Propagation Vision Transformer: a plain backbone that keeps a grid of stride 8 throughout.

Paper: Yang et al., ICLR 2023, arXiv 2212.06795. Deviations from the released code, none of which changes a released
result: odd grids are padded in the local blocks, any number of channels and of output blocks.

Legend: `B` images · `H W` grid · `C` channels · `N` tokens of a grid · `G` group tokens. Grids are channels-last
inside, NCHW at the border of the backbone.
"""

import re
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from globalvit.models import ops, windows
from globalvit.models.attention_maps import WindowMaps, sequence_map, stripe_maps
from globalvit.models.backbone import AttentionView, Backbone
from globalvit.models.layers import (
    INIT_STD,
    ConvNormReLU,
    DropPath,
    Mlp,
    add_branch,
    channels_last,
    drop_path_rates,
    init_linear_,
    resize_bicubic,
    to_nchw,
    to_nhwc,
)
from globalvit.models.variants import GPViTConfig

LOCAL_EPS = 1e-6
GROUP_EPS = 1e-5
STEM_WIDTH = 64
POSITION_GRID = 28
PATCH = 4
STRIDE = 8


class Stem(nn.Module):
    """Images to tokens of stride 8: a strided convolution, more at stride 2 in wide variants, 4×4 patches."""

    def __init__(self, in_channels: int, convs: int, dim: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [ConvNormReLU(in_channels, STEM_WIDTH, 7, stride=2)]
            + [ConvNormReLU(STEM_WIDTH, STEM_WIDTH, 3) for _ in range(convs)]
        )
        self.projection = nn.Conv2d(STEM_WIDTH, dim, PATCH, stride=PATCH)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) → (B, ⌈H/8⌉, ⌈W/8⌉, dim); patches over the border see zeros."""
        x = channels_last(images_BCHW)
        for conv in self.convs:
            x = conv(x)
        return to_nhwc(self.projection(to_nchw(windows.pad(to_nhwc(x), PATCH))))


class StripeAttention(nn.Module):
    """Attention in vertical stripes by the first half of the channels, in horizontal ones by the second (figure 3)."""

    def __init__(self, dim: int, num_heads: int, stripe: int) -> None:
        super().__init__()
        self.heads = num_heads // 2
        self.stripe = stripe
        self.qkv = nn.Linear(dim, 3 * dim)
        self.vertical = nn.Conv2d(dim // 2, dim // 2, 3, padding=1, groups=dim // 2)
        self.horizontal = nn.Conv2d(dim // 2, dim // 2, 3, padding=1, groups=dim // 2)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BHWC: Tensor, norm: nn.LayerNorm | None = None) -> Tensor:
        """(B, H, W, C) → (B, H, W, C), `x_BHWC` going through `norm` first where it is given; any grid."""
        out_BHWC = ops.stripe_attention(
            x_BHWC, norm, self.qkv, self.vertical, self.horizontal, stripe=self.stripe, heads=self.heads
        )
        return ops.linear(out_BHWC, self.proj)

    def attention_maps(self, x_BHWC: Tensor) -> tuple[WindowMaps, WindowMaps]:
        """Who attends to whom when `forward` gets the same: in the vertical stripes, and in the horizontal ones."""
        qkv_BHWC = self.qkv(windows.pad(x_BHWC, self.stripe))
        size = (x_BHWC.shape[1], x_BHWC.shape[2])
        return stripe_maps(qkv_BHWC, stripe=self.stripe, heads=self.heads, size=size)


class LocalBlock(nn.Module):
    """Stripe attention and an MLP with residuals, then a depthwise convolution that replaces the tokens."""

    def __init__(self, config: GPViTConfig, drop_path: float) -> None:
        super().__init__()
        dim = config.width
        self.norm1 = nn.LayerNorm(dim, eps=LOCAL_EPS)
        self.attention = StripeAttention(dim, config.num_heads, config.stripe)
        self.norm2 = nn.LayerNorm(dim, eps=LOCAL_EPS)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio))
        self.depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, C)."""
        x = add_branch(x_BHWC, self, self.drop_path, lambda x: self.attention(x, self.norm1))
        x = add_branch(x, self, self.drop_path, lambda x: ops.norm_mlp(x, self.norm2, self.mlp))
        return to_nhwc(self.depthwise(to_nchw(x)))

    def attention_maps(self, x_BHWC: Tensor) -> tuple[WindowMaps, WindowMaps]:
        """Who attends to whom in this block when `forward` gets the same: vertical stripes, horizontal stripes."""
        return self.attention.attention_maps(self.norm1(x_BHWC))


class Gather(nn.Module):
    """Learned group tokens collect from all tokens of an image (section 3.2): keys are projected, values are not."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_query = nn.LayerNorm(dim, eps=GROUP_EPS)
        self.norm_key = nn.LayerNorm(dim, eps=GROUP_EPS)
        self.key = nn.Linear(dim, dim)

    def forward(self, groups_GC: Tensor, x_BNC: Tensor) -> Tensor:
        """(G, C) and (B, N, C) → (B, G, C)."""
        q_BGC = self.norm_query(groups_GC).expand(x_BNC.shape[0], -1, -1)
        values_BNC = self.norm_key(x_BNC)
        return ops.attention(q_BGC, self.key(values_BNC), values_BNC, heads=self.num_heads)

    def attention_map(self, groups_GC: Tensor, x_BNC: Tensor) -> Tensor:
        """How much each group takes from each token when `forward` gets the same: (B, h, G, N)."""
        q_BGC = self.norm_query(groups_GC).expand(x_BNC.shape[0], -1, -1)
        return sequence_map(q_BGC, self.key(self.norm_key(x_BNC)), self.num_heads)


class Mix(nn.Module):
    """Exchange between the groups: an MLP-Mixer of depth 1 (arXiv 2105.01601)."""

    def __init__(self, dim: int, groups: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=GROUP_EPS)
        self.tokens = nn.ModuleDict({"fc1": nn.Linear(groups, dim // 2), "fc2": nn.Linear(dim // 2, groups)})
        self.norm2 = nn.LayerNorm(dim, eps=GROUP_EPS)
        self.channels = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BGC: Tensor) -> Tensor:
        """(B, G, C) → (B, G, C)."""
        hidden = F.gelu(self.tokens["fc1"](self.norm1(x_BGC).transpose(1, 2)))
        x_BGC = x_BGC + self.drop_path(self.tokens["fc2"](hidden).transpose(1, 2))
        return x_BGC + self.drop_path(self.channels(self.norm2(x_BGC)))


class Scatter(nn.Module):
    """Tokens take from the groups what concerns them; raw tokens and answer are merged by a Linear, then an MLP."""

    def __init__(self, config: GPViTConfig, drop_path: float) -> None:
        super().__init__()
        dim = config.width
        self.num_heads = config.num_group_heads
        self.norm_query = nn.LayerNorm(dim, eps=GROUP_EPS)
        self.norm_key = nn.LayerNorm(dim, eps=GROUP_EPS)
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.merge = nn.Linear(2 * dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=GROUP_EPS)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BNC: Tensor, groups_BGC: Tensor) -> Tensor:
        """(B, N, C) and (B, G, C) → (B, N, C)."""
        groups = self.norm_key(groups_BGC)
        q_BNC = self.query(self.norm_query(x_BNC))
        answer = self.proj(ops.attention(q_BNC, self.key(groups), self.value(groups), heads=self.num_heads))
        x = self.merge(torch.cat([x_BNC, self.drop_path(answer)], dim=-1))
        return add_branch(x, self, self.drop_path, lambda x: ops.norm_mlp(x, self.norm2, self.mlp))

    def attention_map(self, x_BNC: Tensor, groups_BGC: Tensor) -> Tensor:
        """How much each token takes from each group when `forward` gets the same: (B, h, N, G)."""
        key_BGC = self.key(self.norm_key(groups_BGC))
        return sequence_map(self.query(self.norm_query(x_BNC)), key_BGC, self.num_heads)


class GroupBlock(nn.Module):
    """Group propagation: gather, mix, scatter, then a convolution that replaces the tokens (section 3.2)."""

    def __init__(self, config: GPViTConfig, groups: int, drop_path: float) -> None:
        super().__init__()
        dim = config.width
        self.group_tokens = nn.Parameter(torch.zeros(groups, dim))
        self.gather = Gather(dim, config.num_group_heads)
        self.mix = Mix(dim, groups, drop_path)
        self.scatter = Scatter(config, drop_path)
        self.depthwise = ConvNormReLU(dim, dim, 3, groups=dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, C)."""
        x_BNC = x_BHWC.flatten(1, 2)
        groups_BGC = self.mix(self.gather(self.group_tokens, x_BNC))
        x = self.scatter(x_BNC, groups_BGC).view(x_BHWC.shape)
        return to_nhwc(self.depthwise(to_nchw(x)))

    def attention_maps(self, x_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Who attends to whom in this block when `forward` gets the same.

        Returns:
            How much each group gathers from each token (B, h, G, N), and each token takes from each group (B, h, N, G).
        """
        x_BNC = x_BHWC.flatten(1, 2)
        gathered_BhGN = self.gather.attention_map(self.group_tokens, x_BNC)
        groups_BGC = self.mix(self.gather(self.group_tokens, x_BNC))
        return gathered_BhGN, self.scatter.attention_map(x_BNC, groups_BGC)


class GPViT(Backbone):
    """One map (B, width, ⌈H/8⌉, ⌈W/8⌉) for each block of `config.outputs`, each through an LN of its own."""

    is_plain = True
    # The stem takes 4×4 patches of a map of stride 2.
    first_center = 3.5

    def __init__(self, config: GPViTConfig) -> None:
        super().__init__()
        self.config = config
        self.in_channels = config.in_channels
        self.channels = config.channels
        self.pooling = config.pooling
        self.strides = (STRIDE,) * len(config.outputs)
        self.stem = Stem(config.in_channels, config.stem_convs, config.width)
        self.position_embedding = nn.Parameter(torch.zeros(POSITION_GRID, POSITION_GRID, config.width))
        self.blocks = nn.ModuleList(_blocks(config))
        last = config.depth - 1
        self.norms = nn.ModuleDict(
            {str(block): nn.LayerNorm(config.width, eps=LOCAL_EPS) for block in config.outputs if block != last}
        )
        self.norm = nn.LayerNorm(config.width, eps=LOCAL_EPS) if last in config.outputs else None

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        """See `Backbone`."""
        self.check(images_BCHW)
        x = self.embed(images_BCHW)
        maps = []
        for index, block in enumerate(self.blocks):
            x = self.run_block(block, x)
            if index in self.config.outputs:
                maps.append(to_nchw(self._norm_of(index)(x)))
        return maps

    def embed(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) → tokens with their positions (B, ⌈H/8⌉, ⌈W/8⌉, width)."""
        x = self.stem(images_BCHW)
        return x + self._positions(x.shape[1], x.shape[2]).to(x.dtype)

    def _positions(self, height: int, width: int) -> Tensor:
        """The learned embedding, resized where the grid is not 28×28: (H, W, C)."""
        if windows.is_sure(height == POSITION_GRID, width == POSITION_GRID):
            return self.position_embedding
        return to_nhwc(resize_bicubic(to_nchw(self.position_embedding[None]), height, width))[0]

    def _norm_of(self, block: int) -> nn.Module:
        if block == self.config.depth - 1:
            assert self.norm is not None
            return self.norm
        return self.norms[str(block)]

    def init_weights(self) -> None:
        """Truncated normal 0.02 for Linears, position embedding and group tokens; convolutions at torch's default."""
        init_linear_(self)
        nn.init.trunc_normal_(self.position_embedding, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, GroupBlock):
                nn.init.trunc_normal_(module.group_tokens, std=INIT_STD)

    def block_modules(self) -> list[nn.Module]:
        """Local and group propagation blocks."""
        return list(self.blocks)

    def attention_views(self) -> list[AttentionView]:
        """See `Backbone`."""
        views = [AttentionView(kind="rollout", stride=STRIDE)]
        for block, one in enumerate(self.blocks):
            is_group = isinstance(one, GroupBlock)
            heads = self.config.num_group_heads if is_group else self.config.num_heads
            views.append(AttentionView(kind="grad_cam", block=block, stride=STRIDE))
            views += [
                AttentionView(kind=kind, block=block, heads=heads, stride=STRIDE)
                for kind in (("groups", "propagation") if is_group else ("local",))
            ]
        return views

    def blocks_of(self, stage: int | None) -> list[nn.Module]:  # noqa: ARG002 - there are no stages
        """See `Backbone`."""
        return list(self.blocks)

    def no_decay_names(self) -> set[str]:
        """Position embedding and group tokens (the published recipe)."""
        spared = ("position_embedding", "group_tokens")
        return {name for name, _ in self.named_parameters() if name.endswith(spared)}

    @property
    def num_depths(self) -> int:
        """The embedding and every block."""
        return 1 + self.config.depth

    def depth_of(self, name: str) -> int:
        """Stem and position embedding are 0, block i is i + 1, norms go with the block they follow."""
        found = re.match(r"(?:blocks|norms)\.(\d+)\.", name)
        if found is not None:
            return int(found[1]) + 1
        return self.config.depth if name.startswith("norm.") else 0


def _blocks(config: GPViTConfig) -> Iterator[nn.Module]:
    (rates,) = drop_path_rates(config.drop_path, (config.depth,))
    groups = dict(config.group_tokens)
    for index, rate in enumerate(rates):
        yield GroupBlock(config, groups[index], rate) if index in groups else LocalBlock(config, rate)

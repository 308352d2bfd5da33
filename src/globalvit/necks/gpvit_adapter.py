"""GPViT as a detection backbone: a convolutional side path brings in fine detail and takes out a pyramid.

The adapter of GPViT's detectors (arXiv 2212.06795, section 4.2), after Chen et al., ICLR 2023, arXiv 2205.08534.
Deviation from the released code, which changes no released result: any image size, padded inside.

Legend: `B` images · `H W` grid of stride 8 · `C` channels · `N` tokens of that grid · `S` tokens of the side path, its
grids of strides 8, 16 and 32 one after another.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from globalvit.models import windows
from globalvit.models.gpvit import ConvNormReLU, GPViT
from globalvit.models.layers import INIT_STD, DropPath, resize_bilinear, to_nchw, to_nhwc
from globalvit.models.variants import GPViTConfig
from globalvit.necks.deformable import DeformableAttention, Grids, places

INTERACTIONS = 4
# The last interaction has two more, as nothing comes after it that could refine the side path.
EXTRACTORS = (1, 1, 1, 3)
HEADS = 6
POINTS = 4
FFN_RATIO = 4
DROP_PATH = 0.1
NORM_EPS = 1e-6
STRIDES = (4, 8, 16, 32)
# What the side path's tokens are: the pyramid without its finest map.
TOKEN_STRIDES = STRIDES[1:]
PRIOR_WIDTH = 64


class SpatialPrior(nn.Module):
    """Convolutions see the image at strides 4, 8, 16 and 32; 1×1 convolutions bring each map to C channels."""

    def __init__(self, in_channels: int, dim: int, strides: Sequence[int]) -> None:
        super().__init__()
        width = PRIOR_WIDTH
        self.stem = nn.ModuleList(
            [
                ConvNormReLU(in_channels, width, 3, stride=2),
                ConvNormReLU(width, width, 3),
                ConvNormReLU(width, width, 3),
            ]
        )
        widths = (width, 2 * width, 4 * width, 4 * width)
        self.downs = nn.ModuleList(ConvNormReLU(before, after, 3, stride=2) for before, after in pairwise(widths))
        self.projections = nn.ModuleDict(
            {str(stride): nn.Conv2d(widths[STRIDES.index(stride)], dim, 1) for stride in strides}
        )

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        """(B, C, H, W), sides multiples of 32 → a map (B, dim, H/stride, W/stride) for each stride, finest first."""
        x = images_BCHW
        for conv in self.stem:
            x = conv(x)
        maps = [F.max_pool2d(x, 3, stride=2, padding=1)]
        for down in self.downs:
            maps.append(down(maps[-1]))
        by_stride = dict(zip(map(str, STRIDES), maps, strict=True))
        return [projection(by_stride[stride]) for stride, projection in self.projections.items()]


class Injector(nn.Module):
    """Tokens of the backbone read the side path; γ starts at 0, so that a trained backbone starts undisturbed."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(dim))
        self.norm_query = nn.LayerNorm(dim, eps=NORM_EPS)
        self.norm_source = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attention = DeformableAttention(dim, HEADS, len(TOKEN_STRIDES), POINTS)

    def forward(self, x_BHWC: Tensor, c_BSC: Tensor, places_N2: Tensor, grids: Grids) -> Tensor:
        """(B, H, W, C) and (B, S, C) → (B, H, W, C)."""
        query, source = self.norm_query(x_BHWC.flatten(1, 2)), self.norm_source(c_BSC)
        answer = self.attention(query, places_N2, source, grids)
        return x_BHWC + (self.gamma * answer).view(x_BHWC.shape)


class ConvMlp(nn.Module):
    """Linear, depthwise convolution on each grid of the side path by itself, exact GELU, Linear."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = dim // FFN_RATIO
        self.fc1 = nn.Linear(dim, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, c_BSC: Tensor, grids: Grids) -> Tensor:
        """(B, S, C) → (B, S, C)."""
        maps = [to_nhwc(self.depthwise(x)) for x in to_maps(self.fc1(c_BSC), grids)]
        return self.fc2(F.gelu(torch.cat([x.flatten(1, 2) for x in maps], dim=1)))


class Extractor(nn.Module):
    """The side path reads the backbone's tokens, then passes its ConvMlp."""

    def __init__(self, dim: int, drop_path: float) -> None:
        super().__init__()
        self.norm_query = nn.LayerNorm(dim, eps=NORM_EPS)
        self.norm_source = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attention = DeformableAttention(dim, HEADS, 1, POINTS)
        self.norm_mlp = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = ConvMlp(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, c_BSC: Tensor, x_BHWC: Tensor, places_S2: Tensor, grids: Grids) -> Tensor:
        """(B, S, C) and (B, H, W, C) → (B, S, C)."""
        source = self.norm_source(x_BHWC.flatten(1, 2))
        c = c_BSC + self.attention(self.norm_query(c_BSC), places_S2, source, [x_BHWC.shape[1:3]])
        return c + self.drop_path(self.mlp(self.norm_mlp(c), grids))


class Interaction(nn.Module):
    """The exchange around a quarter of the blocks: the injector runs before them, the extractors after them.

    The backbone calls the parts, because its blocks lie between them.
    """

    def __init__(self, dim: int, extractors: int, drop_path: float) -> None:
        super().__init__()
        self.injector = Injector(dim)
        self.extractors = nn.ModuleList(Extractor(dim, drop_path) for _ in range(extractors))


class Adapter(nn.Module):
    """Everything that the detection form adds to GPViT."""

    def __init__(self, in_channels: int, dim: int, strides: Sequence[int], drop_path: float) -> None:
        super().__init__()
        self.prior = SpatialPrior(in_channels, dim, strides)
        self.level_embedding = nn.Parameter(torch.zeros(len(TOKEN_STRIDES), dim))
        self.interactions = nn.ModuleList(Interaction(dim, count, drop_path) for count in EXTRACTORS)
        self.upsample = nn.ConvTranspose2d(dim, dim, 2, stride=2) if STRIDES[0] in strides else None
        self.norms = nn.ModuleDict({str(stride): nn.BatchNorm2d(dim) for stride in strides})

    def tokens(self, priors_BCHW: Sequence[Tensor]) -> tuple[Tensor, Grids]:
        """The maps of strides 8, 16 and 32 with their levels' embeddings, as (B, S, C), and their grids."""
        maps = priors_BCHW[-len(TOKEN_STRIDES) :]
        embedded = [to_nhwc(x).flatten(1, 2) + level for x, level in zip(maps, self.level_embedding, strict=True)]
        return torch.cat(embedded, dim=1), [(x.shape[2], x.shape[3]) for x in maps]

    def pyramid(self, x_BHWC: Tensor, c_BSC: Tensor, priors_BCHW: Sequence[Tensor], grids: Grids) -> list[Tensor]:
        """The side path's maps, each with the backbone's tokens resized to it added, normed: (B, C, H, W) each."""
        maps = to_maps(c_BSC, grids)
        if self.upsample is not None:
            maps = [self.upsample(maps[0]) + priors_BCHW[0], *maps]
        x_BCHW = to_nchw(x_BHWC)
        return [norm(c + _resize(x_BCHW, c)) for norm, c in zip(self.norms.values(), maps, strict=True)]

    def init_weights(self) -> None:
        """What differs from the backbone's rule: the level embedding and the attention; γ is 0."""
        nn.init.trunc_normal_(self.level_embedding, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.init_weights()


class AdaptedGPViT(GPViT):
    """GPViT's blocks between the interactions of an adapter; there is no final LN.

    Args:
        config: the variant; its `outputs` have no meaning here, and its `drop_path` bounds the adapter's 0.1, so that 0
            turns all of it off.
        finest: stride of the finest map, 4 or, as one-stage detectors want it, 8.

    Images whose sides are not multiples of 32 are padded at the bottom and the right with zeros, as detectors do with
    a batch, and the maps are cropped to ⌈H/stride⌉ × ⌈W/stride⌉.

    Raises:
        ValueError: the blocks cannot be cut in four, or `finest` is neither 4 nor 8.
    """

    def __init__(self, config: GPViTConfig, *, finest: Literal[4, 8] = 4) -> None:
        super().__init__(replace(config, outputs=()))
        if config.depth % INTERACTIONS:
            raise ValueError(f"depth={config.depth} must be a multiple of the adapter's {INTERACTIONS} interactions")
        if finest not in STRIDES[:2]:
            raise ValueError(f"finest={finest}: expected 4 or 8, the strides that the adapter can begin with")
        self.strides = STRIDES[STRIDES.index(finest) :]
        self.channels = (config.width,) * len(self.strides)
        drop_path = min(DROP_PATH, config.drop_path)
        self.adapter = Adapter(config.in_channels, config.width, self.strides, drop_path)

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        """See `Backbone`."""
        self.check(images_BCHW)
        height, width = images_BCHW.shape[-2:]
        padded = _pad(images_BCHW)
        x, priors = self.embed(padded), self.adapter.prior(padded)
        c, grids = self.adapter.tokens(priors)
        x, c = self._interact(x, c, grids)
        maps = self.adapter.pyramid(x, c, priors, grids)
        return [_crop(c, height, width, stride) for c, stride in zip(maps, self.strides, strict=True)]

    def _interact(self, x_BHWC: Tensor, c_BSC: Tensor, grids: Grids) -> tuple[Tensor, Tensor]:
        """Run all blocks, with the exchange around each quarter of them."""
        x, c = x_BHWC, c_BSC
        places_N2, places_S2 = places(grids[:1], x.device), places(grids, x.device)
        blocks = iter(self.blocks)
        for interaction in cast("list[Interaction]", self.adapter.interactions):
            x = self.run_block(interaction.injector, x, c, places_N2, grids)
            for _ in range(self.config.depth // INTERACTIONS):
                x = self.run_block(next(blocks), x)
            for extractor in interaction.extractors:
                c = self.run_block(extractor, c, x, places_S2, grids)
        return x, c

    def init_weights(self) -> None:
        """As GPViT; the adapter's convolutions at torch's default, its attention as the paper on it says."""
        super().init_weights()
        self.adapter.init_weights()

    def block_modules(self) -> list[nn.Module]:
        """GPViT's blocks, then injectors and extractors."""
        interactions = cast("list[Interaction]", self.adapter.interactions)
        exchange = [part for interaction in interactions for part in (interaction.injector, *interaction.extractors)]
        return [*super().block_modules(), *exchange]

    def no_decay_names(self) -> set[str]:
        """GPViT's, and the level embedding."""
        return {*super().no_decay_names(), "adapter.level_embedding"}

    def depth_of(self, name: str) -> int:
        """The adapter, which no published classifier has, goes with the last block."""
        return self.num_depths - 1 if name.startswith("adapter.") else super().depth_of(name)


def to_maps(c_BSC: Tensor, grids: Grids) -> list[Tensor]:
    """Tokens of several grids → one map (B, C, H, W) for each."""
    parts = c_BSC.split([rows * columns for rows, columns in grids], dim=1)
    return [to_nchw(part.unflatten(1, grid)) for part, grid in zip(parts, grids, strict=True)]


def _resize(x_BCHW: Tensor, like_BCHW: Tensor) -> Tensor:
    """Bilinear, no corner alignment, no antialias."""
    return resize_bilinear(x_BCHW, like_BCHW.shape[2], like_BCHW.shape[3])


def _pad(images_BCHW: Tensor) -> Tensor:
    rows, columns = windows.padding(images_BCHW.shape[2], images_BCHW.shape[3], STRIDES[-1])
    return images_BCHW if windows.is_sure(rows == 0, columns == 0) else F.pad(images_BCHW, (0, columns, 0, rows))


def _crop(map_BCHW: Tensor, height: int, width: int, stride: int) -> Tensor:
    return to_nchw(windows.crop(to_nhwc(map_BCHW), (height - 1) // stride + 1, (width - 1) // stride + 1))

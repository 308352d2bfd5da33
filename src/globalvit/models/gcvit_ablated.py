"""GC ViT with other designs in place of its own parts: what the paper's ablations compare.

Papers: GC ViT, arXiv 2206.09959; patch merging, patch embedding and shifted windows are Swin's, Liu et al., ICCV 2021,
arXiv 2103.14030. Where the GC ViT paper does not say how a part of its comparison is normed or padded, the norms of
the part it stands in for are kept, and grids are padded with zeros as in `models/gcvit.py`.

Legend: `B` images · `H W` grid · `C` channels · `M` windows an image · `N` tokens of a window · `h` heads ·
`d` channels a head.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from globalvit.models import windows
from globalvit.models.attention_maps import WindowMaps
from globalvit.models.gcvit import NORM_EPS, Block, FusedMBConv, GCViT, Stage, WindowAttention
from globalvit.models.layers import INIT_STD, to_nchw, to_nhwc
from globalvit.models.ops import position_bias
from globalvit.models.variants import GCViTConfig

PATCH = 4


class PatchStem(nn.Module):
    """Swin's patch embedding: a 4×4 convolution of stride 4 and an LN; sides are padded to multiples of 4."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(in_channels, dim, PATCH, stride=PATCH)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) → (B, ⌈H/4⌉, ⌈W/4⌉, width)."""
        rows, columns = windows.padding(images_BCHW.shape[2], images_BCHW.shape[3], PATCH)
        return self.norm(to_nhwc(self.projection(F.pad(images_BCHW, (0, columns, 0, rows)))))


class ConvPool(nn.Module):
    """LN, 3×3 convolution, 3×3 max-pool of stride 2, LN: the simplest downsampling of the paper's table 5."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.conv = nn.Conv2d(dim, out_dim, 3, padding=1, bias=False)
        self.norm2 = nn.LayerNorm(out_dim, eps=NORM_EPS)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) → (B, ⌈H/2⌉, ⌈W/2⌉, C')."""
        x = F.max_pool2d(self.conv(to_nchw(self.norm1(x_BHWC))), 3, stride=2, padding=1)
        return self.norm2(to_nhwc(x))


class PatchMerging(nn.Module):
    """Swin's downsampling: the channels of 2×2 neighbors side by side, LN, Linear; odd sides are padded."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=NORM_EPS)
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) → (B, ⌈H/2⌉, ⌈W/2⌉, C')."""
        x = windows.pad(x_BHWC, 2).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        return self.reduction(self.norm(x.transpose(2, 3).flatten(3)))


DOWNSAMPLES = {"conv_pool": ConvPool, "patch_merging": PatchMerging}


class NoQuery(nn.Module):
    """In the global query's place where no block asks for one."""

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) → no elements of B images."""
        return x_BHWC.new_empty(x_BHWC.shape[0], 0)


class LearnedQuery(nn.Module):
    """A global query that knows nothing of the image: learned tokens, one set for all images."""

    def __init__(self, dim: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.zeros(num_heads, window * window, dim // num_heads))

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) → (B, h, N, d)."""
        # Copies, as a view of a parameter without a gradient confuses torch's counter of operations.
        return self.tokens.repeat(x_BHWC.shape[0], 1, 1, 1)


class ShiftedWindowAttention(WindowAttention):
    """Local attention in windows shifted by half a side (Swin's section 3.2).

    The padded grid is rolled, so that as many windows remain; tokens that the rolling brings from opposite borders into
    one window do not see each other. An axis with a single window is not shifted.
    """

    has_maps = False

    def __init__(self, dim: int, num_heads: int, window: int) -> None:
        super().__init__(dim, num_heads, window, is_global=False)

    def forward(
        self,
        x_BHWC: Tensor,
        query_BhNd: Tensor,  # noqa: ARG002 - as other attention is called
        norm: nn.LayerNorm | None = None,
    ) -> Tensor:
        """(B, H, W, C) → (B, H, W, C)."""
        padded_BHWC = windows.pad(x_BHWC if norm is None else norm(x_BHWC), self.window)
        rows, columns = (self.window // 2 if side > self.window else 0 for side in padded_BHWC.shape[1:3])
        mask_MNN = shift_mask(padded_BHWC, self.window, rows, columns)
        qkv_BHWPC = self.qkv(padded_BHWC.roll((-rows, -columns), (1, 2))).unflatten(-1, (3, -1))
        cut = windows.partition(qkv_BHWPC, self.window, self.window, heads=self.bias_table.shape[1])
        q_BMhNd, k_BMhNd, v_BMhNd = cut.unbind(0)
        bias_hNN = position_bias(self.bias_table, self.window)
        bias_MhNN = bias_hNN.masked_fill(~mask_MNN.unsqueeze(1), float("-inf")).to(cut.dtype)
        out_BMhNd = F.scaled_dot_product_attention(q_BMhNd, k_BMhNd, v_BMhNd, attn_mask=bias_MhNN)
        out_BHWC = windows.merge(out_BMhNd, self.window, self.window, *padded_BHWC.shape[1:3])
        return self.proj(windows.crop(out_BHWC.roll((rows, columns), (1, 2)), *x_BHWC.shape[1:3]))

    def attention_maps(self, x_BHWC: Tensor, query_BhNd: Tensor) -> WindowMaps:  # noqa: ARG002 - as others are called
        """Refuse, because maps are laid over windows that tile the grid.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "this block attends in shifted windows, which have no maps; choose a block of even number, "
            "or --kind grad_cam"
        )


def shift_mask(padded_BHWC: Tensor, window: int, rows: int, columns: int) -> Tensor:
    """(M, N, N) bool: which tokens of a window see each other after rolling up by `rows` and left by `columns`."""
    _, H, W, _ = padded_BHWC.shape
    wrapped_H = torch.arange(H, device=padded_BHWC.device) >= H - rows
    wrapped_W = torch.arange(W, device=padded_BHWC.device) >= W - columns
    region_HW = 2 * wrapped_H[:, None] + wrapped_W[None, :]
    region_MN = windows.partition(region_HW[None, :, :, None, None], window, window, heads=1)[0, 0, :, 0, :, 0]
    return region_MN[:, :, None] == region_MN[:, None, :]


def _ablate_blocks(stage: Stage, dim: int, num_heads: int, window: int, ablation: tuple[str, ...]) -> None:
    """Replace what makes every second block a global one."""
    if "learned_query" in ablation:
        stage.register_module("global_query", LearnedQuery(dim, num_heads, window))
    if "local_only" not in ablation and "shifted" not in ablation:
        return
    stage.register_module("global_query", NoQuery())
    for block in cast("list[Block]", stage.blocks[1::2]):
        if "shifted" in ablation:
            block.attention = ShiftedWindowAttention(dim, num_heads, window)
        else:
            block.attention = WindowAttention(dim, num_heads, window, is_global=False)


def _ablate_downsample(stage: Stage, dim: int, ablation: tuple[str, ...]) -> None:
    for word in DOWNSAMPLES.keys() & set(ablation):
        stage.downsample = stage.downsample and DOWNSAMPLES[word](dim, 2 * dim)


class AblatedGCViT(GCViT):
    """GC ViT with some of its parts replaced.

    Args:
        config: as for `GCViT`.
        ablation: words of `models.ablations`, checked there.
    """

    def __init__(self, config: GCViTConfig, ablation: tuple[str, ...]) -> None:
        super().__init__(config)
        if "patch_stem" in ablation:
            self.stem = PatchStem(config.in_channels, config.width)
        for index, stage in enumerate(cast("list[Stage]", self.stages)):
            dim = config.channels[index]
            _ablate_blocks(stage, dim, config.num_heads[index], config.window[index], ablation)
            _ablate_downsample(stage, dim, ablation)
        if "no_squeeze_excite" in ablation:
            for branch in (module for module in self.modules() if isinstance(module, FusedMBConv)):
                branch.register_module("squeeze_excite", nn.Identity())

    def init_weights(self) -> None:
        """As `GCViT`; learned queries like bias tables."""
        super().init_weights()
        for query in self._learned_queries().values():
            nn.init.trunc_normal_(query.tokens, std=INIT_STD)

    def no_decay_names(self) -> set[str]:
        """The tables of position biases and the learned queries."""
        return super().no_decay_names() | {f"{name}.tokens" for name in self._learned_queries()}

    def _learned_queries(self) -> dict[str, LearnedQuery]:
        return {name: module for name, module in self.named_modules() if isinstance(module, LearnedQuery)}

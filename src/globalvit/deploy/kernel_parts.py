"""Parts of a deployed copy that the C kernels compute, each in one or two passes over the tokens.

Legend: `B` images · `H W` grid · `C` channels · `N` tokens · `G` group tokens · `h` heads · `d` channels a head.
"""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from globalvit.deploy.part import PreparedPart, folded, linear_of
from globalvit.kernels.cpu import attention
from globalvit.kernels.cpu.convolution import convolve, convolve_depthwise, pack_conv, taps_of
from globalvit.kernels.cpu.linear import Norm, Packed, chain, layer_norm, pack
from globalvit.models import gcvit, gpvit
from globalvit.models.layers import ConvNormReLU, Mlp, SqueezeExcite, to_nchw, to_nhwc


def norm_of(norm: nn.LayerNorm, *, is_folded: bool = False) -> Norm:
    """Return a layer norm as the kernels take it; a folded one has left its factors and offsets to the next layer."""
    factors, offsets = (
        None if parameter is None or is_folded else parameter.detach().float().clone()
        for parameter in (norm.weight, norm.bias)
    )
    if factors is not None and offsets is None:
        offsets = torch.zeros_like(factors)
    return Norm(factors=factors, offsets=offsets, eps=norm.eps)


def packed(linear: nn.Linear, *, has_gelu: bool = False) -> Packed:
    """Pack a Linear for tokens of its own dtype."""
    return pack(linear.weight, linear.bias, linear.weight.dtype, has_gelu=has_gelu)


class KernelNorm(PreparedPart):
    """A layer norm over the last axis.

    Args:
        norm: the original.
        may_overwrite: whether nobody else needs its inputs.
    """

    def __init__(self, norm: nn.LayerNorm, *, may_overwrite: bool = False) -> None:
        super().__init__(norm.weight.dtype)
        self.norm, self.may_overwrite = norm_of(norm), may_overwrite

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, C)."""
        self.check(x)
        return layer_norm(x, self.norm, may_overwrite=self.may_overwrite)


class KernelLinear(PreparedPart):
    """A Linear, with a norm before it or a residual after it in the same pass."""

    def __init__(self, linear: nn.Linear, norm: Norm | None = None) -> None:
        super().__init__(linear.weight.dtype)
        self.packed, self.norm = packed(linear), norm

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(…, C) → (…, K)."""
        self.check(x)
        return chain(x, self.packed, norm=self.norm, residual=residual)


class KernelMlp(PreparedPart):
    """The second half of a block in one pass: x plus the MLP, times a layer scale, of the normed x."""

    def __init__(self, norm: nn.LayerNorm, mlp: Mlp, scale: Tensor | None = None) -> None:
        super().__init__(mlp.fc1.weight.dtype)
        self.norm = norm_of(norm, is_folded=True)
        self.fc1, self.fc2 = packed(folded(mlp.fc1, norm=norm), has_gelu=True), packed(folded(mlp.fc2, scale=scale))

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, C). Writes over `x`."""
        return chain(x, self.fc1, self.fc2, norm=self.norm, residual=x, may_overwrite=True)


class KernelBlock(PreparedPart):
    """A block of GC ViT. No grid is padded."""

    def __init__(self, block: gcvit.Block) -> None:
        source = block.attention
        projection = source.kv if source.is_global else source.qkv
        super().__init__(projection.weight.dtype)
        self.projection = KernelLinear(projection, norm_of(block.norm1))
        self.proj = KernelLinear(folded(source.proj, scale=block.scale1))
        self.window, self.is_global = source.window, source.is_global
        self.table_Lh, self.outside_C = source.bias_table.detach(), projection.bias.detach()
        self.mlp = KernelMlp(block.norm2, block.mlp, block.scale2)

    def forward(self, x_BHWC: Tensor, query_BhNd: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, C)."""
        self.check(x_BHWC)
        query = query_BhNd if self.is_global else None
        out = attention.windows(self.projection(x_BHWC), self.table_Lh, self.window, query, self.outside_C)
        return self.mlp(self.proj(out, x_BHWC))


class KernelLocalBlock(PreparedPart):
    """A local block of GPViT. No grid is padded."""

    def __init__(self, block: gpvit.LocalBlock) -> None:
        source = block.attention
        super().__init__(source.qkv.weight.dtype)
        self.projection, self.proj = KernelLinear(source.qkv, norm_of(block.norm1)), KernelLinear(source.proj)
        self.stripe, self.heads, self.outside_C = source.stripe, source.heads, source.qkv.bias.detach()
        convs = (source.vertical, source.horizontal)
        parameters = tuple(parameter.detach() for conv in convs for parameter in conv.parameters())
        self.convs = cast("tuple[Tensor, Tensor, Tensor, Tensor]", parameters)
        self.mlp, self.depthwise = KernelMlp(block.norm2, block.mlp), KernelDepthwise(block.depthwise)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, C)."""
        self.check(x_BHWC)
        out = attention.stripes(self.projection(x_BHWC), self.convs, self.stripe, self.heads, self.outside_C)
        return to_nhwc(self.depthwise(to_nchw(self.mlp(self.proj(out, x_BHWC)))))


class KernelBranch(PreparedPart):
    """x plus GC ViT's convolutional branch of it, in two passes: the second multiplies by squeeze-excite's gates."""

    def __init__(self, branch: gcvit.FusedMBConv, *, may_overwrite: bool = False) -> None:
        weight = branch.pointwise.weight
        super().__init__(weight.dtype)
        self.may_overwrite = may_overwrite
        self.taps = taps_of(branch.depthwise)
        self.pointwise = packed(linear_of(weight.flatten(1), None, weight.dtype))
        self.reduce = self.expand = None
        if isinstance(branch.squeeze_excite, SqueezeExcite):
            self.reduce = packed(branch.squeeze_excite.reduce, has_gelu=True)
            self.expand = packed(branch.squeeze_excite.expand)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W), both channels-last in memory."""
        self.check(x_BCHW)
        x_BHWC = to_nhwc(x_BCHW)
        activated, means_BC = convolve_depthwise(x_BHWC, self.taps, "gelu")
        gates = None
        if self.reduce is not None:
            gates = chain(means_BC.to(x_BHWC.dtype), self.reduce, self.expand).float().sigmoid_()
        may_overwrite = self.may_overwrite
        return to_nchw(chain(activated, self.pointwise, gates=gates, residual=x_BHWC, may_overwrite=may_overwrite))


class KernelDownsample(PreparedPart):
    """GC ViT's downsampling: norm, branch, and the strided convolution with its norm in one pass.

    Args:
        downsample: the original.
        may_overwrite: whether nobody else needs its inputs, as in the stem.
    """

    def __init__(self, downsample: gcvit.Downsample, *, may_overwrite: bool = False) -> None:
        super().__init__(downsample.reduction.weight.dtype)
        self.norm1 = KernelNorm(downsample.norm1, may_overwrite=may_overwrite)
        self.branch = KernelBranch(downsample.branch, may_overwrite=True)
        self.reduction, self.norm2 = pack_conv(downsample.reduction), norm_of(downsample.norm2)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) → (B, ⌈H/2⌉, ⌈W/2⌉, C')."""
        self.check(x_BHWC)
        x_BHWC = to_nhwc(self.branch(to_nchw(self.norm1(x_BHWC))))
        return convolve(x_BHWC, self.reduction, self.norm2)


class KernelStem(PreparedPart):
    """GC ViT's stem: PyTorch's convolution of the image, then the downsampling."""

    def __init__(self, stem: gcvit.Stem) -> None:
        super().__init__(stem.conv.weight.dtype)
        self.conv, self.downsample = stem.conv, KernelDownsample(stem.downsample, may_overwrite=True)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) → (B, ⌈H/4⌉, ⌈W/4⌉, width)."""
        self.check(images_BCHW)
        return self.downsample(to_nhwc(self.conv(to_nchw(to_nhwc(images_BCHW).contiguous()))))


class KernelConv(PreparedPart):
    """A convolution of all channels, such as that of GPViT's patches."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv.weight.dtype)
        self.packed = pack_conv(conv)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H', W'), both channels-last in memory."""
        self.check(x_BCHW)
        return to_nchw(convolve(to_nhwc(x_BCHW), self.packed))


class KernelDepthwise(PreparedPart):
    """GPViT's depthwise convolution at the end of a block, with an activation after it."""

    def __init__(self, conv: nn.Conv2d, activation: str = "none") -> None:
        super().__init__(conv.weight.dtype)
        self.taps, self.activation = taps_of(conv), activation

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W), both channels-last in memory."""
        self.check(x_BCHW)
        return to_nchw(convolve_depthwise(to_nhwc(x_BCHW), self.taps, self.activation)[0])


class KernelGather(PreparedPart):
    """GPViT's groups collect from all tokens of an image."""

    def __init__(self, gather: gpvit.Gather) -> None:
        super().__init__(gather.key.weight.dtype)
        self.num_heads, self.key = gather.num_heads, KernelLinear(gather.key)
        self.norm_query, self.norm_key = KernelNorm(gather.norm_query), KernelNorm(gather.norm_key)

    def forward(self, groups_GC: Tensor, x_BNC: Tensor) -> Tensor:
        """(G, C) and (B, N, C) → (B, G, C)."""
        self.check(x_BNC)
        q_BGC, values_BNC = self.norm_query(groups_GC).expand(x_BNC.shape[0], -1, -1), self.norm_key(x_BNC)
        return attention.sequences(q_BGC, self.key(values_BNC), values_BNC, self.num_heads)


class KernelMix(PreparedPart):
    """The exchange between GPViT's groups."""

    def __init__(self, mix: gpvit.Mix) -> None:
        fc1, fc2 = (cast("nn.Linear", mix.tokens[name]) for name in ("fc1", "fc2"))
        super().__init__(fc1.weight.dtype)
        self.norm1, self.mlp = KernelNorm(mix.norm1), KernelMlp(mix.norm2, mix.channels)
        self.fc1, self.fc2 = packed(fc1, has_gelu=True), packed(fc2)

    def forward(self, x_BGC: Tensor) -> Tensor:
        """(B, G, C) → (B, G, C)."""
        self.check(x_BGC)
        mixed_BCG = chain(self.norm1(x_BGC).transpose(1, 2), self.fc1, self.fc2)
        return self.mlp(x_BGC + mixed_BCG.transpose(1, 2))


class KernelScatter(PreparedPart):
    """GPViT's tokens take from the groups. The Linear after attention is folded into the one that merges."""

    def __init__(self, scatter: gpvit.Scatter) -> None:
        super().__init__(scatter.merge.weight.dtype)
        self.num_heads, self.norm_key = scatter.num_heads, KernelNorm(scatter.norm_key)
        norm = norm_of(scatter.norm_query, is_folded=True)
        self.query = KernelLinear(folded(scatter.query, norm=scatter.norm_query), norm)
        self.key, self.value = KernelLinear(scatter.key), KernelLinear(scatter.value)
        self.merge_tokens, self.merge_answers = (KernelLinear(linear) for linear in _merging(scatter))
        self.mlp = KernelMlp(scatter.norm2, scatter.mlp)

    def forward(self, x_BNC: Tensor, groups_BGC: Tensor) -> Tensor:
        """(B, N, C) and (B, G, C) → (B, N, C)."""
        self.check(x_BNC)
        groups = self.norm_key(groups_BGC)
        answers = attention.sequences(self.query(x_BNC), self.key(groups), self.value(groups), self.num_heads)
        return self.mlp(self.merge_tokens(x_BNC, self.merge_answers(answers)))


class KernelConvReLU(KernelDepthwise):
    """A depthwise convolution with its batch norm folded in, and ReLU."""

    def __init__(self, layer: ConvNormReLU) -> None:
        super().__init__(nn.utils.fuse_conv_bn_eval(layer.conv, layer.norm), "relu")


def _merging(scatter: gpvit.Scatter) -> Iterator[nn.Linear]:
    """Yield two Linears, of x and of the answers, whose sum is merge([x, proj(answers)])."""
    dim, dtype = scatter.proj.out_features, scatter.merge.weight.dtype
    of_tokens, of_answers = scatter.merge.weight.double().split(dim, dim=1)
    yield linear_of(of_tokens, None, dtype)
    bias = scatter.merge.bias.double() + of_answers @ scatter.proj.bias.double()
    yield linear_of(of_answers @ scatter.proj.weight.double(), bias, dtype)

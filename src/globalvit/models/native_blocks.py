"""Parts of a deployed network that the compiled library computes, each in one or two passes over the tokens.

Legend: `B` images · `H W` grid · `C` channels · `N` tokens · `G` group tokens · `h` heads · `d` channels a head.
"""

from collections.abc import Iterator
from typing import cast

from torch import Tensor, nn

from globalvit.kernels.native import convolution, dense, depthwise, operators, sequences
from globalvit.models.gcvit import Block, Downsample, FusedMBConv, SqueezeExcite, WindowAttention
from globalvit.models.gpvit import Gather, LocalBlock, Mix, Scatter, StripeAttention
from globalvit.models.layers import Mlp, to_nchw, to_nhwc


def norm_of(norm: nn.LayerNorm) -> dense.Norm:
    """The numbers of a layer norm in float32; copies, as everything that a deployed network holds."""
    factors, offsets = (
        None if parameter is None else parameter.detach().float().clone() for parameter in (norm.weight, norm.bias)
    )
    return dense.Norm(factors=factors, offsets=offsets, eps=norm.eps)


class NativeNorm(nn.Module):
    """A layer norm over the last axis, float32 inside."""

    def __init__(self, norm: nn.LayerNorm, *, may_overwrite: bool = False) -> None:
        super().__init__()
        self.norm, self.may_overwrite = norm_of(norm), may_overwrite

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, C)."""
        return dense.layer_norm(x, self.norm, may_overwrite=self.may_overwrite)


class NativeLinear(nn.Module):
    """A Linear, with a layer norm before it or a residual sum after it in the same pass."""

    def __init__(self, linear: nn.Linear, norm: nn.LayerNorm | None = None) -> None:
        super().__init__()
        self.packed = dense.pack(linear)
        self.norm = None if norm is None else norm_of(norm)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(…, C) → (…, C')."""
        return dense.linears(x, self.packed, norm=self.norm, residual=residual)


class NativeMlp(nn.Module):
    """The second half of a block in one pass: x plus the MLP of the normed x."""

    def __init__(self, norm: nn.LayerNorm, mlp: Mlp) -> None:
        super().__init__()
        self.norm = norm_of(norm)
        self.fc1, self.fc2 = dense.pack(mlp.fc1, has_gelu=True), dense.pack(mlp.fc2)

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, C). Writes over `x`."""
        return dense.linears(x, self.fc1, self.fc2, norm=self.norm, residual=x, may_overwrite=True)


class NativeWindowAttention(nn.Module):
    """The first half of a GC ViT block: x plus the attention of the normed x, no grid padded."""

    def __init__(self, norm: nn.LayerNorm, attention: WindowAttention) -> None:
        super().__init__()
        projection = attention.kv if attention.is_global else attention.qkv
        self.projection, self.proj = NativeLinear(projection, norm), NativeLinear(attention.proj)
        self.window, self.is_global = attention.window, attention.is_global
        self.bias_table, self.outside_C = attention.bias_table, projection.bias

    def forward(self, x_BHWC: Tensor, query_BhNd: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, C)."""
        query = query_BhNd if self.is_global else None
        out = operators.windows(self.projection(x_BHWC), self.bias_table, self.window, query, self.outside_C)
        return self.proj(out, x_BHWC)


class NativeStripeAttention(nn.Module):
    """The first half of a local GPViT block: x plus the attention of the normed x, no grid padded."""

    def __init__(self, norm: nn.LayerNorm, attention: StripeAttention) -> None:
        super().__init__()
        self.projection, self.proj = NativeLinear(attention.qkv, norm), NativeLinear(attention.proj)
        self.vertical, self.horizontal = attention.vertical, attention.horizontal
        self.stripe, self.heads, self.outside_C = attention.stripe, attention.heads, attention.qkv.bias

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, C)."""
        qkv_BHWC = self.projection(x_BHWC)
        convs = (self.vertical, self.horizontal)
        return self.proj(operators.stripes(qkv_BHWC, *convs, self.stripe, self.heads, self.outside_C), x_BHWC)


class NativeConvBranch(nn.Module):
    """x plus GC ViT's convolutional branch of it, in two passes: what squeeze-excite makes are gates of the second."""

    def __init__(self, branch: FusedMBConv, *, may_overwrite: bool = False) -> None:
        super().__init__()
        self.may_overwrite = may_overwrite
        self.taps, self.pointwise = depthwise.taps_of(branch.depthwise), NativeLinear(as_linear(branch.pointwise))
        self.reduce = self.expand = None
        if isinstance(branch.squeeze_excite, SqueezeExcite):
            self.reduce = dense.pack(branch.squeeze_excite.reduce, has_gelu=True)
            self.expand = dense.pack(branch.squeeze_excite.expand)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W), both channels-last in memory."""
        x_BHWC = to_nhwc(x_BCHW)
        activated_BHWC, means_BC = depthwise.depthwise(x_BHWC, self.taps, "gelu")
        gates_BC = None
        if self.reduce is not None:
            gates_BC = dense.linears(means_BC.to(x_BHWC.dtype), self.reduce, self.expand).float().sigmoid_()
        packed, may_overwrite = self.pointwise.packed, self.may_overwrite
        return to_nchw(
            dense.linears(activated_BHWC, packed, gates=gates_BC, residual=x_BHWC, may_overwrite=may_overwrite)
        )


def as_linear(pointwise: nn.Conv2d) -> nn.Linear:
    """A 1×1 convolution without bias as the Linear that it is on the last axis."""
    outputs, inputs, _, _ = pointwise.weight.shape
    linear = nn.Linear(inputs, outputs, bias=False, dtype=pointwise.weight.dtype)
    linear.weight.copy_(pointwise.weight[:, :, 0, 0])
    return linear


class NativeDownsample(nn.Module):
    """GC ViT's downsampling: norm, branch, and the strided convolution with its norm in one pass.

    Args:
        downsample: what it takes the place of.
        may_overwrite: whether nobody else needs what goes in, as in the stem.
    """

    def __init__(self, downsample: Downsample, *, may_overwrite: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = NativeNorm(downsample.norm1, may_overwrite=may_overwrite), norm_of(downsample.norm2)
        self.branch = NativeConvBranch(downsample.branch, may_overwrite=True)
        self.reduction = convolution.pack(downsample.reduction)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) → (B, ⌈H/2⌉, ⌈W/2⌉, C')."""
        x_BHWC = to_nhwc(self.branch(to_nchw(self.norm1(x_BHWC))))
        return convolution.convolve(x_BHWC, self.reduction, self.norm2)


class NativeConvolution(nn.Module):
    """A convolution of all channels, such as that of GPViT's patches."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.packed = convolution.pack(conv)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H', W'), both channels-last in memory."""
        return to_nchw(convolution.convolve(to_nhwc(x_BCHW), self.packed))


class NativeDepthwise(nn.Module):
    """GPViT's depthwise convolution at the end of a block, or with what a batch norm left behind and a ReLU."""

    def __init__(self, conv: nn.Conv2d, activation: str = "none") -> None:
        super().__init__()
        self.taps, self.activation = depthwise.taps_of(conv), activation

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W), both channels-last in memory."""
        return to_nchw(depthwise.depthwise(to_nhwc(x_BCHW), self.taps, self.activation)[0])


HALVES: dict[type, type] = {WindowAttention: NativeWindowAttention, StripeAttention: NativeStripeAttention}


def is_known(block: nn.Module) -> bool:
    """Whether the library computes the whole block: its attention is a published one and free to choose."""
    attention = getattr(block, "attention", None)
    return type(attention) in HALVES and getattr(attention, "implementation", None) in ("auto", "native")


class NativeBlock(nn.Module):
    """A block of either network."""

    def __init__(self, block: Block | LocalBlock) -> None:
        super().__init__()
        self.attention = HALVES[type(block.attention)](block.norm1, block.attention)
        self.mlp = NativeMlp(block.norm2, block.mlp)
        self.depthwise = NativeDepthwise(block.depthwise) if isinstance(block, LocalBlock) else None

    def forward(self, x_BHWC: Tensor, *query: Tensor) -> Tensor:
        """(B, H, W, C), and the query of GC ViT's blocks → (B, H, W, C)."""
        x = self.mlp(self.attention(x_BHWC, *query))
        return x if self.depthwise is None else to_nhwc(self.depthwise(to_nchw(x)))


class NativeGather(nn.Module):
    """What GPViT's groups collect from all tokens of an image."""

    def __init__(self, gather: Gather) -> None:
        super().__init__()
        self.num_heads, self.key = gather.num_heads, NativeLinear(gather.key)
        self.norm_query, self.norm_key = NativeNorm(gather.norm_query), NativeNorm(gather.norm_key)

    def forward(self, groups_GC: Tensor, x_BNC: Tensor) -> Tensor:
        """(G, C) and (B, N, C) → (B, G, C)."""
        q_BGC, values_BNC = self.norm_query(groups_GC).expand(x_BNC.shape[0], -1, -1), self.norm_key(x_BNC)
        return sequences.attention(q_BGC, self.key(values_BNC), values_BNC, self.num_heads)


class NativeMix(nn.Module):
    """The exchange between GPViT's groups."""

    def __init__(self, mix: Mix) -> None:
        super().__init__()
        self.norm1, self.mlp = NativeNorm(mix.norm1), NativeMlp(mix.norm2, mix.channels)
        fc1, fc2 = (cast("nn.Linear", mix.tokens[name]) for name in ("fc1", "fc2"))
        self.fc1, self.fc2 = dense.pack(fc1, has_gelu=True), dense.pack(fc2)

    def forward(self, x_BGC: Tensor) -> Tensor:
        """(B, G, C) → (B, G, C)."""
        mixed_BCG = dense.linears(self.norm1(x_BGC).transpose(1, 2), self.fc1, self.fc2)
        return self.mlp(x_BGC + mixed_BCG.transpose(1, 2))


class NativeScatter(nn.Module):
    """What GPViT's tokens take from the groups. The Linear after attention is part of the one that merges by now."""

    def __init__(self, scatter: Scatter) -> None:
        super().__init__()
        self.num_heads, self.norm_key = scatter.num_heads, NativeNorm(scatter.norm_key)
        self.query = NativeLinear(scatter.query, scatter.norm_query)
        self.key, self.value = NativeLinear(scatter.key), NativeLinear(scatter.value)
        self.merge_tokens, self.merge_answers = (NativeLinear(linear) for linear in _merging(scatter))
        self.mlp = NativeMlp(scatter.norm2, scatter.mlp)

    def forward(self, x_BNC: Tensor, groups_BGC: Tensor) -> Tensor:
        """(B, N, C) and (B, G, C) → (B, N, C)."""
        groups = self.norm_key(groups_BGC)
        answers_BNC = sequences.attention(self.query(x_BNC), self.key(groups), self.value(groups), self.num_heads)
        return self.mlp(self.merge_tokens(x_BNC, self.merge_answers(answers_BNC)))


def _merging(scatter: Scatter) -> Iterator[nn.Linear]:
    """merge([x, proj(answers)]) as the sum of a Linear of x and a Linear of the answers."""
    dim, dtype = scatter.proj.out_features, scatter.merge.weight.dtype
    of_tokens, of_answers = scatter.merge.weight.double().split(dim, dim=1)
    bias = scatter.merge.bias.double() + of_answers @ scatter.proj.bias.double()
    for weight, offset in ((of_tokens, None), (of_answers @ scatter.proj.weight.double(), bias)):
        linear = nn.Linear(dim, dim, bias=offset is not None, device=weight.device, dtype=dtype)
        linear.weight.copy_(weight)
        if offset is not None:
            linear.bias.copy_(offset)
        yield linear

"""GC ViT in Keras: layer by layer what `globalvit.models.gcvit` has, under the same names.

Paper: Hatamizadeh et al., ICML 2023, arXiv 2206.09959.

Legend: `B` images · `H W` grid · `C` channels · `N` tokens of a window · `h` heads · `d` channels a head.
"""

from typing import Any

import keras

from globalvit.keras import windows
from globalvit.keras.attention import position_bias, window_attention
from globalvit.keras.layers import (
    DropPath,
    HostNormal,
    Mlp,
    Part,
    Shape,
    any_grid,
    gelu,
    register,
    resize_bicubic,
    strided,
)
from globalvit.keras.untyped import ops

NORM_EPS = 1e-5
SQUEEZE = 4
QUERY_BLOCKS = (3, 2, 1, 1)


@register("GCViTSqueezeExcite")
class SqueezeExcite(Part):
    """Scale each channel by a gate computed from all channels' means (arXiv 1709.01507)."""

    arguments = ("dim",)

    def __init__(self, dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dim = dim
        self.reduce = self._linear("reduce", dim // SQUEEZE, bias=False)
        self.expand = self._linear("expand", dim, bias=False)

    def build(self, input_shape: Shape) -> None:
        """Make the variables for (B, H, W, C)."""
        self.reduce.build((input_shape[0], self.dim))
        self.expand.build((input_shape[0], self.dim // SQUEEZE))

    def call(self, x_BHWC: Any) -> Any:
        """(B, H, W, C) → (B, H, W, C)."""
        gate_BC = ops.sigmoid(self.expand(gelu(self.reduce(ops.mean(x_BHWC, (1, 2))))))
        return x_BHWC * gate_BC[:, None, None, :]


@register("GCViTFusedMBConv")
class FusedMBConv(Part):
    """The paper's convolutional branch (equation 2): depthwise 3×3, GELU, squeeze-excite, 1×1."""

    arguments = ("dim",)

    def __init__(self, dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dim = dim
        self.depthwise = self._depthwise("depthwise")
        self.squeeze_excite = SqueezeExcite(dim, name="squeeze_excite", dtype=self.dtype_policy)
        self.pointwise = self._conv("pointwise", dim, 1)

    def build(self, input_shape: Shape) -> None:
        """Make the variables for (B, H, W, C)."""
        for layer in (self.depthwise, self.squeeze_excite, self.pointwise):
            layer.build(input_shape)

    def call(self, x_BHWC: Any) -> Any:
        """(B, H, W, C) → (B, H, W, C), without the residual."""
        return self.pointwise(self.squeeze_excite(gelu(self.depthwise(x_BHWC))))


@register("GCViTDownsample")
class Downsample(Part):
    """Halve the grid, rounding up (section 2.2): LN, residual branch on the normed map, strided convolution, LN."""

    arguments = ("dim", "out_dim")

    def __init__(self, dim: int, out_dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dim, self.out_dim = dim, out_dim
        self.norm1 = self._norm("norm1", NORM_EPS)
        self.branch = FusedMBConv(dim, name="branch", dtype=self.dtype_policy)
        self.reduction = self._conv("reduction", out_dim, 3, stride=2)
        self.norm2 = self._norm("norm2", NORM_EPS)

    def build(self, input_shape: Shape) -> None:
        """Make the variables for (B, H, W, C)."""
        self.norm1.build(input_shape)
        self.branch.build(input_shape)
        self.reduction.build(any_grid(self.dim))
        self.norm2.build(self.compute_output_shape(input_shape))

    def call(self, x_BHWC: Any) -> Any:
        """(B, H, W, C) → (B, ⌈H/2⌉, ⌈W/2⌉, C')."""
        x = self.norm1(x_BHWC)
        return self.norm2(self.reduction(windows.border(x + self.branch(x), 1)))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """(B, ⌈H/2⌉, ⌈W/2⌉, C')."""
        return strided(input_shape, 2, self.out_dim)


@register("GCViTStem")
class Stem(Part):
    """Images to the first stage's grid of stride 4: a strided convolution and a downsample that keeps the width."""

    arguments = ("dim",)

    def __init__(self, dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dim = dim
        self.conv = self._conv("conv", dim, 3, stride=2, bias=True)
        self.downsample = Downsample(dim, dim, name="downsample", dtype=self.dtype_policy)

    def build(self, input_shape: Shape) -> None:
        """Make the variables for images (B, H, W, C)."""
        self.conv.build(any_grid(input_shape[-1]))
        self.downsample.build(strided(input_shape, 2, self.dim))

    def call(self, images_BHWC: Any) -> Any:
        """(B, H, W, C) → (B, ⌈H/4⌉, ⌈W/4⌉, width)."""
        return self.downsample(self.conv(windows.border(images_BHWC, 1)))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """(B, ⌈H/4⌉, ⌈W/4⌉, width)."""
        return strided(input_shape, 4, self.dim)


@register("GCViTGlobalQuery")
class GlobalQuery(Part):
    """Pool a stage's whole input map into the queries of one window (section 2.1, equation 1)."""

    arguments = ("dim", "num_heads", "window", "num_blocks", "pools")

    def __init__(self, dim: int, num_heads: int, window: int, num_blocks: int, pools: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dim, self.num_heads, self.window = dim, num_heads, window
        self.num_blocks, self.pools = num_blocks, pools
        self.blocks = [FusedMBConv(dim, name=f"blocks_{index}", dtype=self.dtype_policy) for index in range(num_blocks)]

    def build(self, input_shape: Shape) -> None:
        """Make the variables for (B, H, W, C)."""
        for block in self.blocks:
            block.build(input_shape)

    def call(self, x_BHWC: Any) -> Any:
        """(B, H, W, C) → (B, h, N, d)."""
        x = x_BHWC
        for index, block in enumerate(self.blocks):
            x = x + block(x)
            if index < self.pools:
                x = _max_pool(x)
        if not windows.is_grid(x, self.window, self.window):
            x = resize_bicubic(x, self.window, self.window)
        x_BNhd = ops.reshape(x, (-1, self.window**2, self.num_heads, self.dim // self.num_heads))
        return ops.transpose(x_BNhd, (0, 2, 1, 3))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """(B, h, N, d)."""
        return (input_shape[0], self.num_heads, self.window**2, self.dim // self.num_heads)


def _max_pool(x_BHWC: Any) -> Any:
    """3×3, stride 2, one step of padding on every side."""
    surrounded = windows.border(x_BHWC, 1, float("-inf"))
    return ops.max_pool(surrounded, 3, strides=2, padding="valid", data_format="channels_last")


@register("GCViTWindowAttention")
class WindowAttention(Part):
    """Attention inside windows: local (own queries) or global (the image's pooled queries), section 2.1."""

    arguments = ("dim", "num_heads", "window", "is_global")

    def __init__(self, dim: int, num_heads: int, window: int, is_global: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dim, self.num_heads, self.window, self.is_global = dim, num_heads, window, is_global
        if is_global:
            self.kv = self._linear("kv", 2 * dim)
        else:
            self.qkv = self._linear("qkv", 3 * dim)
        self.proj = self._linear("proj", dim)

    def build(self, input_shape: Shape) -> None:
        """Make the variables for (B, H, W, C)."""
        rows = (2 * self.window - 1) ** 2
        self.bias_table = self.add_weight(shape=(rows, self.num_heads), initializer=HostNormal(), name="bias_table")
        for layer in (self._projection, self.proj):
            layer.build(input_shape)

    @property
    def _projection(self) -> Any:
        return self.kv if self.is_global else self.qkv

    def call(self, x_BHWC: Any, query_BhNd: Any = None) -> Any:
        """(B, H, W, C) → (B, H, W, C). Padded tokens are attended to like others: released detectors need it."""
        out_BHWC = window_attention(
            self._projection(windows.pad(x_BHWC, self.window)),
            position_bias(self.bias_table, self.window),
            window=self.window,
            query_BhNd=query_BhNd,
        )
        return self.proj(windows.crop(out_BHWC, *windows.sides(x_BHWC)))


@register("GCViTBlock")
class Block(Part):
    """Norm, attention, norm, MLP, with residuals, drop path and, in the wider variants, layer scale."""

    arguments = ("dim", "num_heads", "window", "mlp_ratio", "layer_scale", "drop_path_rate", "is_global")

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: int,
        mlp_ratio: float,
        layer_scale: float | None,
        drop_path_rate: float,
        is_global: bool,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.dim, self.num_heads, self.window, self.mlp_ratio = dim, num_heads, window, mlp_ratio
        self.layer_scale, self.drop_path_rate, self.is_global = layer_scale, drop_path_rate, is_global
        self.norm1 = self._norm("norm1", NORM_EPS)
        self.attention = WindowAttention(dim, num_heads, window, is_global, name="attention", dtype=self.dtype_policy)
        self.norm2 = self._norm("norm2", NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), name="mlp", dtype=self.dtype_policy)
        self.drop_path = DropPath(drop_path_rate, name="drop_path", dtype=self.dtype_policy)
        self.scale1 = self.scale2 = None

    def build(self, input_shape: Shape) -> None:
        """Make the variables for (B, H, W, C)."""
        if self.layer_scale is not None:
            self.scale1 = self._scale("scale1", self.layer_scale)
            self.scale2 = self._scale("scale2", self.layer_scale)
        for layer in (self.norm1, self.attention, self.norm2, self.mlp, self.drop_path):
            layer.build(input_shape)

    def _scale(self, name: str, value: float) -> Any:
        return self.add_weight(shape=(self.dim,), initializer=keras.initializers.Constant(value), name=name)

    def call(self, x_BHWC: Any, query_BhNd: Any = None) -> Any:
        """(B, H, W, C) → (B, H, W, C); a global block gets its image's query (B, h, N, d)."""
        x = x_BHWC
        x = x + self.drop_path(_scaled(self.attention(self.norm1(x), query_BhNd), self.scale1))
        return x + self.drop_path(_scaled(self.mlp(self.norm2(x)), self.scale2))


def _scaled(x: Any, scale: Any) -> Any:
    return x if scale is None else x * scale

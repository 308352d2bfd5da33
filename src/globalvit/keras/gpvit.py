"""GPViT in Keras: layer by layer what `globalvit.models.gpvit` has, under the same names.

Paper: Yang et al., ICLR 2023, arXiv 2212.06795.

Legend: `B` images · `H W` grid · `C` channels · `N` tokens of a grid · `G` group tokens.
"""

from typing import Any

from globalvit.keras import windows
from globalvit.keras.attention import attention, stripe_attention
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
    with_channels,
)
from globalvit.keras.untyped import layers, ops

LOCAL_EPS = 1e-6
GROUP_EPS = 1e-5
BATCH_EPS = 1e-5
# Keras counts what stays of the running means, PyTorch what is replaced (0.1).
MOMENTUM = 0.9
STEM_WIDTH = 64
POSITION_GRID = 28
PATCH = 4


@register("GPViTConvNormReLU")
class ConvNormReLU(Part):
    """Convolution without bias, batch norm, ReLU."""

    arguments = ("channels", "kernel", "stride", "is_depthwise")

    def __init__(self, channels: int, kernel: int, stride: int = 1, is_depthwise: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.channels, self.kernel, self.stride, self.is_depthwise = channels, kernel, stride, is_depthwise
        if is_depthwise:
            self.conv = self._depthwise("conv")
        else:
            self.conv = self._conv("conv", channels, kernel, stride=stride)
        self.norm = layers.BatchNormalization(
            name="norm", dtype=self.dtype_policy, momentum=MOMENTUM, epsilon=BATCH_EPS
        )

    def build(self, input_shape: Shape) -> None:
        """Make the variables for (B, H, W, C)."""
        self.conv.build(any_grid(input_shape[-1]))
        self.norm.build(self.compute_output_shape(input_shape))

    def call(self, x_BHWC: Any) -> Any:
        """(B, H, W, C) → (B, ⌈H/stride⌉, ⌈W/stride⌉, C')."""
        padded = x_BHWC if self.is_depthwise else windows.border(x_BHWC, self.kernel // 2)
        return ops.relu(self.norm(self.conv(padded)))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """(B, ⌈H/stride⌉, ⌈W/stride⌉, C')."""
        return strided(input_shape, self.stride, self.channels)


@register("GPViTStem")
class Stem(Part):
    """Images to tokens of stride 8: a strided convolution, more at stride 2 in wide variants, 4×4 patches."""

    arguments = ("num_convs", "dim")

    def __init__(self, num_convs: int, dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_convs, self.dim = num_convs, dim
        sizes = [(7, 2), *((3, 1) for _ in range(num_convs))]
        self.convs = [
            ConvNormReLU(STEM_WIDTH, kernel, stride, name=f"convs_{index}", dtype=self.dtype_policy)
            for index, (kernel, stride) in enumerate(sizes)
        ]
        self.projection = self._conv("projection", dim, PATCH, stride=PATCH, bias=True)

    def build(self, input_shape: Shape) -> None:
        """Make the variables for images (B, H, W, C)."""
        shape = input_shape
        for conv in self.convs:
            conv.build(shape)
            shape = conv.compute_output_shape(shape)
        self.projection.build(any_grid(STEM_WIDTH))

    def call(self, images_BHWC: Any) -> Any:
        """(B, H, W, C) → (B, ⌈H/8⌉, ⌈W/8⌉, dim); patches over the border see zeros."""
        x = images_BHWC
        for conv in self.convs:
            x = conv(x)
        return self.projection(windows.pad(x, PATCH))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """(B, ⌈H/8⌉, ⌈W/8⌉, dim)."""
        return strided(input_shape, 2 * PATCH, self.dim)


@register("GPViTPositionEmbedding")
class PositionEmbedding(Part):
    """Add the learned embedding of a 28×28 grid, resized where the grid is another."""

    def build(self, input_shape: Shape) -> None:
        """Make the embedding; in float32 whatever the policy, since it may be resized."""
        self.table = self.add_weight(
            shape=(POSITION_GRID, POSITION_GRID, input_shape[-1]),
            initializer=HostNormal(),
            name="table",
            autocast=False,
        )

    def call(self, x_BHWC: Any) -> Any:
        """(B, H, W, C) → (B, H, W, C)."""
        positions = ops.convert_to_tensor(self.table)[None]
        if not windows.is_grid(x_BHWC, POSITION_GRID, POSITION_GRID):
            positions = resize_bicubic(positions, *windows.sides(x_BHWC))
        return x_BHWC + ops.cast(positions, x_BHWC.dtype)


@register("GPViTStripeAttention")
class StripeAttention(Part):
    """Attention in vertical stripes by the first half of the channels, in horizontal ones by the second (figure 3)."""

    arguments = ("dim", "num_heads", "stripe")

    def __init__(self, dim: int, num_heads: int, stripe: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dim, self.num_heads, self.stripe = dim, num_heads, stripe
        self.qkv = self._linear("qkv", 3 * dim)
        self.vertical = self._depthwise("vertical", bias=True)
        self.horizontal = self._depthwise("horizontal", bias=True)
        self.proj = self._linear("proj", dim)

    def build(self, input_shape: Shape) -> None:
        """Make the variables for (B, H, W, C)."""
        for layer in (self.qkv, self.proj):
            layer.build(input_shape)
        for layer in (self.vertical, self.horizontal):
            layer.build(any_grid(self.dim // 2))

    def call(self, x_BHWC: Any) -> Any:
        """(B, H, W, C) → (B, H, W, C); grids that stripes do not divide are padded inside."""
        padded_BHWC = windows.pad(x_BHWC, self.stripe)
        rows, columns = windows.sides(padded_BHWC)
        qkv = ops.reshape(self.qkv(padded_BHWC), (-1, rows, columns, 3, 2, self.dim // 2))
        heads = self.num_heads // 2
        vertical = stripe_attention(qkv[:, :, :, :, 0], self.vertical, rows=rows, columns=self.stripe, heads=heads)
        horizontal = stripe_attention(
            qkv[:, :, :, :, 1], self.horizontal, rows=self.stripe, columns=columns, heads=heads
        )
        out = ops.concatenate([vertical, horizontal], axis=-1)
        return self.proj(windows.crop(out, *windows.sides(x_BHWC)))


@register("GPViTLocalBlock")
class LocalBlock(Part):
    """Stripe attention and an MLP with residuals, then a depthwise convolution that replaces the tokens."""

    arguments = ("dim", "num_heads", "stripe", "mlp_ratio", "drop_path_rate")

    def __init__(
        self, dim: int, num_heads: int, stripe: int, mlp_ratio: float, drop_path_rate: float, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.dim, self.num_heads, self.stripe = dim, num_heads, stripe
        self.mlp_ratio, self.drop_path_rate = mlp_ratio, drop_path_rate
        self.norm1 = self._norm("norm1", LOCAL_EPS)
        self.attention = StripeAttention(dim, num_heads, stripe, name="attention", dtype=self.dtype_policy)
        self.norm2 = self._norm("norm2", LOCAL_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), name="mlp", dtype=self.dtype_policy)
        self.depthwise = self._depthwise("depthwise")
        self.drop_path = DropPath(drop_path_rate, name="drop_path", dtype=self.dtype_policy)

    def build(self, input_shape: Shape) -> None:
        """Make the variables for (B, H, W, C)."""
        for layer in (self.norm1, self.attention, self.norm2, self.mlp, self.depthwise, self.drop_path):
            layer.build(input_shape)

    def call(self, x_BHWC: Any) -> Any:
        """(B, H, W, C) → (B, H, W, C)."""
        x = x_BHWC + self.drop_path(self.attention(self.norm1(x_BHWC)))
        return self.depthwise(x + self.drop_path(self.mlp(self.norm2(x))))


@register("GPViTGather")
class Gather(Part):
    """Learned group tokens collect from all tokens of an image (section 3.2): keys are projected, values are not."""

    arguments = ("dim", "num_heads")

    def __init__(self, dim: int, num_heads: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dim, self.num_heads = dim, num_heads
        self.norm_query = self._norm("norm_query", GROUP_EPS)
        self.norm_key = self._norm("norm_key", GROUP_EPS)
        self.key = self._linear("key", dim)

    def build(self, input_shape: Shape) -> None:
        """Make the variables for tokens (B, N, C)."""
        for layer in (self.norm_query, self.norm_key, self.key):
            layer.build(input_shape)

    def call(self, groups_1GC: Any, x_BNC: Any) -> Any:
        """(1, G, C) and (B, N, C) → (B, G, C)."""
        values_BNC = self.norm_key(x_BNC)
        return attention(self.norm_query(groups_1GC), self.key(values_BNC), values_BNC, self.num_heads)


@register("GPViTTokenMlp")
class TokenMlp(Part):
    """Linear, exact GELU, Linear, on the axis of the tokens."""

    arguments = ("tokens", "hidden")

    def __init__(self, tokens: int, hidden: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tokens, self.hidden = tokens, hidden
        self.fc1 = self._linear("fc1", hidden)
        self.fc2 = self._linear("fc2", tokens)

    def build(self, input_shape: Shape) -> None:
        """Make the variables for (B, G, C)."""
        turned = (input_shape[0], input_shape[2], input_shape[1])
        self.fc1.build(turned)
        self.fc2.build(with_channels(turned, self.hidden))

    def call(self, x_BGC: Any) -> Any:
        """(B, G, C) → (B, G, C)."""
        return ops.swapaxes(self.fc2(gelu(self.fc1(ops.swapaxes(x_BGC, 1, 2)))), 1, 2)


@register("GPViTMix")
class Mix(Part):
    """Exchange between the groups: an MLP-Mixer of depth 1 (arXiv 2105.01601)."""

    arguments = ("dim", "groups", "drop_path_rate")

    def __init__(self, dim: int, groups: int, drop_path_rate: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dim, self.groups, self.drop_path_rate = dim, groups, drop_path_rate
        self.norm1 = self._norm("norm1", GROUP_EPS)
        self.tokens = TokenMlp(groups, dim // 2, name="tokens", dtype=self.dtype_policy)
        self.norm2 = self._norm("norm2", GROUP_EPS)
        self.channels = Mlp(dim, 4 * dim, name="channels", dtype=self.dtype_policy)
        self.drop_path = DropPath(drop_path_rate, name="drop_path", dtype=self.dtype_policy)

    def build(self, input_shape: Shape) -> None:
        """Make the variables for (B, G, C)."""
        for layer in (self.norm1, self.tokens, self.norm2, self.channels, self.drop_path):
            layer.build(input_shape)

    def call(self, x_BGC: Any) -> Any:
        """(B, G, C) → (B, G, C)."""
        x = x_BGC + self.drop_path(self.tokens(self.norm1(x_BGC)))
        return x + self.drop_path(self.channels(self.norm2(x)))


@register("GPViTScatter")
class Scatter(Part):
    """Tokens take from the groups what concerns them; raw tokens and answer are merged by a Linear, then an MLP."""

    arguments = ("dim", "num_heads", "mlp_ratio", "drop_path_rate")

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path_rate: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dim, self.num_heads = dim, num_heads
        self.mlp_ratio, self.drop_path_rate = mlp_ratio, drop_path_rate
        self.norm_query = self._norm("norm_query", GROUP_EPS)
        self.norm_key = self._norm("norm_key", GROUP_EPS)
        self.query, self.key, self.value = (self._linear(name, dim) for name in ("query", "key", "value"))
        self.proj = self._linear("proj", dim)
        self.merge = self._linear("merge", dim)
        self.norm2 = self._norm("norm2", GROUP_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), name="mlp", dtype=self.dtype_policy)
        self.drop_path = DropPath(drop_path_rate, name="drop_path", dtype=self.dtype_policy)

    def build(self, input_shape: Shape) -> None:
        """Make the variables for tokens (B, N, C)."""
        for layer in (self.norm_query, self.norm_key, self.query, self.key, self.value, self.proj):
            layer.build(input_shape)
        self.merge.build(with_channels(input_shape, 2 * self.dim))
        for layer in (self.norm2, self.mlp, self.drop_path):
            layer.build(input_shape)

    def call(self, x_BNC: Any, groups_BGC: Any) -> Any:
        """(B, N, C) and (B, G, C) → (B, N, C)."""
        groups = self.norm_key(groups_BGC)
        q_BNC = self.query(self.norm_query(x_BNC))
        answer = self.proj(attention(q_BNC, self.key(groups), self.value(groups), self.num_heads))
        x = self.merge(ops.concatenate([x_BNC, self.drop_path(answer)], axis=-1))
        return x + self.drop_path(self.mlp(self.norm2(x)))


@register("GPViTGroupBlock")
class GroupBlock(Part):
    """Group propagation: gather, mix, scatter, then a convolution that replaces the tokens (section 3.2)."""

    arguments = ("dim", "num_heads", "groups", "mlp_ratio", "drop_path_rate")

    def __init__(
        self, dim: int, num_heads: int, groups: int, mlp_ratio: float, drop_path_rate: float, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.dim, self.num_heads, self.groups = dim, num_heads, groups
        self.mlp_ratio, self.drop_path_rate = mlp_ratio, drop_path_rate
        self.gather = Gather(dim, num_heads, name="gather", dtype=self.dtype_policy)
        self.mix = Mix(dim, groups, drop_path_rate, name="mix", dtype=self.dtype_policy)
        self.scatter = Scatter(dim, num_heads, mlp_ratio, drop_path_rate, name="scatter", dtype=self.dtype_policy)
        self.depthwise = ConvNormReLU(dim, 3, is_depthwise=True, name="depthwise", dtype=self.dtype_policy)

    def build(self, input_shape: Shape) -> None:
        """Make the variables for (B, H, W, C)."""
        self.group_tokens = self.add_weight(
            shape=(self.groups, self.dim), initializer=HostNormal(), name="group_tokens"
        )
        tokens = (input_shape[0], None, self.dim)
        self.mix.build((input_shape[0], self.groups, self.dim))
        for layer in (self.gather, self.scatter):
            layer.build(tokens)
        self.depthwise.build(input_shape)

    def call(self, x_BHWC: Any) -> Any:
        """(B, H, W, C) → (B, H, W, C)."""
        height, width = windows.sides(x_BHWC)
        x_BNC = ops.reshape(x_BHWC, (-1, height * width, self.dim))
        groups_BGC = self.mix(self.gather(ops.convert_to_tensor(self.group_tokens)[None], x_BNC))
        x = self.scatter(x_BNC, groups_BGC)
        return self.depthwise(ops.reshape(x, (-1, height, width, self.dim)))


@register("GPViTGroupPool")
class GroupPool(Part):
    """One learned token attends to all tokens; keys are projected, values are not (GPViT L1 and L2)."""

    arguments = ("dim", "num_heads")

    def __init__(self, dim: int, num_heads: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dim, self.num_heads = dim, num_heads
        self.norm = self._norm("norm", GROUP_EPS)
        self.key = self._linear("key", dim, bias=False)

    def build(self, input_shape: Shape) -> None:
        """Make the variables for (B, H, W, C)."""
        self.token = self.add_weight(shape=(1, self.dim), initializer="zeros", name="token")
        for layer in (self.norm, self.key):
            layer.build((input_shape[0], None, self.dim))

    def call(self, x_BHWC: Any) -> Any:
        """(B, H, W, C) → (B, C)."""
        height, width = windows.sides(x_BHWC)
        x_BNC = ops.reshape(x_BHWC, (-1, height * width, self.dim))
        query_11C = self.norm(ops.convert_to_tensor(self.token)[None])
        return attention(query_11C, self.key(x_BNC), x_BNC, self.num_heads)[:, 0]

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """(B, C)."""
        return (input_shape[0], self.dim)

"""Layers that both networks are built from, in the operations that every backend has.

Legend: `B` images · `H W` grid · `C` channels. Everything between a model's first and last layer is channels-last.
"""

import random
from functools import partial
from typing import Any, ClassVar

import keras
import numpy as np

from globalvit.keras import windows
from globalvit.keras.untyped import layers, ops

INIT_STD = 0.02
A = -0.75  # of the cubic kernel, as in PyTorch
Shape = tuple[Any, ...]

register = partial(keras.saving.register_keras_serializable, "globalvit")


def with_channels(shape: Shape, channels: int) -> Shape:
    """The shape with another last axis."""
    return (*shape[:-1], channels)


def any_grid(channels: int) -> Shape:
    """The shape of maps of any size: Keras refuses to build a convolution for a grid under its kernel, unpadded."""
    return (None, None, None, channels)


def strided(shape: Shape, stride: int, channels: int) -> Shape:
    """The shape (B, H, W, C) after a layer that keeps every `stride`-th step, rounding up; None stays None."""
    batch, *grid, _ = shape
    return (batch, *(None if side is None else -(-side // stride) for side in grid), channels)


@register("HostNormal")
class HostNormal(keras.initializers.Initializer):
    """Normal numbers of deviation 0.02, drawn on the host: Linears, tables and tokens of both papers.

    JAX compiles Keras' own initializers for every shape, half a minute for the smallest model. The published code
    truncates at ±2, a hundred deviations away; Keras' truncated normal would cut at two deviations.
    """

    def __call__(self, shape: Shape, dtype: Any = None) -> Any:
        """Draw; `keras.utils.set_random_seed` decides what."""
        return ops.convert_to_tensor(_host_random().standard_normal(shape, np.float32) * np.float32(INIT_STD), dtype)


@register("HostUniform")
class HostUniform(keras.initializers.Initializer):
    """U(±1/√n) drawn on the host, n the inputs of one output: PyTorch's convolutions.

    Keras' own default counts the channels of a depthwise kernel among its inputs, and signals would fade.
    """

    def __init__(self, is_depthwise: bool = False) -> None:
        self.is_depthwise = is_depthwise

    def __call__(self, shape: Shape, dtype: Any = None) -> Any:
        """Draw; `keras.utils.set_random_seed` decides what."""
        inputs = shape[0] * shape[1] * (1 if self.is_depthwise else shape[2])
        drawn = (2 * _host_random().random(shape, np.float32) - 1) * np.float32(inputs**-0.5)
        return ops.convert_to_tensor(drawn, dtype)

    def get_config(self) -> dict[str, Any]:
        """What `from_config` builds it from again."""
        return {"is_depthwise": self.is_depthwise}


def _host_random() -> np.random.Generator:
    return np.random.default_rng(random.getrandbits(64))


class Part(keras.layers.Layer):
    """A layer whose config is its constructor's arguments, and whose children have its dtype policy.

    Attributes:
        arguments: names of the constructor's arguments, which are attributes too.
    """

    arguments: ClassVar[tuple[str, ...]] = ()

    def get_config(self) -> dict[str, Any]:
        """What `from_config` builds the layer from again."""
        return {**super().get_config(), **{name: getattr(self, name) for name in self.arguments}}

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """The input's shape, unless a layer says otherwise."""
        return input_shape

    def _linear(self, name: str, units: int, *, bias: bool = True) -> Any:
        return layers.Dense(units, use_bias=bias, kernel_initializer=HostNormal(), name=name, dtype=self.dtype_policy)

    def _norm(self, name: str, eps: float) -> Any:
        return layers.LayerNormalization(epsilon=eps, name=name, dtype=self.dtype_policy)

    def _conv(self, name: str, channels: int, kernel: int, *, stride: int = 1, bias: bool = False) -> Any:
        """A convolution without padding: `windows.border` goes before it."""
        return layers.Conv2D(
            channels,
            kernel,
            strides=stride,
            use_bias=bias,
            data_format="channels_last",
            kernel_initializer=HostUniform(),
            name=name,
            dtype=self.dtype_policy,
        )

    def _depthwise(self, name: str, *, bias: bool = False) -> Any:
        """A depthwise 3×3 convolution that keeps the grid."""
        return Depthwise(
            3,
            padding="same",
            use_bias=bias,
            data_format="channels_last",
            depthwise_initializer=HostUniform(is_depthwise=True),
            name=name,
            dtype=self.dtype_policy,
        )


@register("Depthwise")
class Depthwise(layers.DepthwiseConv2D):
    """A depthwise convolution; on JAX the sum of its shifted products, many times faster than XLA's own on a CPU."""

    def call(self, inputs: Any) -> Any:
        """(B, H, W, C) → (B, H, W, C)."""
        if keras.backend.backend() != "jax":
            return super().call(inputs)
        _, height, width, _ = inputs.shape
        rows, columns = self.kernel_size
        padded = windows.border(inputs, rows // 2)
        taps = [
            padded[:, row : row + height, column : column + width] * self.kernel[row, column, :, 0]
            for row in range(rows)
            for column in range(columns)
        ]
        total = sum(taps[1:], taps[0])
        return total if self.bias is None else total + self.bias


def gelu(x: Any) -> Any:
    """Exact GELU, by the error function."""
    return ops.gelu(x, approximate=False)


@register("DropPath")
class DropPath(Part):
    """Leave out a residual branch for some images while training (stochastic depth, arXiv 1603.09382)."""

    arguments = ("rate",)

    def __init__(self, rate: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate = rate
        self.seed_generator = keras.random.SeedGenerator() if rate else None

    def build(self, input_shape: Shape) -> None:
        """Nothing to make."""

    def call(self, x: Any, training: bool = False) -> Any:
        """(B, …) → (B, …); the branches kept are divided by the chance of being kept."""
        if not training or self.seed_generator is None:
            return x
        each_image = (None, *(1 for _ in x.shape[1:]))
        return keras.random.dropout(x, self.rate, noise_shape=each_image, seed=self.seed_generator)


@register("Mlp")
class Mlp(Part):
    """Linear, exact GELU, Linear, on the last axis."""

    arguments = ("dim", "hidden")

    def __init__(self, dim: int, hidden: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dim, self.hidden = dim, hidden
        self.fc1 = self._linear("fc1", hidden)
        self.fc2 = self._linear("fc2", dim)

    def build(self, input_shape: Shape) -> None:
        """Make the variables for (…, C)."""
        self.fc1.build(input_shape)
        self.fc2.build(with_channels(input_shape, self.hidden))

    def call(self, x: Any) -> Any:
        """(…, C) → (…, C)."""
        return self.fc2(gelu(self.fc1(x)))


def resize_bicubic(x_BHWC: Any, height: Any, width: Any) -> Any:
    """Resize as the published networks do: a = −0.75, half-pixel centers, edges replicated, no antialias.

    float32 inside and `x`'s dtype outside. A side that has its size already comes out as it is, so that sides that
    only the running graph knows need no branch.
    """
    x = ops.cast(x_BHWC, "float32")
    for axis, side in ((1, height), (2, width)):
        x = _resize_axis(x, axis, side)
    return ops.cast(x, x_BHWC.dtype)


def _resize_axis(x: Any, axis: int, side: Any) -> Any:
    source = ops.shape(x)[axis]
    scale = ops.cast(source, "float32") / ops.cast(side, "float32")
    centers = (ops.cast(ops.arange(side), "float32") + 0.5) * scale - 0.5
    before = ops.floor(centers)
    shape = [1, 1, 1, 1]
    shape[axis] = -1
    taps = []
    for offset in (-1, 0, 1, 2):
        at = ops.cast(before, "int32") + offset
        weight = _cubic(ops.absolute(centers - before - offset))
        taps.append(ops.take(x, ops.clip(at, 0, source - 1), axis=axis) * ops.reshape(weight, shape))
    return sum(taps[1:], taps[0])


def _cubic(distance: Any) -> Any:
    """The kernel of cubic convolution at distances 0 … 2 (Keys, 1981)."""
    near = ((A + 2) * distance - (A + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * A - 4 * A
    return ops.where(distance <= 1, near, far)

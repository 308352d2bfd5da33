"""The arguments of Keras' applications, checked as Keras checks its own: a `ValueError` says what is expected."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import keras

from globalvit.closest import suggest
from globalvit.models.variants import (
    SMALLEST_IMAGE,
    VARIANTS,
    GCViTConfig,
    GPViTConfig,
    Size,
    choose_window,
    unalias,
)
from globalvit.weights import catalog

IMAGENET = "imagenet"
IMAGENET_CLASSES = 1000
Source = Path | catalog.WeightRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """Where a model's images come from.

    Attributes:
        tensor: symbolic images, in Keras' data format.
        inputs: what the model is called with.
        size: (height, width), None where either is variable.
        channels: of the images.
        is_channels_first: their layout.
    """

    tensor: Any
    inputs: Any
    size: Size | None
    channels: int
    is_channels_first: bool


def resolve(model: str) -> str:
    """The name in the registry that `model` is, or stands for.

    Raises:
        ValueError: no model has this name; the text gives the closest ones.
    """
    resolved = unalias(model)
    if resolved not in VARIANTS:
        raise ValueError(f"Model {model!r} is not known.{suggest(resolved, VARIANTS)}")
    return resolved


def read_weights_argument(model: str, weights: Any) -> Source | None:
    """The record or file that `weights` means, None for fresh weights.

    Raises:
        ValueError: it is neither None, `"imagenet"`, a name of the catalog for this model, nor a file.
    """
    names = [record.weights for record in catalog.records(model)]
    if weights is None:
        return None
    if isinstance(weights, str) and weights in (IMAGENET, *names):
        return catalog.find(model, catalog.FIRST if weights == IMAGENET else weights)
    if isinstance(weights, str | Path) and Path(weights).is_file():
        return Path(weights)
    raise ValueError(
        f"The `weights` argument should be either `None` (random initialization), `{IMAGENET}` (the published "
        f"weights), one of the names {', '.join(map(repr, names))}, or the path to the weights file to be loaded. "
        f"Received: weights={weights!r}"
    )


def read_classes(weights: Any, source: Source | None, classes: Any, activation: Any) -> int:
    """The number of classes; a head that published weights do not have is refused.

    Raises:
        ValueError: `classes` is not a positive number or not that of the weights, or the activation is another.
    """
    if not isinstance(classes, Integral) or isinstance(classes, bool) or classes < 1:
        raise ValueError(f"`classes` should be a positive integer. Received: classes={classes!r}")
    if isinstance(source, catalog.WeightRecord) and classes != source.num_classes:
        raise ValueError(
            f'If using `weights="{weights}"` with `include_top=True`, `classes` should be {source.num_classes}. '
            f"Received: classes={classes}"
        )
    allowed = (keras.activations.get("softmax"), keras.activations.get(None))
    if source is not None and keras.activations.get(activation) not in allowed:
        raise ValueError(
            "Only `None` and `softmax` activations are allowed for the `classifier_activation` argument when using "
            f"pretrained weights, with `include_top=True`. Received: classifier_activation={activation!r}"
        )
    return int(classes)


def check_pooling(pooling: Any) -> None:
    """Refuse an unknown pooling.

    Raises:
        ValueError: it is neither None, `"avg"` nor `"max"`.
    """
    if pooling not in (None, "avg", "max"):
        raise ValueError(f"The `pooling` argument should be `None`, 'avg' or 'max'. Received: pooling={pooling!r}")


def images(input_shape: Sequence[int | None] | None, input_tensor: Any, is_pretrained: bool) -> Images:
    """The model's input, made from `input_shape` or taken from `input_tensor`; None for both is images of any size.

    Raises:
        ValueError: the shape is not an image's, too small, of other channels than the weights', or the two disagree.
    """
    is_first = keras.config.image_data_format() == "channels_first"
    if input_tensor is None:
        shape = _default_shape(is_first) if input_shape is None else input_shape
        return _images(keras.Input(_checked(shape, is_first, is_pretrained)), is_first)
    if not keras.utils.is_keras_tensor(input_tensor):
        raise ValueError(
            "The `input_tensor` argument should be a Keras tensor, such as the output of `keras.Input()`. "
            f"Received: input_tensor={input_tensor!r}"
        )
    own = tuple(input_tensor.shape[1:])
    if input_shape is not None and _checked(input_shape, is_first, is_pretrained) != own:
        raise ValueError(
            f"`input_shape` should be that of `input_tensor`, {own}, or be left out. Received: "
            f"input_shape={input_shape!r}"
        )
    _checked(own, is_first, is_pretrained)
    return _images(input_tensor, is_first)


def for_images(config: GCViTConfig | GPViTConfig, given: Images) -> GCViTConfig | GPViTConfig:
    """The variant's configuration for these images: GC ViT's windows follow their size where it is known."""
    config = replace(config, in_channels=given.channels)
    if isinstance(config, GPViTConfig):
        return config
    return replace(config, window=choose_window(config, given.size, None))


def _default_shape(is_first: bool) -> tuple[int | None, ...]:
    return (3, None, None) if is_first else (None, None, 3)


def _images(tensor: Any, is_first: bool) -> Images:
    shape = tuple(tensor.shape[1:])
    channels = shape[0] if is_first else shape[2]
    height, width = shape[1:] if is_first else shape[:2]
    return Images(
        tensor=tensor,
        inputs=keras.utils.get_source_inputs(tensor)[0],
        size=None if height is None or width is None else (height, width),
        channels=channels,
        is_channels_first=is_first,
    )


def _checked(given: Any, is_first: bool, is_pretrained: bool) -> tuple[int | None, ...]:
    layout = "(channels, height, width)" if is_first else "(height, width, channels)"
    known = tuple(given) if isinstance(given, Iterable) else ()
    if len(known) != 3 or not all(side is None or isinstance(side, Integral) for side in known):
        raise ValueError(
            f"`input_shape` should be a tuple of three integers, {layout}. Received: input_shape={given!r}"
        )
    shape = tuple(None if side is None else int(side) for side in known)
    channels, grid = (shape[0], shape[1:]) if is_first else (shape[2], shape[:2])
    if channels is None or channels < 1 or (is_pretrained and channels != 3):
        expected = "3 channels, those of the weights" if is_pretrained else "a known number of channels"
        raise ValueError(f"The input should have {expected}, in the layout {layout}. Received: input_shape={shape}")
    if any(side is not None and side < SMALLEST_IMAGE for side in grid):
        raise ValueError(
            f"Input size should be at least {SMALLEST_IMAGE}x{SMALLEST_IMAGE}, in the layout {layout}. "
            f"Received: input_shape={shape}"
        )
    return shape

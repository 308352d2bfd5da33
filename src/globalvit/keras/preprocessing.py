"""From pixels to what the weights expect, and from scores to names."""

from typing import Any

import keras
import numpy as np
from PIL import Image

from globalvit.data.classification.imagenet import imagenet_names, imagenet_synsets
from globalvit.data.common.images import to_rgb
from globalvit.keras.layers import register
from globalvit.keras.untyped import ops
from globalvit.weights.catalog import IMAGENET_MEAN, IMAGENET_STD

LARGEST = 255.0
FORMATS = ("channels_first", "channels_last")


@register("preprocess_input")
def preprocess_input(x: Any, data_format: str | None = None) -> Any:
    """Scale RGB values 0 … 255 to 0 … 1 and normalize them by ImageNet's mean and deviation.

    Args:
        x: one image or a batch, an array, tensor or PIL image of whole or floating-point numbers; it is not changed. A
            PIL image counts as it is shown: turned as its EXIF data ask for.
        data_format: `"channels_last"` or `"channels_first"`; Keras' own setting by default.

    Returns:
        The same kind of array or tensor in Keras' float type.

    Raises:
        ValueError: the format is unknown, or `x` has not three channels on its axis.
    """
    data_format = data_format or keras.config.image_data_format()
    if data_format not in FORMATS:
        raise ValueError(
            f"Expected data_format to be one of `channels_first` or `channels_last`. Received: "
            f"data_format={data_format}"
        )
    if isinstance(x, Image.Image):
        x = to_rgb(x)
    x = x if hasattr(x, "shape") else np.asarray(x)
    axis = -3 if data_format == "channels_first" else -1
    if len(x.shape) not in (3, 4) or x.shape[axis] != len(IMAGENET_MEAN):
        raise ValueError(
            f"Expected one RGB image or a batch of them, three channels on axis {axis} ({data_format}). Received: "
            f"x of shape {tuple(x.shape)}"
        )
    shape = (-1, 1, 1) if data_format == "channels_first" else (-1,)
    dtype = keras.config.floatx()
    scale, shift = (np.reshape(values, shape).astype(dtype) for values in _affine())
    if isinstance(x, np.ndarray):
        return x.astype(dtype) * scale + shift
    return ops.add(ops.multiply(ops.cast(x, dtype), scale), shift)


def decode_predictions(preds: Any, top: int = 5) -> list[list[tuple[str, str, float]]]:
    """Name the best classes of an ImageNet classifier's answers.

    Args:
        preds: scores (B, 1000).
        top: how many classes to give for each image.

    Returns:
        For each image the best classes, best first: (WordNet id, name, score).

    Raises:
        ValueError: `preds` is not (B, 1000).
    """
    scores = ops.convert_to_numpy(preds)
    synsets, names = imagenet_synsets(), imagenet_names()
    if scores.ndim != 2 or scores.shape[1] != len(names):
        raise ValueError(
            "`decode_predictions` expects a batch of predictions (i.e. a 2D array of shape (samples, 1000)). "
            f"Received array with shape: {scores.shape}"
        )
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return [[(synsets[i], names[i], float(row[i])) for i in order] for row, order in zip(scores, best, strict=True)]


def _affine() -> tuple[np.ndarray, np.ndarray]:
    """(x / 255 − mean) / std as x · scale + shift."""
    mean, std = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
    return 1 / (LARGEST * std), -mean / std

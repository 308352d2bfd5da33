"""Turn the inputs of `predict` into batches of images of one size.

A forward pass holds only images of one size: nothing is padded to a neighbor's size, so that no answer depends on
what else was asked.
"""

from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from globalvit.data.classification.transforms import EvalTransform
from globalvit.data.common.images import read_image, to_channels
from globalvit.data.common.transforms import FitTransform


def batches(
    images: Any, preprocessing: EvalTransform | FitTransform, batch_size: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield (positions in `images`, (B, C, H, W) float tensor), at most `batch_size` images of one size at a time.

    Args:
        images: one image or a sequence of them: a path, a PIL image, an RGB uint8 array (H, W, 3), which go through
            `preprocessing`, or a float tensor (C, H, W), taken as it is; a float tensor (B, C, H, W) counts as B.
        preprocessing: the evaluation transform of the weights.
        batch_size: images in a batch at most.

    Raises:
        ValueError: something else came.
    """
    return groups((as_tensor(image, preprocessing) for image in _as_sequence(images)), batch_size)


def groups(tensors: Iterable[Tensor], batch_size: int) -> Iterator[tuple[list[int], Tensor]]:
    """Yield (positions in `tensors`, those stacked), at most `batch_size` of one shape at a time."""
    waiting: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}
    for position, tensor in enumerate(tensors):
        group = waiting.setdefault(tuple(tensor.shape), [])
        group.append((position, tensor))
        if len(group) == batch_size:
            yield _stack(waiting.pop(tuple(tensor.shape)))
    for group in waiting.values():
        yield _stack(group)


def as_tensor(image: Any, preprocessing: EvalTransform | FitTransform) -> Tensor:
    """One image as a float tensor (C, H, W); see `batches` for what is accepted."""
    return _checked(image) if isinstance(image, Tensor) else preprocessing(as_image(image, preprocessing.channels))


def sized(images: Any, preprocessing: EvalTransform | FitTransform) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """Yield (float tensor (C, h, w), (height, width) of the image itself) of each image; see `batches`.

    A tensor is its own image.
    """
    for image, size in opened(images, preprocessing.channels):
        yield as_tensor(image, preprocessing), size


def opened(images: Any, channels: int = 3) -> Iterator[tuple[Tensor | Image.Image, tuple[int, int]]]:
    """Yield each image, a float tensor (C, H, W) or an RGB image, with its (height, width); see `batches`."""
    for image in _as_sequence(images):
        if isinstance(image, Tensor):
            yield _checked(image), (image.shape[1], image.shape[2])
        else:
            whole = as_image(image, channels)
            yield whole, (whole.height, whole.width)


def as_image(image: Any, channels: int = 3) -> Image.Image:
    """A path, a PIL image or a uint8 array (H, W, 3) as an RGB image, or as one of four channels (H, W, 4).

    Raises:
        ValueError: it is something else, or has another number of channels.
    """
    if isinstance(image, str | PathLike):
        return read_image(image, channels=channels)
    if isinstance(image, Image.Image):
        return to_channels(image, channels)
    if (
        isinstance(image, np.ndarray)
        and image.dtype == np.uint8
        and image.ndim == 3
        and image.shape[2] in (3, channels)
    ):
        return to_channels(Image.fromarray(image), channels)
    got = f"{image.dtype} array of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise ValueError(f"expected a path, a PIL image or an RGB uint8 array (height, width, 3), got {got}")


def _checked(image: Tensor) -> Tensor:
    if image.ndim == 3 and image.is_floating_point():
        return image
    raise ValueError(
        f"expected a preprocessed float tensor (channels, height, width), got {image.dtype} of shape "
        f"{tuple(image.shape)}; unprocessed images are paths, PIL images or uint8 arrays (height, width, 3)"
    )


def _as_sequence(images: Any) -> Sequence[Any]:
    if isinstance(images, Tensor | np.ndarray) and images.ndim == 4:
        return list(images)
    return images if isinstance(images, list | tuple) else [images]


def _stack(group: list[tuple[int, Tensor]]) -> tuple[list[int], Tensor]:
    positions, tensors = zip(*group, strict=True)
    return list(positions), torch.stack(tensors)

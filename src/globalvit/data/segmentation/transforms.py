"""Segmentation's training transform and its batches: whatever moves an image moves its labels alike.

Legend: `B` images · `C` channels · `H W` pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from globalvit.data.common.randomness import Purpose, derive
from globalvit.data.common.samples import Batch, Item
from globalvit.data.common.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ChannelStatistics,
    FitTransform,
    as_range,
    as_size,
    to_tensor,
)
from globalvit.data.segmentation.distortion import distort
from globalvit.data.segmentation.label_images import IGNORE

Sample = tuple[Image.Image, np.ndarray]
# How often a crop is drawn at most until no class fills too much of it.
TRIES = 10


class Window(NamedTuple):
    """The part of a resized image that is kept, in pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class SegmentTrainTransform(ChannelStatistics):
    """How images and labels are augmented for training; every choice is a function of (seed, epoch, index).

    An image is resized by a random ratio, its sides keeping theirs, cropped, flipped and distorted. A crop that is
    smaller than the size asked for is padded at the right and below: labels with 255, images with the channels' mean,
    which is nothing but rounding once it is normalized.

    Args:
        image_size: height and width of the result in pixels, or one side.
        short_side: what the shorter side is resized to, before the ratio, …
        long_side: … unless the longer one would pass this.
        scale: smallest and largest ratio of the two.
        max_share: a crop of which one class fills more of the labeled pixels than this is drawn again, up to ten times;
            1 takes every crop.
        hflip: probability of a horizontal flip.
        vflip: probability of a vertical flip.
        distortion: strength of the changes of brightness, contrast, saturation and hue; 1 is the published recipes'.
        mean: of each channel, for values 0 … 1; one value means gray images.
        std: deviation of each channel.

    Raises:
        ValueError: a value is out of range.
    """

    image_size: tuple[int, int] = (512, 512)
    short_side: int = 512
    long_side: int = 2048
    scale: tuple[float, float] = (0.5, 2.0)
    max_share: float = 0.75
    hflip: float = 0.5
    vflip: float = 0.0
    distortion: float = 1.0
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        self.check_statistics()
        object.__setattr__(self, "image_size", as_size(self.image_size))
        object.__setattr__(self, "scale", as_range("scale", self.scale))
        if not 1 <= self.short_side <= self.long_side:
            raise ValueError(
                f"short_side={self.short_side}, long_side={self.long_side} must be 1 or more, the smaller first"
            )
        if not 0 < self.max_share <= 1:
            raise ValueError(f"max_share={self.max_share} must be above 0 and at most 1")
        if not (0 <= self.hflip <= 1 and 0 <= self.vflip <= 1):
            raise ValueError(f"hflip={self.hflip}, vflip={self.vflip} must be probabilities, 0 … 1")
        if not 0 <= self.distortion <= 2:
            raise ValueError(f"distortion={self.distortion} must be 0 … 2")

    def __call__(self, sample: Sample, seed: int, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """An image and its labels → uint8 (C, H, W) and uint8 (H, W)."""
        image, labels_HW = sample
        random = np.random.Generator(np.random.PCG64(derive(Purpose.AUGMENT, seed, epoch, index)))
        height, width = self._resized(image.height, image.width, random)
        labels = Image.fromarray(labels_HW).resize((width, height), Image.Resampling.NEAREST)
        labels_HW = np.asarray(labels)
        window = self._window(labels_HW, random)
        image = _resized_part(image, height, width, window)
        labels_HW = labels_HW[window.top :, window.left :][: window.height, : window.width]
        if random.random() < self.hflip:
            image, labels_HW = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), labels_HW[:, ::-1]
        if random.random() < self.vflip:
            image, labels_HW = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM), labels_HW[::-1]
        if self.distortion:
            image = distort(image, self.distortion, random)
        return self._padded(to_tensor(image, self.channels), labels_HW)

    def prepare(self) -> None:
        """Nothing has to be built before the first image."""

    def _resized(self, height: int, width: int, random: np.random.Generator) -> tuple[int, int]:
        """Height and width that an image is resized to."""
        ratio = random.uniform(*self.scale)
        factor = ratio * min(self.short_side / min(height, width), self.long_side / max(height, width))
        return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)

    def _window(self, labels_HW: np.ndarray, random: np.random.Generator) -> Window:
        """A random crop of which no class fills more than `max_share`, or the last of ten."""
        height, width = (min(side, kept) for side, kept in zip(labels_HW.shape, self.image_size, strict=True))
        window = Window(0, 0, height, width)
        for _ in range(TRIES):
            top = int(random.integers(labels_HW.shape[0] - height + 1))
            left = int(random.integers(labels_HW.shape[1] - width + 1))
            window = Window(top, left, height, width)
            if _largest_share(labels_HW[top : top + height, left : left + width]) <= self.max_share:
                break
        return window

    def _padded(self, image: Tensor, labels_HW: np.ndarray) -> tuple[Tensor, Tensor]:
        height, width = labels_HW.shape
        grounds = torch.tensor([round(255 * value) for value in self.mean], dtype=torch.uint8)
        image_CHW = grounds[:, None, None].repeat(1, *self.image_size)
        image_CHW[:, :height, :width] = image
        padded_HW = torch.full(self.image_size, IGNORE, dtype=torch.uint8)
        # A copy, since torch takes neither negative strides nor arrays that cannot be written to.
        padded_HW[:height, :width] = torch.from_numpy(labels_HW.copy())
        return image_CHW, padded_HW


@dataclass(frozen=True)
class SegmentEvalTransform:
    """From a sample to what is evaluated: the image as `fit` resizes it, the labels in the image's own size."""

    fit: FitTransform

    def __call__(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """An image and its labels → uint8 (C, h, w) and uint8 (H, W)."""
        image, labels_HW = sample
        return self.fit.to_uint8(image), torch.from_numpy(labels_HW.copy())


def collate_crops(_: Any, items: Sequence[Item]) -> Batch:
    """Training's batch: `images` uint8 (B, C, H, W) and `labels` uint8 (B, H, W)."""
    return {
        "images": torch.stack([item.value[0] for item in items]),
        "labels": torch.stack([item.value[1] for item in items]),
    }


def collate_images(_: Any, items: Sequence[Item]) -> Batch:
    """Evaluation's batch: lists `images`, uint8 (C, h, w) each, and `labels`, uint8 (H, W) each."""
    return {"images": [item.value[0] for item in items], "labels": [item.value[1] for item in items]}


def _largest_share(labels_HW: np.ndarray) -> float:
    """The largest part that one class has of the labeled pixels; 1 where none is labeled."""
    counts = np.bincount(labels_HW.ravel(), minlength=IGNORE + 1)[:IGNORE]
    return float(counts.max() / counts.sum()) if counts.any() else 1.0


def _resized_part(image: Image.Image, height: int, width: int, window: Window) -> Image.Image:
    """The window of an image resized to height and width; only what is kept of it is computed."""
    down, across = image.height / height, image.width / width
    box = (
        window.left * across,
        window.top * down,
        min((window.left + window.width) * across, image.width),
        min((window.top + window.height) * down, image.height),
    )
    return image.resize((window.width, window.height), Image.Resampling.BILINEAR, box)

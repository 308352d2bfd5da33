"""What the transforms of all tasks share: channel statistics, tensors, and the whole image resized to fit.

Legend: `C` channels · `H W` pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from globalvit.data.common.images import FOUR, RGB, WrongChannels

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
SMALLEST_SIDE = 32


class ChannelStatistics:
    """Mean and deviation of each channel, for values 0 … 1; one value means gray images."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def check_statistics(self) -> None:
        """Make tuples of floats of both.

        Raises:
            ValueError: they are not of one length, or a deviation is not above 0.
        """
        set_ = object.__setattr__
        set_(self, "mean", tuple(map(float, self.mean)))
        set_(self, "std", tuple(map(float, self.std)))
        if len(self.mean) != len(self.std) or not self.mean or min(self.std) <= 0:
            raise ValueError(f"mean={self.mean} and std={self.std} need one value per channel each, std above 0")

    @property
    def channels(self) -> int:
        """Channels of the tensors: 3 for RGB, 1 for gray."""
        return len(self.mean)

    def normalize(self, images: Tensor) -> Tensor:
        """Values 0 … 255 of any dtype (…, C, H, W) → float32, less the mean, in units of the deviation."""
        mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (self.mean, self.std))
        return images.to(torch.float32, copy=True).div_(255).sub_(mean).div_(std)

    def denormalize(self, images: Tensor) -> Tensor:
        """Undo `normalize`: float (…, C, H, W) → uint8, rounded and clipped."""
        mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (self.mean, self.std))
        return images.mul(std).add_(mean).mul_(255).round_().clamp_(0, 255).to(torch.uint8)

    def finish(self, images: Tensor, batch: dict[str, Any]) -> Tensor:  # noqa: ARG002 - for those that erase
        """Complete a batch's normalized float32 (B, C, H, W) images on the device."""
        return images

    def statistics_for(self, channels: int) -> dict[str, tuple[float, ...]]:
        """`mean` and `std` for images of another number of channels: for 1, their means; for more than 3, 0.5."""
        if channels == self.channels:
            return {"mean": self.mean, "std": self.std}
        if channels > RGB:
            return {"mean": (0.5,) * channels, "std": (0.5,) * channels}
        mean, std = (sum(values) / self.channels for values in (self.mean, self.std))
        return {"mean": (mean,) * channels, "std": (std,) * channels}


def check_channels(channels: int) -> None:
    """Refuse a number of channels that image files do not give.

    Raises:
        ValueError: it is neither 1, 3 nor 4.
    """
    if channels not in (1, RGB, 4):
        raise ValueError(
            f"image files give 3 channels, 1 as gray or 4 as RGBA, not {channels}; for other data make float tensors "
            f"(B, {channels}, H, W) yourself and give them to the model"
        )


def to_tensor(image: Image.Image, channels: int) -> Tensor:
    """An RGB image, or one of four channels → uint8 (C, H, W), gray where `channels` is 1."""
    check_channels(channels)
    if channels > RGB and image.mode != FOUR:
        raise WrongChannels(
            f"an image has {len(image.getbands())} channels ({image.mode}), and the model takes {channels}; expected "
            f"files of {channels} channels: use --in-chans {RGB} for these data"
        )
    values = np.array(image.convert("L") if channels == 1 else image)
    return torch.from_numpy(values.reshape(image.height, image.width, channels)).permute(2, 0, 1).contiguous()


@dataclass(frozen=True, kw_only=True)
class FitTransform(ChannelStatistics):
    """Resizes an image until its shorter side is `short_side`, unless its longer one would then pass `long_side`.

    Args:
        short_side: in pixels; None leaves images in their own size.
        long_side: in pixels, at least `short_side`.
        multiple: both sides are then rounded up to a multiple of this; 1 leaves them.
        interpolation: `bicubic`, `bilinear`, `lanczos` or `nearest`.
        mean: of each channel, for values 0 … 1; one value means gray images.
        std: deviation of each channel.

    Raises:
        ValueError: a value is none of these.
    """

    short_side: int | None = 512
    long_side: int = 2048
    multiple: int = 1
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        self.check_statistics()
        if self.short_side is not None and not SMALLEST_SIDE <= self.short_side <= self.long_side:
            raise ValueError(
                f"short_side={self.short_side}, long_side={self.long_side} must be {SMALLEST_SIDE} pixels or more, the "
                "smaller number first"
            )
        if self.multiple < 1:
            raise ValueError(f"multiple={self.multiple} must be 1 or more")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation={self.interpolation!r} must be one of {', '.join(INTERPOLATIONS)}")

    def __call__(self, image: Image.Image) -> Tensor:
        """An RGB image → float32 (C, H, W), normalized."""
        return self.normalize(self.to_uint8(image))

    def to_uint8(self, image: Image.Image) -> Tensor:
        """An RGB image → uint8 (C, H, W)."""
        height, width = self.fitted_size(image.height, image.width)
        if (width, height) != image.size:
            image = image.resize((width, height), INTERPOLATIONS[self.interpolation])
        return to_tensor(image, self.channels)

    def fitted_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image of this height and width is resized to, 32 or more."""
        scale = 1.0
        if self.short_side is not None:
            scale = min(self.short_side / min(height, width), self.long_side / max(height, width))
        fitted = (max(int(side * scale + 0.5), SMALLEST_SIDE) for side in (height, width))
        rounded_height, rounded_width = (-(-side // self.multiple) * self.multiple for side in fitted)
        return rounded_height, rounded_width

    def for_channels(self, channels: int) -> Self:
        """Return this transform for another number of channels, with the statistics of `statistics_for`."""
        return replace(self, **self.statistics_for(channels))


def as_size(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of one side or both; raises ValueError where one is below 1."""
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f"image_size={size} must be 1 pixel or more")
    return int(height), int(width)


def as_range(name: str, limits: Sequence[float]) -> tuple[float, float]:
    """Return the smallest and the largest number; raises ValueError, which calls them `name`, where they are not."""
    low, high = limits
    if not 0 < low <= high:
        raise ValueError(f"{name}={low},{high} must be the smaller number first, both above 0")
    return float(low), float(high)

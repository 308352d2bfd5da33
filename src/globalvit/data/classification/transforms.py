"""From an image to a tensor: the evaluation transform of a set of weights, and the training transform.

Both end in uint8 values; `normalize` makes them floats, on whatever device they are by then.

Legend: `B` images · `C` channels · `H W` pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from PIL import Image
from torch import Tensor

from globalvit.data.classification.augment import Augmentation, build_pipeline
from globalvit.data.classification.erasing import Erasure, Mode, draw_erasure, erase
from globalvit.data.common.randomness import Purpose, derive, seeded
from globalvit.data.common.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    INTERPOLATIONS,
    ChannelStatistics,
    as_range,
    as_size,
    to_tensor,
)

# An image whose resized form is larger than the result by more than this is very long: it is cropped first.
MOST_ENLARGED = 32


@dataclass(frozen=True, kw_only=True)
class EvalTransform(ChannelStatistics):
    """How images are prepared for evaluation and prediction.

    Args:
        image_size: height and width of the result in pixels, or one side.
        crop_ratio: of `center`, the part of the resized image that the crop takes, at most 1.
        crop_mode: `center` resizes the shorter side to size / crop_ratio and takes the center; `squash` resizes the
            whole image to the size, whatever its shape.
        interpolation: `bicubic`, `bilinear`, `lanczos` or `nearest`.
        mean: of each channel, for values 0 … 1; one value means gray images.
        std: deviation of each channel.

    Raises:
        ValueError: a value is none of these.
    """

    image_size: tuple[int, int] = (224, 224)
    crop_ratio: float = 0.875
    crop_mode: Literal["center", "squash"] = "center"
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        self.check_statistics()
        object.__setattr__(self, "image_size", as_size(self.image_size))
        if not 0 < self.crop_ratio <= 1:
            raise ValueError(f"crop_ratio={self.crop_ratio} must be above 0 and at most 1")
        if self.crop_mode not in ("center", "squash"):
            raise ValueError(f"crop_mode={self.crop_mode!r} must be 'center' or 'squash'")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation={self.interpolation!r} must be one of {', '.join(INTERPOLATIONS)}")

    def __call__(self, image: Image.Image) -> Tensor:
        """An RGB image → float32 (C, H, W), normalized."""
        return self.normalize(self.to_uint8(image))

    def to_uint8(self, image: Image.Image) -> Tensor:
        """An RGB image → uint8 (C, H, W)."""
        interpolation = INTERPOLATIONS[self.interpolation]
        height, width = self._resized(image.height, image.width)
        if height * width > MOST_ENLARGED * self.image_size[0] * self.image_size[1]:
            # Only the part that is kept, which costs no memory; its values may differ in the last bits.
            cropped = image.resize(
                (self.image_size[1], self.image_size[0]), interpolation, self.kept_box(image.width, image.height)
            )
        else:
            top, left = (_first(side, kept) for side, kept in zip((height, width), self.image_size, strict=True))
            bottom, right = top + self.image_size[0], left + self.image_size[1]
            cropped = image.resize((width, height), interpolation).crop((left, top, right, bottom))
        return to_tensor(cropped, self.channels)

    def kept_box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of what is kept of an image, in its own pixels."""
        resized_height, resized_width = self._resized(height, width)
        top, bottom = _center(height, resized_height, self.image_size[0])
        left, right = _center(width, resized_width, self.image_size[1])
        return left, top, right, bottom

    def for_channels(self, channels: int) -> Self:
        """Return this transform for another number of channels, with the statistics of `statistics_for`."""
        return replace(self, **self.statistics_for(channels))

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width from which the crop is taken, rounded as timm rounds them."""
        if self.crop_mode == "squash":
            return self.image_size
        target_height, target_width = (int(side / self.crop_ratio) for side in self.image_size)
        if target_height != target_width:
            shrink = min(height / target_height, width / target_width)
            return round(height / shrink), round(width / shrink)
        if height <= width:
            return target_height, int(target_height * width / height)
        return int(target_width * height / width), target_width


@dataclass(frozen=True, kw_only=True)
class TrainTransform(ChannelStatistics):
    """How images are augmented for training; every choice is a function of (seed, epoch, index).

    Args:
        image_size: height and width of the result in pixels, or one side.
        scale: smallest and largest area of the random crop, as a part of the image.
        ratio: smallest and largest ratio of the crop's width to its height.
        hflip: probability of a horizontal flip.
        vflip: probability of a vertical flip.
        aa: RandAugment, AutoAugment, AugMix or 3-Augment in timm's notation, such as `rand-m9-mstd0.5-inc1`.
        color_jitter: strength of color jitter, or of brightness, contrast, saturation (and hue); where `aa` is given
            it stands in for it, as in timm.
        interpolation: `random` (bilinear or bicubic), or one of `EvalTransform`'s.
        reprob: probability of random erasing.
        remode: what is filled in: `pixel`, `rand` or `const`.
        recount: rectangles at most.
        mean: of each channel, for values 0 … 1; one value means gray images.
        std: deviation of each channel.

    Raises:
        ValueError: a value is out of range, or `aa` is not timm's notation.
    """

    image_size: tuple[int, int] = (224, 224)
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    vflip: float = 0.0
    aa: str | None = None
    color_jitter: float | tuple[float, ...] | None = 0.4
    interpolation: str = "random"
    reprob: float = 0.0
    remode: Mode = "pixel"
    recount: int = 1
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        self.check_statistics()
        object.__setattr__(self, "image_size", as_size(self.image_size))
        object.__setattr__(self, "scale", as_range("scale", self.scale))
        object.__setattr__(self, "ratio", as_range("ratio", self.ratio))
        if isinstance(self.color_jitter, Sequence):
            object.__setattr__(self, "color_jitter", tuple(self.color_jitter))
        if self.interpolation not in ("random", *INTERPOLATIONS):
            allowed = ", ".join(("random", *INTERPOLATIONS))
            raise ValueError(f"train interpolation={self.interpolation!r} must be one of {allowed}")
        if self.remode not in ("pixel", "rand", "const") or self.recount < 1:
            raise ValueError(f"remode={self.remode!r} must be pixel, rand or const, recount={self.recount} 1 or more")

    def __call__(self, image: Image.Image, seed: int, epoch: int, index: int) -> tuple[Tensor, Erasure]:
        """An RGB image → uint8 (C, H, W), and what to erase of it once it is normalized."""
        key = (seed, epoch, index)
        with seeded(derive(Purpose.AUGMENT, *key)):
            image = self.prepare()(image)
        return to_tensor(image, self.channels), draw_erasure(self.image_size, self.reprob, self.recount, key)

    def finish(self, images: Tensor, batch: dict[str, Any]) -> Tensor:
        """Erase of a batch's normalized images, in place, what its records say."""
        erase(images, batch["erase"], self.remode)
        return images

    def prepare(self) -> Augmentation:
        """Build timm's pipeline, or take the one built before; raises ValueError where `aa` is not understood."""
        return build_pipeline(
            image_size=self.image_size,
            scale=self.scale,
            ratio=self.ratio,
            hflip=self.hflip,
            vflip=self.vflip,
            aa=self.aa,
            color_jitter=self.color_jitter,
            interpolation=self.interpolation,
            # What the augmentations fill in; they work on RGB.
            mean=self.mean if self.channels == 3 else self.mean[:1] * 3,
        )


def _first(resized: int, kept: int) -> int:
    """Where the middle `kept` pixels of `resized` begin."""
    return round((resized - kept) / 2)


def _center(side: int, resized: int, kept: int) -> tuple[float, float]:
    """First and last position, in an image's own pixels, of the middle `kept` of `resized`."""
    start = _first(resized, kept)
    return start * side / resized, min((start + kept) * side / resized, side)

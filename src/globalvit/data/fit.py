"""The evaluation transform of segmenters and detectors: the whole image, its sides in their own ratio.

Legend: `C` channels · `H W` pixels.
"""

from dataclasses import dataclass, replace
from typing import Self

from PIL import Image
from torch import Tensor

from globalvit.data.statistics import IMAGENET_MEAN, IMAGENET_STD, ChannelStatistics, to_tensor
from globalvit.data.transforms import INTERPOLATIONS

SMALLEST_SIDE = 32


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
        """The same for images of another number of channels: for 1, the mean of the statistics."""
        return replace(self, **self.statistics_for(channels))

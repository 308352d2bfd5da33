"""What every transform from an image to a tensor shares: channels, their statistics, and the last step.

Legend: `C` channels · `H W` pixels.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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
            raise ValueError(f"mean={self.mean} and std={self.std} need one value a channel each, std above 0")

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

    def statistics_for(self, channels: int) -> dict[str, tuple[float, ...]]:
        """`mean` and `std` for images of another number of channels: for 1, the mean of the statistics."""
        if channels == self.channels:
            return {"mean": self.mean, "std": self.std}
        mean, std = (sum(values) / self.channels for values in (self.mean, self.std))
        return {"mean": (mean,) * channels, "std": (std,) * channels}


def check_channels(channels: int) -> None:
    """Refuse a number of channels that image files do not give.

    Raises:
        ValueError: it is neither 3 nor 1.
    """
    if channels not in (1, 3):
        raise ValueError(
            f"image files give 3 channels, or 1 as gray, not {channels}; for other data make float tensors "
            f"(B, {channels}, H, W) yourself and give them to the model"
        )


def to_tensor(image: Image.Image, channels: int) -> Tensor:
    """An RGB image → uint8 (C, H, W), gray where `channels` is 1."""
    check_channels(channels)
    values = np.array(image if channels == 3 else image.convert("L"))
    return torch.from_numpy(values.reshape(image.height, image.width, channels)).permute(2, 0, 1).contiguous()

"""The feature pyramid: maps of equal channels in which fine maps know what coarse ones saw.

Paper: Lin et al., CVPR 2017, arXiv 1612.03144. Legend: `B` images · `C` channels · `H W` grid · `L` levels.
"""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Extra = Literal["pool", "convs"]
CHANNELS = 256
# Coarser levels that each kind adds: two-stage detectors use one, RetinaNet two.
EXTRA_LEVELS = {"pool": 1, "convs": 2}


class ConvNorm(nn.Module):
    """Convolution without bias and batch norm, or a convolution with bias; no activation."""

    def __init__(self, in_channels: int, channels: int, kernel: int, *, stride: int = 1, norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride=stride, padding=kernel // 2, bias=not norm)
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', ⌈H/stride⌉, ⌈W/stride⌉)."""
        return self.norm(self.conv(x_BCHW))


class FPN(nn.Module):
    """Laterals, the sum of each with the coarser one, a convolution on each sum, then levels coarser than those.

    Args:
        channels: channels of the backbone's maps, finest first.
        strides: their strides.
        norm: batch norm after every convolution (GPViT), or a bias in it (GC ViT).
        extra: `pool` adds every second step of the last output (two-stage detectors); `convs` adds two levels by
            strided convolutions, the first on the last output, the second on the first's, no ReLU between (RetinaNet).
        finest: maps of smaller strides are left out; RetinaNet begins at 8.
        out_channels: channels of every output.

    Attributes:
        channels: channels of the outputs.
        strides: strides of the outputs: 4, 8, 16, 32, 64 or 8, 16, 32, 64, 128.

    Raises:
        ValueError: `channels` and `strides` are not of one length, or no map is left.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        norm: bool,
        extra: Extra,
        finest: int = 4,
        out_channels: int = CHANNELS,
    ) -> None:
        super().__init__()
        used = _used(channels, strides, finest)
        self.in_channels = tuple(channels)
        self.extra: Extra = extra
        self.unused = len(channels) - len(used)
        self.strides = (*used, *(used[-1] * 2**step for step in range(1, EXTRA_LEVELS[extra] + 1)))
        self.channels = (out_channels,) * len(self.strides)
        self.laterals = nn.ModuleList(
            ConvNorm(count, out_channels, 1, norm=norm) for count in self.in_channels[self.unused :]
        )
        self.outputs = nn.ModuleList(ConvNorm(out_channels, out_channels, 3, norm=norm) for _ in used)
        if extra == "convs":
            self.outputs.extend(
                ConvNorm(out_channels, out_channels, 3, stride=2, norm=norm) for _ in range(EXTRA_LEVELS[extra])
            )

    def forward(self, maps_BCHW: Sequence[Tensor]) -> list[Tensor]:
        """The backbone's maps → one map (B, out_channels, H, W) for each of `strides`.

        Raises:
            ValueError: the maps are not as many, or have not the channels, that the neck was built for.
        """
        self.check(maps_BCHW)
        sums = self._sums(maps_BCHW[self.unused :])
        maps = [output(x) for output, x in zip(self.outputs, sums, strict=False)]
        if self.extra == "pool":
            return [*maps, maps[-1][:, :, ::2, ::2]]
        for index in range(len(maps), len(self.outputs)):
            maps.append(self.outputs[index](maps[-1]))
        return maps

    def _sums(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The laterals, each with the coarser sum resized to it added."""
        sums = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        for level in range(len(sums) - 1, 0, -1):
            size = sums[level - 1].shape[-2:]
            sums[level - 1] = sums[level - 1] + F.interpolate(sums[level], size=size, mode="nearest")
        return sums

    def check(self, maps_BCHW: Sequence[Tensor]) -> None:
        """Refuse maps that the neck was not built for.

        Raises:
            ValueError: as in `forward`.
        """
        came = tuple(x.shape[1] for x in maps_BCHW)
        if came != self.in_channels:
            raise ValueError(
                f"maps of {came} channels came; this FPN was built for {self.in_channels}: "
                f"give it every map of the backbone whose channels it was made with"
            )

    def init_weights(self) -> None:
        """Xavier uniform for convolutions, biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def _used(channels: Sequence[int], strides: Sequence[int], finest: int) -> tuple[int, ...]:
    """The strides from `finest` up."""
    if len(channels) != len(strides) or list(strides) != sorted(strides):
        raise ValueError(
            f"channels={tuple(channels)} and strides={tuple(strides)} must list the same maps, finest first"
        )
    used = tuple(stride for stride in strides if stride >= finest)
    if not used:
        raise ValueError(f"finest={finest} leaves none of the maps of strides {tuple(strides)}; give one of them")
    return used

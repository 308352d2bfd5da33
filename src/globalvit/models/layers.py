"""Layers that more than one network is built from.

Legend: `B` images · `H W` grid · `C` channels. Token grids are channels-last (B, H, W, C); a convolution sees the same
memory as an NCHW tensor in channels-last format, so that no copy is made on the way in or out.
"""

from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from globalvit.models.windows import is_sure
from globalvit.pytorch import has_hooks, is_plain_call, is_plain_module

INIT_STD = 0.02
SQUEEZE = 4


def to_nchw(x_BHWC: Tensor) -> Tensor:
    """View a channels-last grid as NCHW, without a copy."""
    return x_BHWC.permute(0, 3, 1, 2)


def to_nhwc(x_BCHW: Tensor) -> Tensor:
    """View an NCHW map as a channels-last grid, without a copy: the inverse of `to_nchw`."""
    return x_BCHW.permute(0, 2, 3, 1)


def channels_last(x_BCHW: Tensor) -> Tensor:
    """Return a map that lies channels-last in memory, so that every later change of layout is a view."""
    # torch.func.vmap does not know the memory format of that name.
    return to_nchw(to_nhwc(x_BCHW).contiguous())


def resize_bicubic(x_BCHW: Tensor, height: int, width: int) -> Tensor:
    """Resize as the published networks do: a = −0.75, half-pixel centers, edges replicated, no antialias.

    float32 inside and `x`'s dtype outside, so that half-precision models resize as exactly as others.
    """
    resized = F.interpolate(x_BCHW.float(), size=(height, width), mode="bicubic", align_corners=False)
    return resized.to(x_BCHW.dtype)


def resize_bilinear(x_BCHW: Tensor, height: int, width: int) -> Tensor:
    """Resize bilinearly: half-pixel centers, edges replicated, no antialias."""
    if is_sure(x_BCHW.shape[2] == height, x_BCHW.shape[3] == width):
        return x_BCHW
    return F.interpolate(x_BCHW, size=(height, width), mode="bilinear", align_corners=False)


def channel_means(x_BCHW: Tensor) -> Tensor:
    """The mean of each channel: (B, C, H, W) → (B, C)."""
    if x_BCHW.dtype == torch.bfloat16 and x_BCHW.device.type == "cpu":
        # PyTorch's mean would copy the whole map to float32 first; a product with ones sums in float32 as it reads.
        x_BNC = to_nhwc(x_BCHW).flatten(1, 2)
        return (x_BNC.new_ones(1, x_BNC.shape[1]) @ x_BNC).squeeze(1) / x_BNC.shape[1]
    return x_BCHW.mean((2, 3))


class DropPath(nn.Module):
    """Leave out a residual branch for some images while training (stochastic depth, arXiv 1603.09382).

    The kept branches are divided by the chance of being kept, so that expectations agree with evaluation.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, …) → (B, …)."""
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * mask.div_(keep)

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"rate={self.rate:.3g}"


def add_branch(
    x: Tensor, owner: nn.Module, drop_path: nn.Module, branch: Callable[..., Tensor], *others: Tensor
) -> Tensor:
    """`x + drop_path(branch(x, *others))`; on a CPU, branches that are dropped are not computed.

    Args:
        x: (B, …).
        owner: the module whose parts the branch calls. If one of them has a hook, it sees all images.
        drop_path: a `DropPath`, or anything in its place.
        branch: from `x` and `others` to a tensor of `x`'s shape, image by image.
        others: tensors whose first axis is images, too.
    """
    is_drawn = is_plain_module(drop_path, DropPath) and drop_path.training and cast("DropPath", drop_path).rate > 0.0
    # On a GPU, looking at the mask would make it wait; in a compiled graph it would end the graph.
    if not (is_drawn and x.device.type == "cpu" and is_plain_call(x)) or has_hooks(owner):
        return x + drop_path(branch(x, *others))
    keep = 1.0 - cast("DropPath", drop_path).rate
    mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
    kept = mask.flatten().nonzero().flatten()
    if len(kept) in (0, len(x)):
        # With no image left the branch is computed all the same: distributed training waits for every gradient.
        return x + branch(x, *others) * mask.div_(keep)
    # Not by brackets, whose gradient expects that an image is selected twice.
    part = branch(*(tensor.index_select(0, kept) for tensor in (x, *others)))
    return x.index_add(0, kept, part.to(x.dtype), alpha=1.0 / keep)


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from all channels' means (arXiv 1709.01507)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(dim, dim // SQUEEZE, bias=False)
        self.expand = nn.Linear(dim // SQUEEZE, dim, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        return x_BCHW * self.gates(channel_means(x_BCHW))[:, :, None, None]

    def gates(self, means_BC: Tensor) -> Tensor:
        """Return the factor of each channel: (B, C) → (B, C)."""
        return self.expand(F.gelu(self.reduce(means_BC))).sigmoid()


class Mlp(nn.Module):
    """Linear, exact GELU, Linear, on the last axis."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.activation = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, C)."""
        return self.fc2(self.activation(self.fc1(x)))


class ConvNormReLU(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', ⌈H/stride⌉, ⌈W/stride⌉)."""
        return F.relu(self.norm(self.conv(x_BCHW)))


def drop_path_rates(last: float, depths: tuple[int, ...]) -> list[list[float]]:
    """Rates growing linearly from 0 to `last` over all blocks, cut into stages."""
    steps = max(1, sum(depths) - 1)
    rates = (last * block / steps for block in count())
    return [list(islice(rates, depth)) for depth in depths]


def init_linear_(module: nn.Module) -> None:
    """Truncated normal 0.02 for every Linear's weight and 0 for its bias; convolutions keep torch's default."""
    for layer in _linears(module):
        nn.init.trunc_normal_(layer.weight, std=INIT_STD)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _linears(module: nn.Module) -> Iterator[nn.Linear]:
    return (layer for layer in module.modules() if isinstance(layer, nn.Linear))

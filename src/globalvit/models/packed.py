"""Parts of a deployed network that oneDNN computes: Linears that hold their weights in its own layout."""

import torch
from torch import Tensor, nn

from globalvit.models.gcvit import Block
from globalvit.models.gpvit import LocalBlock
from globalvit.models.layers import to_nchw, to_nhwc


class PackedLinear(nn.Module):
    """A Linear whose weight lies as oneDNN wants it, with the exact GELU or a residual sum in the same pass."""

    def __init__(self, linear: nn.Linear, *, has_gelu: bool = False) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.activation = "gelu" if has_gelu else "none"

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, C'), through the GELU if there is one."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.activation, [], "none")

    def added(self, x: Tensor, residual: Tensor) -> Tensor:
        """(…, C) and (…, C') → their sum (…, C')."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")


class PackedConv(nn.Module):
    """A convolution with the exact GELU or a ReLU in the same pass."""

    def __init__(self, conv: nn.Conv2d, activation: str) -> None:
        super().__init__()
        self.conv, self.activation = conv, activation

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H', W')."""
        conv, weight = self.conv, self.conv.weight
        geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        return torch.ops.mkldnn._convolution_pointwise(
            x_BCHW, weight, conv.bias, *geometry, self.activation, [], "none"
        )


class PackedBlock(nn.Module):
    """A block of either network whose residual sums happen inside the Linears."""

    def __init__(self, block: Block | LocalBlock) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2, self.mlp = block.norm1, block.attention, block.norm2, block.mlp
        self.proj, self.fc2 = PackedLinear(block.attention.proj), PackedLinear(block.mlp.fc2)
        self.attention.add_module("proj", nn.Identity())
        self.mlp.add_module("fc2", nn.Identity())
        self.depthwise = block.depthwise if isinstance(block, LocalBlock) else None

    def forward(self, x_BHWC: Tensor, *query: Tensor) -> Tensor:
        """(B, H, W, C), and the query of global blocks → (B, H, W, C)."""
        x = self.proj.added(self.attention(self.norm1(x_BHWC), *query), x_BHWC)
        x = self.fc2.added(self.mlp(self.norm2(x)), x)
        return x if self.depthwise is None else to_nhwc(self.depthwise(to_nchw(x)))

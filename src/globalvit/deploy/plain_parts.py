"""Parts of a deployed copy that PyTorch or oneDNN computes: folded layers, and Linears in oneDNN's layout."""

import torch.nn.functional as F
from torch import Tensor, nn

from globalvit import pytorch
from globalvit.deploy.part import DeployedPart, PreparedPart, folded
from globalvit.models import gcvit, gpvit
from globalvit.models.layers import ConvNormReLU, Mlp, to_nchw, to_nhwc
from globalvit.pytorch import with_child


class FoldedConvReLU(DeployedPart):
    """A convolution with its batch norm folded in, and ReLU."""

    def __init__(self, layer: ConvNormReLU) -> None:
        super().__init__()
        self.conv = nn.utils.fuse_conv_bn_eval(layer.conv, layer.norm)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H', W')."""
        return F.relu(self.conv(x_BCHW))


class FoldedBlock(DeployedPart):
    """A block of GC ViT with its layer scale folded in."""

    def __init__(self, block: gcvit.Block) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = (
            block.norm1,
            with_child(block.attention, "proj", nn.Identity()),
            block.norm2,
        )
        self.mlp = with_child(block.mlp, "fc2", nn.Identity())
        self.proj = folded(block.attention.proj, scale=block.scale1)
        self.fc2 = folded(block.mlp.fc2, scale=block.scale2)

    def forward(self, x_BHWC: Tensor, query_BhNd: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, C)."""
        x = x_BHWC + self.proj(self.attention(x_BHWC, query_BhNd, self.norm1))
        return x + self.fc2(self.mlp(self.norm2(x)))


class OneDNNLinear(PreparedPart):
    """A Linear in oneDNN's layout, with the exact GELU or a residual in the same pass."""

    def __init__(self, linear: nn.Linear, *, has_gelu: bool = False) -> None:
        super().__init__(linear.weight.dtype)
        self.packed = pytorch.onednn_weight(linear.weight.detach())
        self.offset = None if linear.bias is None else linear.bias.detach()
        self.activation = "gelu" if has_gelu else "none"

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, K), through GELU if there is one."""
        self.check(x)
        return pytorch.onednn_linear(x, self.packed, self.offset, self.activation)

    def added(self, x: Tensor, residual: Tensor) -> Tensor:
        """(…, C) and (…, K) → their sum (…, K)."""
        return pytorch.onednn_linear_sum(x, residual, self.packed, self.offset)


class OneDNNConv(PreparedPart):
    """A convolution with its batch norm folded in and ReLU in the same pass."""

    def __init__(self, layer: ConvNormReLU) -> None:
        super().__init__(layer.conv.weight.dtype)
        self.conv = nn.utils.fuse_conv_bn_eval(layer.conv, layer.norm)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H', W')."""
        self.check(x_BCHW)
        return pytorch.onednn_convolution(x_BCHW, self.conv, "relu")


class OneDNNBranch(PreparedPart):
    """GC ViT's convolutional branch, with GELU in the pass of the depthwise convolution."""

    def __init__(self, branch: gcvit.FusedMBConv) -> None:
        super().__init__(branch.pointwise.weight.dtype)
        self.depthwise, self.squeeze_excite, self.pointwise = branch.depthwise, branch.squeeze_excite, branch.pointwise

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        self.check(x_BCHW)
        activated = pytorch.onednn_convolution(x_BCHW, self.depthwise, "gelu")
        return x_BCHW + self.pointwise(self.squeeze_excite(activated))


class OneDNNBlock(PreparedPart):
    """A block of either network whose residuals are added in the passes of its Linears."""

    def __init__(self, block: gcvit.Block | gpvit.LocalBlock) -> None:
        super().__init__(block.mlp.fc1.weight.dtype)
        scale1, scale2 = (block.scale1, block.scale2) if isinstance(block, gcvit.Block) else (None, None)
        self.norm1, self.attention, self.norm2 = (
            block.norm1,
            with_child(block.attention, "proj", nn.Identity()),
            block.norm2,
        )
        self.proj = OneDNNLinear(folded(block.attention.proj, scale=scale1))
        self.fc1, self.fc2 = (
            OneDNNLinear(block.mlp.fc1, has_gelu=True),
            OneDNNLinear(folded(block.mlp.fc2, scale=scale2)),
        )
        self.depthwise = block.depthwise if isinstance(block, gpvit.LocalBlock) else None

    def forward(self, x_BHWC: Tensor, *query: Tensor) -> Tensor:
        """(B, H, W, C), and the query of GC ViT's blocks → (B, H, W, C)."""
        self.check(x_BHWC)
        x = self.proj.added(self.attention(self.norm1(x_BHWC), *query), x_BHWC)
        x = self.fc2.added(self.fc1(self.norm2(x)), x)
        return x if self.depthwise is None else to_nhwc(self.depthwise(to_nchw(x)))


def onednn_mlp(mlp: Mlp) -> nn.Module:
    """Return an MLP of oneDNN's Linears."""
    return nn.Sequential(OneDNNLinear(mlp.fc1, has_gelu=True), OneDNNLinear(mlp.fc2))

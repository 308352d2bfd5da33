"""Models for inference only: neighbouring operations folded into one another, weights laid out for the CPU at hand.

What is folded changes outputs by rounding only: layer scale into the Linear before it, the affine part of a norm into
the Linear after it, batch norms into the convolutions before them. A norm before windowed attention keeps its affine
part: grids are padded with zeros between the two. On a CPU, Linears then become operators of oneDNN that hold their
weights in its own layout and compute the GELU or the residual sum that follows in the same pass.
"""

import copy
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from globalvit.kernels.native import library
from globalvit.kernels.native.call import layer_norm
from globalvit.models.gcvit import Block, FusedMBConv
from globalvit.models.gpvit import LocalBlock, Scatter
from globalvit.models.layers import Mlp, to_nchw, to_nhwc

Model = TypeVar("Model", bound=nn.Module)
PACKED_DTYPES = (torch.float32, torch.bfloat16)


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


class ConvGELU(nn.Module):
    """A convolution with the exact GELU in the same pass."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H', W')."""
        conv = self.conv
        return torch.ops.mkldnn._convolution_pointwise(
            x_BCHW, conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups, "gelu", [], "none"
        )


class NativeNorm(nn.Module):
    """A layer norm over the last axis by the compiled kernel, float32 inside."""

    weight: Tensor
    bias: Tensor

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        (dim,) = norm.normalized_shape
        self.eps = norm.eps
        weight = torch.ones(dim) if norm.weight is None else norm.weight.detach().float()
        bias = torch.zeros(dim) if norm.bias is None else norm.bias.detach().float()
        self.register_buffer("weight", weight.contiguous(), persistent=False)
        self.register_buffer("bias", bias.contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, C)."""
        return layer_norm(x.contiguous(), self.weight, self.bias, self.eps)


class PackedBlock(nn.Module):
    """A block of either network whose residual sums happen inside the Linears."""

    def __init__(self, block: Block | LocalBlock) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2, self.mlp = block.norm1, block.attention, block.norm2, block.mlp
        self.proj, self.fc2 = PackedLinear(block.attention.proj), PackedLinear(block.mlp.fc2)
        _put(self.attention, proj=nn.Identity())
        _put(self.mlp, fc2=nn.Identity())
        self.depthwise = block.depthwise if isinstance(block, LocalBlock) else None

    def forward(self, x_BHWC: Tensor, *query: Tensor) -> Tensor:
        """(B, H, W, C), and the query of global blocks → (B, H, W, C)."""
        x = self.proj.added(self.attention(self.norm1(x_BHWC), *query), x_BHWC)
        x = self.fc2.added(self.mlp(self.norm2(x)), x)
        return x if self.depthwise is None else to_nhwc(self.depthwise(to_nchw(x)))


def deploy(model: Model) -> Model:
    """A folded copy for inference on the device and in the dtype that `model` has now.

    The copy is in evaluation mode, has no gradients and no state dict worth keeping; `model` stays as it is.

    Returns:
        The copy; its outputs are those of `model` up to rounding (1e-5 relative in float32).
    """
    folded = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
    with torch.no_grad():
        for module in list(folded.modules()):
            _fold(module)
        if can_pack(next(folded.parameters())):
            _pack(folded)
    return folded


def can_pack(parameter: Tensor) -> bool:
    """Whether oneDNN computes with such parameters here."""
    is_known = (
        parameter.device.type == "cpu" and parameter.dtype in PACKED_DTYPES and torch.backends.mkldnn.is_available()
    )
    return is_known and (parameter.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _fold(module: nn.Module) -> None:
    if isinstance(module, Block):
        for name, linear in (("scale1", module.attention.proj), ("scale2", module.mlp.fc2)):
            if getattr(module, name) is not None:
                _fold_scale(linear, getattr(module, name))
                module.register_parameter(name, None)
    if isinstance(module, Block | LocalBlock | Scatter):
        _fold_norm(module.norm2, module.mlp.fc1)
    if isinstance(module, Scatter):
        _fold_norm(module.norm_query, module.query)
    conv, norm = getattr(module, "conv", None), getattr(module, "norm", None)
    if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
        _put(module, conv=fuse_conv_bn_eval(conv, norm), norm=nn.Identity())


def _fold_scale(linear: nn.Linear, scale: Tensor) -> None:
    linear.weight.copy_(linear.weight.float() * scale.float()[:, None])
    linear.bias.copy_(linear.bias.float() * scale.float())


def _fold_norm(norm: nn.LayerNorm, linear: nn.Linear) -> None:
    weight = linear.weight.float()
    linear.bias.copy_(linear.bias.float() + weight @ norm.bias.float())
    linear.weight.copy_(weight * norm.weight.float())
    norm.register_parameter("weight", None)
    norm.register_parameter("bias", None)
    norm.elementwise_affine = False


def _pack(model: nn.Module) -> None:
    for module in list(model.modules()):
        if isinstance(module, Mlp):
            _put(module, fc1=PackedLinear(module.fc1, has_gelu=True), activation=nn.Identity())
        elif isinstance(module, FusedMBConv):
            _put(module, depthwise=ConvGELU(module.depthwise), activation=nn.Identity())
    _replace(model, (Block, LocalBlock), PackedBlock)
    _replace(model, nn.Linear, PackedLinear)
    if library.unavailable() is None:
        _replace(model, nn.LayerNorm, NativeNorm)


def _put(module: nn.Module, **children: nn.Module) -> None:
    for name, child in children.items():
        module.add_module(name, child)


def _replace(model: nn.Module, kinds: type | tuple[type, ...], make: Callable[..., nn.Module]) -> None:
    for parent, name, child in list(_children(model)):
        if isinstance(child, kinds):
            _put(parent, **{name: make(child)})


def _children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    return ((parent, name, child) for parent in model.modules() for name, child in parent.named_children())

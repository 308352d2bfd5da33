"""Models for inference only: neighbouring operations folded into one another, weights laid out for the CPU at hand.

What is folded changes outputs by rounding only: layer scale into the Linear before it, the affine part of a norm into
the Linear after it, batch norms into the convolutions before them. A norm before windowed attention keeps its affine
part: what windows have outside the grid is zero between the two. On a CPU, blocks are then computed by the compiled
library, or, where it has no products of the model's dtype or oneDNN has faster ones, by operators of oneDNN.
"""

import copy
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from globalvit.kernels.native import convolution, dense, library
from globalvit.models import gcvit, gpvit, native_blocks, packed
from globalvit.models.gcvit import Block, Downsample, FusedMBConv
from globalvit.models.gpvit import Gather, LocalBlock, Mix, Scatter
from globalvit.models.layers import ConvNormReLU, Mlp
from globalvit.models.native_blocks import (
    NativeBlock,
    NativeConvBranch,
    NativeConvolution,
    NativeDepthwise,
    NativeDownsample,
    NativeGather,
    NativeLinear,
    NativeMix,
    NativeNorm,
    NativeScatter,
    is_known,
)
from globalvit.models.packed import PackedBlock, PackedConv, PackedLinear

Model = TypeVar("Model", bound=nn.Module)


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
        parameter = next(folded.parameters())
        is_native = parameter.device.type == "cpu" and dense.computes(parameter.dtype)
        if is_native:
            _take_kernels(folded)
        if can_pack(parameter):
            _pack(folded, NativeLinear if is_native else PackedLinear)
    return folded


def is_deployed(model: nn.Module) -> bool:
    """Whether a model, or a part of it, is such a copy."""
    made_here = (native_blocks.__name__, packed.__name__)
    return any(type(module).__module__ in made_here for module in model.modules())


def can_pack(parameter: Tensor) -> bool:
    """Whether oneDNN computes with such parameters here."""
    is_cpu = parameter.device.type == "cpu" and torch.backends.mkldnn.is_available()
    if parameter.dtype == torch.bfloat16:
        return is_cpu and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return is_cpu and parameter.dtype == torch.float32


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


def _take_kernels(model: nn.Module) -> None:
    """Put the library's parts in the place of those that it computes faster than anyone else."""
    _replace(model, is_known, NativeBlock)
    _replace(model, lambda module: isinstance(module, Gather), NativeGather)
    _replace(model, lambda module: isinstance(module, Mix), NativeMix)
    _replace(model, lambda module: isinstance(module, Scatter), NativeScatter)
    for stem in (module for module in model.modules() if isinstance(module, gcvit.Stem)):
        if _is_downsample(stem.downsample):
            _put(stem, downsample=NativeDownsample(stem.downsample, may_overwrite=True))
    _replace(model, _is_downsample, NativeDownsample)
    _replace(model, lambda module: isinstance(module, FusedMBConv), NativeConvBranch)
    _replace(model, _is_depthwise, lambda module: NativeDepthwise(module.conv, "relu"))
    for stem in (module for module in model.modules() if isinstance(module, gpvit.Stem)):
        _put(stem, projection=NativeConvolution(stem.projection))


def _pack(model: nn.Module, linear: type[NativeLinear | PackedLinear]) -> None:
    """Put oneDNN's parts in the place of the others, and `linear` in that of single Linears."""
    for module in list(model.modules()):
        if isinstance(module, Mlp):
            _put(module, fc1=PackedLinear(module.fc1, has_gelu=True), activation=nn.Identity())
        elif isinstance(module, FusedMBConv):
            _put(module, depthwise=PackedConv(module.depthwise, "gelu"), activation=nn.Identity())
    _replace(model, _has_relu_only, lambda module: PackedConv(module.conv, "relu"))
    _replace(model, lambda module: isinstance(module, Block | LocalBlock), PackedBlock)
    _replace(model, lambda module: isinstance(module, nn.Linear), linear)
    if library.unavailable() is None:
        _replace(model, lambda module: isinstance(module, nn.LayerNorm), NativeNorm)


def _is_downsample(module: nn.Module) -> bool:
    return type(module) is Downsample and convolution.takes(module.reduction)


def _is_depthwise(module: nn.Module) -> bool:
    """Whether it is a 3×3 convolution of each channel by itself, then a folded norm and ReLU."""
    conv = module.conv if isinstance(module, ConvNormReLU) else None
    return conv is not None and conv.groups == conv.in_channels and conv.kernel_size == (3, 3) and conv.stride == (1, 1)


def _has_relu_only(module: nn.Module) -> bool:
    """Whether nothing but a ReLU is left to be done after its convolution."""
    return isinstance(module, ConvNormReLU) and isinstance(module.norm, nn.Identity)


def _put(module: nn.Module, **children: nn.Module) -> None:
    for name, child in children.items():
        module.add_module(name, child)


def _replace(model: nn.Module, is_meant: Callable[[nn.Module], bool], make: Callable[..., nn.Module]) -> None:
    for parent, name, child in list(_children(model)):
        if is_meant(child):
            _put(parent, **{name: make(child)})


def _children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    return ((parent, name, child) for parent in model.modules() for name, child in parent.named_children())

"""GC ViT's convolutional branch in a training on a CPU, out of the compiled library, forward and backward.

The gates between its convolutions are left to PyTorch. Sums over a map are made of parts that are added up in a fixed
order, so that they do not depend on the number of threads.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.profiler import record_function

from globalvit.kernels.native import dense, depthwise, library, training
from globalvit.kernels.native.call import DTYPES, check_memory

_SHAPE = tuple((name, ctypes.c_int64) for name in ("images", "height", "width", "channels", "type"))


class _DepthwiseBack(ctypes.Structure):
    """`DepthwiseBack` of depthwise_back.c."""

    _fields_ = (
        *_SHAPE,
        *((name, ctypes.c_void_p) for name in ("x", "taps", "d_out", "d_every", "d_residual", "d_x", "d_taps")),
    )


class _GatesBack(ctypes.Structure):
    """`GatesBack` of depthwise_back.c."""

    _fields_ = (*_SHAPE, *((name, ctypes.c_void_p) for name in ("x", "gates", "d_x", "gated", "d_gates")))


def trains(x_BCHW: Tensor, convolution: nn.Conv2d, pointwise: nn.Conv2d, *between: nn.Module) -> bool:
    """Whether a training step on `x_BCHW` may take the library's convolutions in these modules' place.

    As for `training.trains`, nobody may watch, nor what lies between the two.

    Args:
        x_BCHW: what goes in.
        convolution: the depthwise 3×3 one.
        pointwise: the 1×1 one.
        between: modules between the two.
    """
    dim = x_BCHW.shape[1]
    if any(map(training.is_watched, between)) or not (_is(convolution, dim, 3, dim) and _is(pointwise, dim, 1, 1)):
        return False
    return training.may_train(x_BCHW, convolution.weight, pointwise.weight)


def _is(conv: nn.Conv2d, dim: int, kernel: int, groups: int) -> bool:
    """Whether it is a convolution that keeps a map's channels and size, without bias, and no more than that."""
    wanted = nn.Conv2d, None, dim, dim, groups, (kernel, kernel), (kernel // 2, kernel // 2), (1, 1), (1, 1), "zeros"
    is_so = type(conv), conv.bias, conv.in_channels, conv.out_channels, conv.groups, conv.kernel_size, conv.padding
    return (*is_so, conv.stride, conv.dilation, conv.padding_mode) == wanted and not training.is_watched(conv)


def convolve(x_BHWC: Tensor, convolution: nn.Conv2d) -> tuple[Tensor, Tensor, Tensor]:
    """The depthwise 3×3 convolution and the exact GELU of it.

    Returns:
        (B, H, W, C) in the dtype of products, its means over H and W (B, C) in float32, and x to be added to something:
        in the dtype of products its gradient is then added up in the same pass.
    """
    dtype = training.product_dtype(x_BHWC)
    activated_BHWC, means_BC, same_BHWC = _DepthwiseGELU.apply(x_BHWC.to(dtype), convolution.weight)
    return activated_BHWC, means_BC, same_BHWC if x_BHWC.dtype == dtype else x_BHWC


def project(x_BHWC: Tensor, gates_BC: Tensor, pointwise: nn.Conv2d, residual_BHWC: Tensor) -> Tensor:
    """The 1×1 convolution of x times its gates, plus a residual: (B, H, W, C) in the residual's dtype."""
    is_one = residual_BHWC.dtype == x_BHWC.dtype
    out_BHWC = _GatedPointwise.apply(x_BHWC, gates_BC.float(), pointwise.weight, residual_BHWC if is_one else None)
    return out_BHWC if is_one else residual_BHWC + out_BHWC


class _DepthwiseGELU(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, taps = x.contiguous(), weight.detach().float().flatten(1).t().contiguous()
        ctx.save_for_backward(x, taps)
        ctx.weight = weight.shape, weight.dtype
        ctx.set_materialize_grads(False)
        return *depthwise.depthwise(x, (taps, None), "gelu"), x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x, taps), (d_out, d_means, d_residual) = ctx.saved_tensors, grad_outputs
        B, H, W, C = x.shape
        d_out = torch.zeros_like(x) if d_out is None else d_out.contiguous()
        d_every = torch.zeros(B, C) if d_means is None else d_means / (H * W)
        d_residual = None if d_residual is None else d_residual.contiguous()
        d_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        run = library.load()
        d_taps = torch.empty(B, run.depthwise_chunks(ctypes.c_int64(H)), 9, C)
        task = _DepthwiseBack(B, H, W, C, DTYPES[x.dtype], x.data_ptr(), taps.data_ptr(), d_out.data_ptr())
        task.d_every, task.d_residual = d_every.data_ptr(), dense.pointer(d_residual)
        task.d_x, task.d_taps = dense.pointer(d_x), d_taps.data_ptr()
        with record_function("globalvit::native_depthwise"):
            check_memory(run.depthwise_back(ctypes.byref(task)))
        shape, dtype = ctx.weight
        return d_x, d_taps.sum((0, 1)).t().reshape(shape).to(dtype)


class _GatedPointwise(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gates: Tensor, weight: Tensor, residual: Tensor | None) -> Tensor:
        weight = weight.flatten(1)
        ctx.save_for_backward(x, gates, weight)
        ctx.has_residual = residual is not None
        with record_function(training.SEEN_AS):
            return dense.linears(x, dense.pack_weight(weight, None, x.dtype), gates=gates, residual=residual)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x, gates, weight), d_out = ctx.saved_tensors, grad_outputs[0].contiguous()
        with record_function(training.SEEN_AS):
            d_x, *_ = training.inputs_back(d_out, x, training.UNNORMED, x.dtype, dense.pack_turned(weight, x.dtype))
            gated, d_gates = _gates_back(x, gates, d_x)
            d_weight, _ = training.outer(d_out, gated, training.UNNORMED, x.dtype)
        return d_x, d_gates, d_weight[..., None, None].to(weight.dtype), d_out if ctx.has_residual else None


def _gates_back(x: Tensor, gates: Tensor, d_gated: Tensor) -> tuple[Tensor, Tensor]:
    """What was gated, and the gradient of the gates; that of x goes to where that of the product was."""
    B, H, W, C = x.shape
    run, gated = library.load(), torch.empty_like(x)
    d_gates = torch.empty(B, run.depthwise_chunks(ctypes.c_int64(H)), C)
    task = _GatesBack(B, H, W, C, DTYPES[x.dtype], x.data_ptr(), gates.data_ptr(), d_gated.data_ptr())
    task.gated, task.d_gates = gated.data_ptr(), d_gates.data_ptr()
    run.gates_back(ctypes.byref(task))
    return gated, d_gates.sum(1)

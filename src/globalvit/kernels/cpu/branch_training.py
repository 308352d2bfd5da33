"""GC ViT's convolutional branch in training by the C kernels, forward and backward.

PyTorch computes the gates between its convolutions. Sums over a map are made of parts that are added in a fixed order,
so that they do not depend on the number of threads.
"""

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.profiler import record_function

from globalvit.kernels.cpu import library, linear_training, structs
from globalvit.kernels.cpu.convolution import ACTIVATIONS, depthwise_forward
from globalvit.kernels.cpu.dispatch import differentiable_gradients, takes_formula
from globalvit.kernels.cpu.linear import chain, pack, pack_transposed
from globalvit.kernels.cpu.linear_training import SHOWN_AS, product_dtype
from globalvit.kernels.cpu.tensors import DTYPES, address, check_memory, floats


def branch(x_BHWC: Tensor, depthwise: nn.Conv2d, squeeze_excite: Any, pointwise: nn.Conv2d) -> Tensor:
    """`ops.conv_branch` of a channels-last map: (B, H, W, C) → (B, H, W, C) in x's dtype."""
    dtype = product_dtype(x_BHWC)
    activated, means_BC, same = DepthwiseGELU.apply(x_BHWC.to(dtype), depthwise.weight)
    gates_BC = squeeze_excite.gates(means_BC.to(dtype)).float()
    if x_BHWC.dtype == dtype:
        # The residual goes through both functions, so that its gradient is added in their passes.
        return GatedPointwise.apply(activated, gates_BC, pointwise.weight, same)
    return x_BHWC + GatedPointwise.apply(activated, gates_BC, pointwise.weight, None)


class DepthwiseGELU(Function):
    """The depthwise 3×3 convolution and the exact GELU of it, its means over the map, and the input for a residual."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, H, W, C) → (B, H, W, C), (B, C) in float32, and x itself."""
        ctx.save_for_backward(x, weight)
        ctx.set_materialize_grads(False)
        out, means = depthwise_forward(x.contiguous(), _taps(weight), None, ACTIVATIONS["gelu"])
        return out, means, x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the gradients of the map and of the weights."""
        x, weight = ctx.saved_tensors
        if takes_formula(*grad_outputs):
            return tuple(differentiable_gradients(_plain_depthwise, (x, weight), ctx.needs_input_grad, grad_outputs))
        d_out, d_means, d_residual = grad_outputs
        x, taps, (B, H, W, C), run = x.contiguous(), _taps(weight), x.shape, library.load()
        d_out = torch.zeros_like(x) if d_out is None else d_out.contiguous()
        d_every = floats(x, B, C).zero_() if d_means is None else (d_means / (H * W)).contiguous()
        d_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        chunks, shape, dtypes = run.depthwise_chunks(H), (B, H, W, C), (x.dtype,)
        d_taps = floats(x, B, chunks, 9, C)
        task = structs.DepthwiseBack(*shape, DTYPES[x.dtype], address(x, shape, dtypes), address(taps, (9, C)))
        task.d_out, task.d_every = address(d_out, shape, dtypes), address(d_every, (B, C))
        if d_residual is not None:
            d_residual = d_residual.contiguous()
            task.d_residual = address(d_residual, shape, dtypes)
        if d_x is not None:
            task.d_x = address(d_x, shape, dtypes)
        task.d_taps = address(d_taps, (B, chunks, 9, C))
        with record_function("globalvit::depthwise"):
            check_memory(run.depthwise_back(ctypes.byref(task)))
        return d_x, d_taps.sum((0, 1)).t().reshape(weight.shape).to(weight.dtype)


class GatedPointwise(Function):
    """The 1×1 convolution of a map times its gates, plus a residual if there is one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gates: Tensor, weight: Tensor, residual: Tensor | None) -> Tensor:
        """(B, H, W, C), gates (B, C) → (B, H, W, C)."""
        ctx.save_for_backward(x, gates, weight)
        ctx.has_residual = residual is not None
        with record_function(SHOWN_AS):
            packed = pack(weight.flatten(1), None, x.dtype)
            return chain(x.detach(), packed, gates=gates.detach(), residual=_detached(residual))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the gradients of the map, the gates, the weights and the residual."""
        (x, gates, weight), (d_out,) = ctx.saved_tensors, grad_outputs
        d_residual = d_out if ctx.has_residual else None
        if takes_formula(d_out):
            needed = ctx.needs_input_grad[:3]
            return *differentiable_gradients(_plain_pointwise, (x, gates, weight), needed, d_out), d_residual
        x, gates, d_out, flat = x.contiguous(), gates.contiguous(), d_out.contiguous(), weight.flatten(1)
        with record_function(SHOWN_AS):
            transposed = pack_transposed(flat, x.dtype)
            d_x, *_ = linear_training.gradients_of_inputs(d_out, x, None, x.dtype, transposed)
            gated, d_gates = _gates_back(x, gates, d_x)
            d_weight, _ = linear_training.gradients_of_weights(d_out, gated, None, x.dtype)
        return d_x, d_gates, d_weight.reshape(weight.shape).to(weight.dtype), d_residual


def _gates_back(x: Tensor, gates: Tensor, d_gated: Tensor) -> tuple[Tensor, Tensor]:
    """Return x times its gates and the gradient of the gates; that of x replaces `d_gated`."""
    shape, dtypes, run, gated = tuple(x.shape), (x.dtype,), library.load(), torch.empty_like(x)
    B, H, _, C = shape
    chunks = run.depthwise_chunks(H)
    d_gates = floats(x, B, chunks, C)
    task = structs.GatesBack(*shape, DTYPES[x.dtype], address(x, shape, dtypes), address(gates, (B, C)))
    task.d_x, task.gated = address(d_gated, shape, dtypes), address(gated, shape, dtypes)
    task.d_gates = address(d_gates, (B, chunks, C))
    run.gates_back(ctypes.byref(task))
    return gated, d_gates.sum(1)


def _taps(weight: Tensor) -> Tensor:
    return weight.detach().float().flatten(1).t().contiguous()


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def _plain_depthwise(x_BHWC: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast("cpu", enabled=False):
        x_BCHW = x_BHWC.permute(0, 3, 1, 2)
        out = F.gelu(F.conv2d(x_BCHW, weight.to(x_BHWC.dtype), padding=1, groups=len(weight))).permute(0, 2, 3, 1)
        return out, out.float().mean((1, 2)), x_BHWC


def _plain_pointwise(x_BHWC: Tensor, gates: Tensor, weight: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        gated = x_BHWC * gates[:, None, None].to(x_BHWC.dtype)
        return F.linear(gated, weight.flatten(1).to(x_BHWC.dtype))

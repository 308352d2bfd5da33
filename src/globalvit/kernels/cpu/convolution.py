"""Convolutions of channels-last maps by the C kernels, as operators of PyTorch; no gradients."""

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.library import custom_op
from torch.utils.flop_counter import register_flop_formula

from globalvit.kernels.cpu import library, structs
from globalvit.kernels.cpu.dispatch import is_direct
from globalvit.kernels.cpu.linear import NO_NORM, Norm, pack, pad_to_vectors
from globalvit.kernels.cpu.tensors import DTYPES, address, check_memory, floats, optional

ACTIVATIONS = {"none": 0, "gelu": 1, "relu": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedConv:
    """A convolution in the kernels' layout.

    Attributes:
        weight: (rows of the kernel, packed numbers) as float32.
        bias: (outputs,) float32, padded with zeros to whole vectors, or None.
        geometry: kernel, stride, padding, outputs.
        inputs: channels that come in.
        dtype: of the maps.
    """

    weight: Tensor
    bias: Tensor | None
    geometry: tuple[int, int, int, int]
    inputs: int
    dtype: torch.dtype


def computes(conv: nn.Conv2d) -> bool:
    """Whether the kernels compute such a convolution: square, of all channels, with an even number of them."""
    sides = (conv.kernel_size, conv.stride, conv.padding)
    is_simple = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    return is_simple and conv.in_channels % 2 == 0 and all(len(set(pair)) == 1 and pair != "same" for pair in sides)


def pack_conv(conv: nn.Conv2d) -> PackedConv:
    """Pack a convolution for maps of its own dtype."""
    outputs, inputs, kernel, _ = conv.weight.shape
    rows = conv.weight.detach().permute(2, 0, 3, 1).reshape(kernel, outputs, kernel * inputs)
    weight = torch.stack([pack(row, None, row.dtype).weight for row in rows])
    bias = None if conv.bias is None else pad_to_vectors(conv.bias)
    geometry = (kernel, conv.stride[0], int(conv.padding[0]), outputs)
    return PackedConv(weight=weight, bias=bias, geometry=geometry, inputs=inputs, dtype=conv.weight.dtype)


def convolve(x_BHWC: Tensor, conv: PackedConv, norm: Norm | None = None) -> Tensor:
    """Convolve, then apply a layer norm if there is one: (B, H, W, C) → (B, H', W', C') in x's dtype."""
    run = _convolve if is_direct(x_BHWC) else convolution
    norms = (None, None, -1.0) if norm is None else (norm.factors, norm.offsets, norm.eps)
    return run(x_BHWC, conv.weight, conv.bias, *conv.geometry, *norms)


def taps_of(conv: nn.Conv2d) -> tuple[Tensor, Tensor | None]:
    """Return the weights (9, C) and the bias (C,) of a depthwise 3×3 convolution, copied as float32."""
    bias = None if conv.bias is None else conv.bias.detach().float().clone()
    return conv.weight.detach().float().flatten(1).t().contiguous(), bias


def convolve_depthwise(
    x_BHWC: Tensor, taps: tuple[Tensor, Tensor | None], activation: str = "none"
) -> tuple[Tensor, Tensor]:
    """Convolve 3×3, channel by channel, zero-padded, then apply an activation of `ACTIVATIONS`.

    Returns:
        (B, H, W, C) in x's dtype, and its means over H and W (B, C) in float32.
    """
    run = depthwise_forward if is_direct(x_BHWC) else depthwise
    return run(x_BHWC, *taps, ACTIVATIONS[activation])


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel: int,
    stride: int,
    padding: int,
    outputs: int,
    factors: Tensor | None,
    offsets: Tensor | None,
    eps: float,
) -> Tensor:
    x, dtypes = x.contiguous(), (x.dtype,)
    B, H, W, C = x.shape
    shape = _out_shape(x.shape, kernel, stride, padding, outputs)
    out = x.new_empty(shape)
    if x.numel() == 0 or out.numel() == 0:
        return out
    task = structs.Convolution(B, H, W, C, DTYPES[x.dtype], address(x, (B, H, W, C), dtypes))
    task.kernel, task.stride, task.padding = kernel, stride, padding
    _, task.out_height, task.out_width, task.outputs = shape
    task.weight, task.packed_row = address(weight, (kernel, weight.shape[1])), weight.shape[1]
    task.bias = None if bias is None else address(bias, tuple(bias.shape))
    task.norm = NO_NORM if eps < 0 else Norm(factors=factors, offsets=offsets, eps=eps).struct(outputs)
    task.out = address(out, shape, dtypes)
    check_memory(library.load().convolution(ctypes.byref(task)))
    return out


def depthwise_forward(x: Tensor, taps: Tensor, offsets: Tensor | None, activation: int) -> tuple[Tensor, Tensor]:
    """`convolve_depthwise` without PyTorch's dispatcher."""
    x, dtypes, run = x.contiguous(), (x.dtype,), library.load()
    B, H, W, C = x.shape
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out, floats(x, B, C).zero_()
    chunks = run.depthwise_chunks(H)
    sums = floats(x, B, chunks, C)
    task = structs.Depthwise(B, H, W, C, DTYPES[x.dtype], address(x, (B, H, W, C), dtypes), address(taps, (9, C)))
    task.offsets, task.activation = optional(offsets, (C,)), activation
    task.out, task.sums = address(out, (B, H, W, C), dtypes), address(sums, (B, chunks, C))
    run.depthwise(ctypes.byref(task))
    return out, sums.sum(1).div_(H * W)


def _out_shape(shape: Any, kernel: int, stride: int, padding: int, outputs: int) -> tuple[int, int, int, int]:
    rows, columns = ((side + 2 * padding - kernel) // stride + 1 for side in shape[1:3])
    return shape[0], rows, columns, outputs


convolution = custom_op("globalvit::convolution", _convolve, mutates_args=(), device_types="cpu")
depthwise = custom_op("globalvit::depthwise", depthwise_forward, mutates_args=(), device_types="cpu")


@convolution.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:  # noqa: ARG001
    return x.new_empty(_out_shape(x.shape, *geometry[:4]))


@depthwise.register_fake
def _(x: Tensor, taps: Tensor, offsets: Tensor | None, activation: int) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return x.new_empty(x.shape), taps.new_empty((x.shape[0], x.shape[3]))


@register_flop_formula(torch.ops.globalvit.convolution)
def _(x: torch.Size, weight: torch.Size, bias: torch.Size | None, *geometry: Any, **_: Any) -> int:  # noqa: ARG001
    B, rows, columns, outputs = _out_shape(x, *geometry[:4])
    return 2 * B * rows * columns * outputs * geometry[0] ** 2 * x[3]


@register_flop_formula(torch.ops.globalvit.depthwise)
def _(x: torch.Size, *_: object, **__: object) -> int:
    return 2 * 9 * x.numel()

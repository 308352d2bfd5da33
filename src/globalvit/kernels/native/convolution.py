"""Convolution out of the compiled library, with a layer norm after it: `globalvit::native_convolution`; forward."""

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.library import custom_op
from torch.utils.flop_counter import register_flop_formula

from globalvit.kernels.native import library
from globalvit.kernels.native.call import DTYPES, check_memory
from globalvit.kernels.native.dense import (
    Norm,
    NormStruct,
    check_dtype,
    norm_struct,
    pack_weight,
    pointer,
    whole_vectors,
)
from globalvit.kernels.native.direct import is_direct


class _Convolution(ctypes.Structure):
    """`Convolution` of convolution.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("images", "height", "width", "inputs", "type")),
        ("x", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("kernel", "stride", "padding", "out_height", "out_width", "outputs")),
        ("weight", ctypes.c_void_p),
        ("packed_row", ctypes.c_int64),
        ("bias", ctypes.c_void_p),
        ("norm", NormStruct),
        ("out", ctypes.c_void_p),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedConv:
    """A convolution as the library reads it.

    Attributes:
        weight: (rows of the kernel, packed numbers) float32, whatever it holds.
        bias: (outputs,) float32 and zeros behind it that fill the last vector, or None.
        geometry: kernel, stride, padding, outputs.
        inputs: channels that come in.
        dtype: of the maps it takes.
    """

    weight: Tensor
    bias: Tensor | None
    geometry: tuple[int, int, int, int]
    inputs: int
    dtype: torch.dtype


def takes(conv: nn.Conv2d) -> bool:
    """Whether the library computes such a convolution: square, of all channels, whose number has whole pairs."""
    one_sided = (conv.kernel_size, conv.stride, conv.padding)
    is_plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    return is_plain and conv.in_channels % 2 == 0 and all(len(set(both)) == 1 and both != "same" for both in one_sided)


def pack(conv: nn.Conv2d) -> PackedConv:
    """Lay a convolution out for the library, in the dtype it has."""
    outputs, inputs, kernel, _ = conv.weight.shape
    rows = conv.weight.detach().permute(2, 0, 3, 1).reshape(kernel, outputs, kernel * inputs)
    weight = torch.stack([pack_weight(row, None, row.dtype).weight for row in rows])
    bias = None if conv.bias is None else whole_vectors(conv.bias)
    geometry = (kernel, conv.stride[0], int(conv.padding[0]), outputs)
    return PackedConv(weight=weight, bias=bias, geometry=geometry, inputs=inputs, dtype=conv.weight.dtype)


def convolve(x_BHWC: Tensor, conv: PackedConv, norm: Norm | None = None) -> Tensor:
    """Convolve and norm: (B, H, W, C) → (B, H', W', C') in x's dtype, float32 or bfloat16.

    Raises:
        ValueError: x is not of the dtype that the weights were packed for.
    """
    check_dtype(x_BHWC, conv.dtype)
    assert x_BHWC.shape[-1] == conv.inputs, (x_BHWC.shape, conv.inputs)
    run = _convolve if is_direct(x_BHWC) else native_convolution
    norms = (None, None, -1.0) if norm is None else (norm.factors, norm.offsets, norm.eps)
    return run(x_BHWC, conv.weight, conv.bias, *conv.geometry, *norms)


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
    x = x.contiguous()
    B, H, W, C = x.shape
    out = x.new_empty(_out_shape(x.shape, kernel, stride, padding, outputs))
    task = _Convolution(B, H, W, C, DTYPES[x.dtype], x.data_ptr(), kernel, stride, padding, *out.shape[1:])
    task.weight, task.packed_row, task.bias = weight.data_ptr(), weight.shape[1], pointer(bias)
    task.norm, task.out = norm_struct(outputs if eps >= 0 else 0, factors, offsets, eps), out.data_ptr()
    check_memory(library.load().convolution(ctypes.byref(task)))
    return out


def _out_shape(shape: Any, kernel: int, stride: int, padding: int, outputs: int) -> tuple[int, int, int, int]:
    rows, columns = ((side + 2 * padding - kernel) // stride + 1 for side in shape[1:3])
    return shape[0], rows, columns, outputs


native_convolution = custom_op("globalvit::native_convolution", _convolve, mutates_args=(), device_types="cpu")


@native_convolution.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:  # noqa: ARG001
    return x.new_empty(_out_shape(x.shape, *geometry[:4]))


@register_flop_formula(torch.ops.globalvit.native_convolution)
def _(x: torch.Size, weight: torch.Size, bias: torch.Size | None, *geometry: Any, **_: Any) -> int:  # noqa: ARG001
    B, rows, columns, outputs = _out_shape(x, *geometry[:4])
    return 2 * B * rows * columns * outputs * geometry[0] ** 2 * x[3]

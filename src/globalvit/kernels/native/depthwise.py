"""Depthwise convolution out of the compiled library: `globalvit::native_depthwise`; forward."""

import ctypes

import torch
from torch import Tensor, nn
from torch.library import custom_op
from torch.utils.flop_counter import register_flop_formula

from globalvit.kernels.native import library
from globalvit.kernels.native.call import DTYPES
from globalvit.kernels.native.direct import is_direct

ACTIVATIONS = {"none": 0, "gelu": 1, "relu": 2}


class _Depthwise(ctypes.Structure):
    """`Depthwise` of depthwise.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("images", "height", "width", "channels", "type")),
        *((name, ctypes.c_void_p) for name in ("x", "taps", "offsets")),
        ("activation", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("out", "sums")),
    )


def taps_of(conv: nn.Conv2d) -> tuple[Tensor, Tensor | None]:
    """The weights (9, C) and the bias (C,) of a depthwise 3×3 convolution in float32."""
    bias = None if conv.bias is None else conv.bias.detach().float().clone()
    return conv.weight.detach().float().flatten(1).t().contiguous(), bias


def depthwise(x_BHWC: Tensor, taps: tuple[Tensor, Tensor | None], activation: str = "none") -> tuple[Tensor, Tensor]:
    """Convolve 3×3, channel by channel, zero-padded, and activate.

    Args:
        x_BHWC: float32 or bfloat16.
        taps: as `taps_of` gives them.
        activation: a word of `ACTIVATIONS`.

    Returns:
        (B, H, W, C) in x's dtype, and its means over H and W (B, C) in float32.
    """
    run = _depthwise if is_direct(x_BHWC) else native_depthwise
    return run(x_BHWC, *taps, ACTIVATIONS[activation])


def _depthwise(x: Tensor, taps: Tensor, offsets: Tensor | None, activation: int) -> tuple[Tensor, Tensor]:
    x = x.contiguous()
    B, H, W, C = x.shape
    run = library.load()
    out, sums = torch.empty_like(x), torch.empty((B, run.depthwise_chunks(ctypes.c_int64(H)), C), dtype=torch.float32)
    task = _Depthwise(B, H, W, C, DTYPES[x.dtype], x.data_ptr(), taps.data_ptr())
    task.offsets, task.activation = None if offsets is None else offsets.data_ptr(), activation
    task.out, task.sums = out.data_ptr(), sums.data_ptr()
    run.depthwise(ctypes.byref(task))
    return out, sums.sum(1).div_(H * W)


native_depthwise = custom_op("globalvit::native_depthwise", _depthwise, mutates_args=(), device_types="cpu")


@native_depthwise.register_fake
def _(x: Tensor, taps: Tensor, offsets: Tensor | None, activation: int) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return x.new_empty(x.shape), taps.new_empty((x.shape[0], x.shape[3]))


@register_flop_formula(torch.ops.globalvit.native_depthwise)
def _(x: torch.Size, *_: object, **__: object) -> int:
    return 2 * 9 * x.numel()

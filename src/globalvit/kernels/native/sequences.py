"""Attention over whole sequences out of the compiled library: `globalvit::native_sequences`, for inference only."""

import ctypes

import torch
from torch import Tensor
from torch.library import custom_op
from torch.utils.flop_counter import register_flop_formula

from globalvit.kernels.native import library
from globalvit.kernels.native.call import DTYPES, check_memory
from globalvit.kernels.native.direct import is_direct


class _Sequences(ctypes.Structure):
    """`Sequences` of sequences.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("images", "queries", "keys", "heads", "dim", "type")),
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "out")),
        ("scale", ctypes.c_float),
    )


def attention(q_BNC: Tensor, k_BSC: Tensor, v_BSC: Tensor, heads: int) -> Tensor:
    """softmax(q kᵀ/√d)·v: (B, N, C) and twice (B, S, C), float32 or bfloat16 → (B, N, C)."""
    run = _attention if is_direct(q_BNC, k_BSC, v_BSC) else native_sequences
    return run(q_BNC, k_BSC, v_BSC, heads)


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    (B, N, C), S, out = q.shape, k.shape[1], q.new_empty(q.shape)
    addresses = (tensor.data_ptr() for tensor in (q, k, v, out))
    task = _Sequences(B, N, S, heads, C // heads, DTYPES[q.dtype], *addresses, (C // heads) ** -0.5)
    check_memory(library.load().attention_sequences(ctypes.byref(task)))
    return out


native_sequences = custom_op("globalvit::native_sequences", _attention, mutates_args=(), device_types="cpu")


@native_sequences.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:  # noqa: ARG001
    return q.new_empty(q.shape)


@register_flop_formula(torch.ops.globalvit.native_sequences)
def _(q: torch.Size, k: torch.Size, v: torch.Size, heads: int, *_: object, **__: object) -> int:  # noqa: ARG001
    B, N, C = q
    return 4 * B * N * k[1] * C

"""Handing tensors to the compiled library.

Legend: `B` images · `H W` grid · `C` channels · `h` heads · `d` channels a head · `P` parts of a sum over windows.
"""

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from globalvit.kernels.native import library

DTYPES = {torch.float32: 0, torch.bfloat16: 1}
TOKENS_A_PART = 1024


class _Task(ctypes.Structure):
    """`Task` of attention.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("images", "height", "width", "rows", "columns", "heads", "dim", "type")),
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "no_query", "no_key", "no_value")),
        *((name, ctypes.c_int64) for name in ("stride", "is_global")),
        ("table", ctypes.c_void_p),
        ("table_type", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("taps", "offsets")),
        ("scale", ctypes.c_float),
    )


class _Gradients(ctypes.Structure):
    """`Gradients` of attention_back.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key", "value")),
        ("stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("global_query", "table", "taps", "offsets")),
        *((name, ctypes.c_int64) for name in ("parts", "windows_a_part")),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One attention over all windows of a batch. All tensors are contiguous and on the CPU.

    Attributes:
        projected: (B, H, W, parts · C), float32 or bfloat16.
        parts: 3 where q, k and v lie side by side, 2 where k and v do.
        first: the first channel of each part that is attended to.
        channels: how many are, cut as heads × d.
        shape: rows and columns of a window.
        heads: their number.
        query: (B, h, N, d) where `parts` is 2, as `projected` in dtype.
        table: (L, h) biases, query minus key, float32 or bfloat16.
        taps: (9, channels) float32, the convolution of the values.
        offsets: (channels,) float32, its bias.
        outside: (parts · C,), what stands for tokens that windows have outside the grid; None where there are none.
    """

    projected: Tensor
    parts: int
    first: int
    channels: int
    shape: tuple[int, int]
    heads: int
    query: Tensor | None = None
    table: Tensor | None = None
    taps: Tensor | None = None
    offsets: Tensor | None = None
    outside: Tensor | None = None

    @property
    def dim(self) -> int:
        """Channels a head."""
        return self.channels // self.heads

    @property
    def tokens(self) -> int:
        """Tokens of a window."""
        return self.shape[0] * self.shape[1]

    @property
    def sum_parts(self) -> tuple[int, int]:
        """How many parts a sum over an image's windows has, and how many windows one of them: never by threads."""
        _, H, W, _ = self.projected.shape
        count = H // self.shape[0] * (W // self.shape[1])
        windows_a_part = max(1, TOKENS_A_PART // self.tokens)
        return -(-count // windows_a_part), windows_a_part


@dataclass(frozen=True, kw_only=True, slots=True)
class Sums:
    """Where sums over windows go, in parts: zeros of float32 (B, h, P, …), None for what the case does not have."""

    query: Tensor | None = None
    table: Tensor | None = None
    taps: Tensor | None = None
    offsets: Tensor | None = None


def forward(case: Case, out: Tensor) -> None:
    """Write the answers to the channels of `out` (B, H, W, C) that belong to `case`."""
    task = _task(case)
    failed = library.load().attention_forward(
        ctypes.byref(task), ctypes.c_void_p(_address(out, case.first)), ctypes.c_int64(out.shape[-1])
    )
    check_memory(failed)


def backward(case: Case, gradient: Tensor, d_projected: Tensor, sums: Sums) -> None:
    """Write the gradient of `case.projected` from that of the answers (B, H, W, C), and add up `sums`."""
    task, (parts, windows_a_part) = _task(case), case.sum_parts
    query, key, value = _parts(d_projected, case)
    to = _Gradients(
        query=query,
        key=key,
        value=value,
        stride=d_projected.shape[-1],
        global_query=_pointer(sums.query),
        table=_pointer(sums.table),
        taps=_pointer(sums.taps),
        offsets=_pointer(sums.offsets),
        parts=parts,
        windows_a_part=windows_a_part,
    )
    failed = library.load().attention_backward(
        ctypes.byref(task),
        ctypes.c_void_p(_address(gradient, case.first)),
        ctypes.c_int64(gradient.shape[-1]),
        ctypes.byref(to),
    )
    check_memory(failed)


def _task(case: Case) -> _Task:
    B, H, W, stride = case.projected.shape
    query, key, value = _parts(case.projected, case)
    no_query, no_key, no_value = (None, None, None) if case.outside is None else _parts(case.outside, case)
    return _Task(
        images=B,
        height=H,
        width=W,
        rows=case.shape[0],
        columns=case.shape[1],
        heads=case.heads,
        dim=case.dim,
        type=DTYPES[case.projected.dtype],
        query=query if case.query is None else case.query.data_ptr(),
        key=key,
        value=value,
        no_query=no_query if case.query is None else None,
        no_key=no_key,
        no_value=no_value,
        stride=stride,
        is_global=int(case.query is not None),
        table=_pointer(case.table),
        table_type=0 if case.table is None else DTYPES[case.table.dtype],
        taps=_pointer(case.taps),
        offsets=_pointer(case.offsets),
        scale=case.dim**-0.5,
    )


def _parts(tensor: Tensor, case: Case) -> tuple[int | None, int, int]:
    """Addresses of queries, where there are any, keys and values."""
    width = tensor.shape[-1] // case.parts
    *queries, key, value = (_address(tensor, part * width + case.first) for part in range(case.parts))
    return queries[0] if queries else None, key, value


def _address(tensor: Tensor, channel: int) -> int:
    return tensor.data_ptr() + channel * tensor.element_size()


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def check_memory(failed: int) -> None:
    """Turn the library's answer into an error.

    Raises:
        MemoryError: it found no memory for its buffers.
    """
    if failed:
        raise MemoryError("no memory is left for the buffers of a window; use a smaller window or fewer threads")

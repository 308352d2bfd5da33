"""Linear layers by the C kernels, with a norm or gates before them and GELU or a residual after them; no gradients.

Sums are float32 whatever the dtype of the tokens.

Legend: `B` images · `C` channels that come in · `K` channels that come out.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op
from torch.utils.flop_counter import register_flop_formula

from globalvit.hardware import cpu_features
from globalvit.kernels.cpu import library, structs
from globalvit.kernels.cpu.dispatch import is_direct
from globalvit.kernels.cpu.tensors import DTYPES, address, check_memory, floats, optional

# Biases are read in whole vectors, of at most this many floats.
WIDEST_VECTOR = 16
PLAIN, GELU, TIMES_GELU_SLOPE = 0, 1, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """A Linear layer in the kernels' layout.

    Attributes:
        weight: panels of numbers or of pairs of bfloat16, as float32.
        bias: (K,) float32, padded with zeros to whole vectors, or None.
        inputs: C.
        outputs: K.
        dtype: of the tokens.
        has_gelu: whether the exact GELU follows.
    """

    weight: Tensor
    bias: Tensor | None
    inputs: int
    outputs: int
    dtype: torch.dtype
    has_gelu: bool = False

    def struct(self, activation: int = PLAIN) -> structs.Layer:
        """Return the layer as the kernels take it."""
        padded = (_whole_vectors(self.outputs),)
        weight = address(self.weight, (_packed_size(self.inputs, self.outputs, self.dtype),))
        return structs.Layer(self.inputs, self.outputs, weight, optional(self.bias, padded), activation)


@dataclass(frozen=True, kw_only=True, slots=True)
class Norm:
    """A layer norm: float32 factors and offsets (C,), None if they were folded into the next layer."""

    factors: Tensor | None
    offsets: Tensor | None
    eps: float

    def struct(self, dim: int) -> structs.Norm:
        """Return the norm of rows of `dim` channels as the kernels take it."""
        return structs.Norm(dim, optional(self.factors, (dim,)), optional(self.offsets, (dim,)), self.eps)


NO_NORM = structs.Norm()


def computes(dtype: torch.dtype) -> bool:
    """Whether the kernels have fast products of this dtype on this CPU.

    bfloat16 needs dot products of pairs. oneDNN is faster on a CPU with AMX, which the kernels do not use.
    """
    if library.unavailable() is not None:
        return False
    has_pairs = bool(library.load().has_pairs())
    return dtype == torch.float32 or (dtype == torch.bfloat16 and has_pairs and "amx_bf16" not in cpu_features())


def pack(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, *, has_gelu: bool = False) -> Packed:
    """Pack weights (K, C) and biases (K,) for tokens of `dtype`."""
    outputs, inputs = weight.shape
    packed = _packed(library.load().linear_pack, weight, inputs, outputs, dtype)
    padded = None if bias is None else pad_to_vectors(bias)
    return Packed(weight=packed, bias=padded, inputs=inputs, outputs=outputs, dtype=dtype, has_gelu=has_gelu)


def pack_transposed(weight: Tensor, dtype: torch.dtype) -> Packed:
    """Pack weights (C, K) as those of a Linear from C to K, as the backward pass needs them."""
    inputs, outputs = weight.shape
    packed = _packed(library.load().linear_pack_transposed, weight, inputs, outputs, dtype)
    return Packed(weight=packed, bias=None, inputs=inputs, outputs=outputs, dtype=dtype)


def pad_to_vectors(bias: Tensor) -> Tensor:
    """Return biases (K,) in float32, padded with zeros to whole vectors."""
    missing = _whole_vectors(bias.shape[0]) - bias.shape[0]
    return F.pad(bias.detach().float(), (0, missing)) if missing else bias.detach().float().contiguous()


def _whole_vectors(outputs: int) -> int:
    return -(-outputs // WIDEST_VECTOR) * WIDEST_VECTOR


def _packed_size(inputs: int, outputs: int, dtype: torch.dtype) -> int:
    return library.load().linear_packed_size(inputs, outputs, DTYPES[dtype])


def _packed(run: Any, weight: Tensor, inputs: int, outputs: int, dtype: torch.dtype) -> Tensor:
    weight = weight.detach().contiguous()
    packed = floats(weight, _packed_size(inputs, outputs, dtype))
    source = address(weight, tuple(weight.shape), tuple(DTYPES))
    run(inputs, outputs, source, DTYPES[weight.dtype], address(packed, tuple(packed.shape)), DTYPES[dtype])
    return packed


def chain(
    x: Tensor,
    first: Packed,
    second: Packed | None = None,
    *,
    norm: Norm | None = None,
    gates: Tensor | None = None,
    residual: Tensor | None = None,
    may_overwrite: bool = False,
) -> Tensor:
    """Apply a norm or gates, a Linear, GELU, a second Linear, and add a residual: (…, C) → (…, K).

    Args:
        x: (…, C) in the dtype that the weights were packed for.
        first: the first Linear.
        second: the Linear after it, or None.
        norm: before the first Linear, or None.
        gates: (B, C) float32, factors of the channels of each of x's B images, or None.
        residual: (…, K) in x's dtype, added at the end, or None.
        may_overwrite: whether the results may replace the residual, which saves asking for memory.
    """
    if is_direct(x, residual):
        return _chain(x, first, second, norm, gates, residual, residual if may_overwrite else None)
    norms = (None, None, None) if norm is None else (norm.factors, norm.offsets, norm.eps)
    last = (None, None, 0) if second is None else (second.weight, second.bias, second.outputs)
    layers = (first.weight, first.bias, first.outputs, first.has_gelu, *last)
    return linear_chain(x, residual, gates, *norms, *layers)


def layer_norm(x: Tensor, norm: Norm, *, may_overwrite: bool = False) -> Tensor:
    """Apply a layer norm: (…, C) → (…, C), in place of `x` if that is allowed."""
    if is_direct(x):
        return _norm(x, norm.factors, norm.offsets, norm.eps, may_overwrite=may_overwrite)
    return normalize(x, norm.factors, norm.offsets, norm.eps)


def _chain(
    x: Tensor,
    first: Packed,
    second: Packed | None,
    norm: Norm | None,
    gates: Tensor | None,
    residual: Tensor | None,
    out: Tensor | None = None,
) -> Tensor:
    x, dim = x.contiguous(), x.shape[-1]
    residual, gates = (None if one is None else one.contiguous() for one in (residual, gates))
    shape = (*x.shape[:-1], first.outputs if second is None else second.outputs)
    out = x.new_empty(shape) if out is None or out is not residual else out
    if x.numel() == 0:
        return out.zero_() if out.numel() else out
    rows, dtypes = x.numel() // dim, (x.dtype,)
    task = structs.Chain(rows, DTYPES[x.dtype], address(x, (*x.shape[:-1], first.inputs), dtypes), DTYPES[x.dtype])
    task.norm = NO_NORM if norm is None else norm.struct(dim)
    if gates is not None:
        task.gates, task.gate_rows = address(gates, (gates.shape[0], dim)), rows // gates.shape[0]
    else:
        task.gate_rows = 1
    task.residual, task.out = optional(residual, shape, dtypes), address(out, shape, dtypes)
    task.first = first.struct(GELU if first.has_gelu else PLAIN)
    if second is not None:
        task.second = second.struct()
    check_memory(library.load().linear_chain(ctypes.byref(task)))
    return out


def _norm(
    x: Tensor, factors: Tensor | None, offsets: Tensor | None, eps: float, *, may_overwrite: bool = False
) -> Tensor:
    x, dim = x.contiguous(), x.shape[-1]
    out = x if may_overwrite else torch.empty_like(x)
    if x.numel() == 0:
        return out
    norm, shape, dtypes = Norm(factors=factors, offsets=offsets, eps=eps).struct(dim), tuple(x.shape), (x.dtype,)
    to, rows = address(out, shape, dtypes), x.numel() // dim
    check_memory(library.load().layer_norm(rows, ctypes.byref(norm), address(x, shape, dtypes), to, DTYPES[x.dtype]))
    return out


@custom_op("globalvit::linear_chain", mutates_args=(), device_types="cpu")
def linear_chain(
    x: Tensor,
    residual: Tensor | None,
    gates: Tensor | None,
    factors: Tensor | None,
    offsets: Tensor | None,
    eps: float | None,
    weight: Tensor,
    bias: Tensor | None,
    outputs: int,
    has_gelu: bool,
    last_weight: Tensor | None,
    last_bias: Tensor | None,
    last_outputs: int,
) -> Tensor:
    """`chain` with its arguments one by one, as operators take them."""
    norm = None if eps is None else Norm(factors=factors, offsets=offsets, eps=eps)
    inputs = {"inputs": x.shape[-1], "dtype": x.dtype}
    first, second = Packed(weight=weight, bias=bias, outputs=outputs, has_gelu=has_gelu, **inputs), None
    if last_weight is not None:
        second = Packed(weight=last_weight, bias=last_bias, outputs=last_outputs, inputs=outputs, dtype=x.dtype)
    return _chain(x, first, second, norm, gates, residual)


@custom_op("globalvit::layer_norm", mutates_args=(), device_types="cpu")
def normalize(x: Tensor, factors: Tensor | None, offsets: Tensor | None, eps: float) -> Tensor:
    """`layer_norm` with its arguments one by one, as operators take them."""
    return _norm(x, factors, offsets, eps)


@linear_chain.register_fake
def _(x: Tensor, *others: Any) -> Tensor:
    outputs, last_outputs = others[7], others[11]
    return x.new_empty((*x.shape[:-1], last_outputs or outputs))


@register_flop_formula(torch.ops.globalvit.linear_chain)
def _(x: torch.Size, *others: Any, **_: Any) -> int:
    outputs, last_outputs = others[7], others[11]
    return 2 * x.numel() * outputs + 2 * x.numel() // x[-1] * outputs * last_outputs


@normalize.register_fake
def _(x: Tensor, *others: object) -> Tensor:  # noqa: ARG001
    return x.new_empty(x.shape)

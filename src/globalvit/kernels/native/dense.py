"""Linear layers out of the compiled library, with what stands before and after them: `globalvit::native_linears`.

For inference only: nothing here has gradients. Sums are float32 in whatever dtype the tokens are.

Legend: `C` channels of the tokens that come in · `K` of those that go out.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.library import custom_op
from torch.utils.flop_counter import register_flop_formula

from globalvit.kernels.native import library
from globalvit.kernels.native.call import DTYPES, check_memory
from globalvit.kernels.native.direct import is_direct

# Biases are read in whole vectors.
WIDEST_VECTOR = 16


class LayerStruct(ctypes.Structure):
    """`Layer` of dense.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("inputs", "outputs")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias")),
        ("activation", ctypes.c_int64),
    )


class NormStruct(ctypes.Structure):
    """`Norm` of dense.h."""

    _fields_ = (
        ("dim", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("factors", "offsets")),
        ("eps", ctypes.c_float),
    )


class ChainStruct(ctypes.Structure):
    """`Chain` of dense.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "type")),
        ("x", ctypes.c_void_p),
        ("x_type", ctypes.c_int64),
        ("norm", NormStruct),
        ("gates", ctypes.c_void_p),
        ("gate_rows", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("kept", "residual", "out")),
        *((name, LayerStruct) for name in ("first", "second")),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """A Linear as the library reads it.

    Attributes:
        weight: float32, whatever it holds: panels of numbers or of pairs of bfloat16.
        bias: (K,) float32 and zeros behind it that fill the last vector, or None.
        inputs: C.
        outputs: K.
        dtype: of the tokens it takes.
        has_gelu: whether the exact GELU follows.
    """

    weight: Tensor
    bias: Tensor | None
    inputs: int
    outputs: int
    dtype: torch.dtype
    has_gelu: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Norm:
    """A layer norm: float32 factors and offsets (C,), None where they were folded away."""

    factors: Tensor | None
    offsets: Tensor | None
    eps: float


def computes(dtype: torch.dtype) -> bool:
    """Whether the library multiplies matrices of this dtype here, and faster than oneDNN.

    bfloat16 takes dot products of pairs. A CPU with tiles (AMX) has faster ones, which oneDNN knows and this does not.
    """
    if library.unavailable() is not None:
        return False
    has_tiles = torch.cpu._is_amx_tile_supported()
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(library.load().has_pairs()) and not has_tiles)


def pack(linear: nn.Linear, *, has_gelu: bool = False) -> Packed:
    """Lay a Linear out for the library, in the dtype it has."""
    return pack_weight(linear.weight, linear.bias, linear.weight.dtype, has_gelu=has_gelu)


def pack_weight(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, *, has_gelu: bool = False) -> Packed:
    """Lay weights (K, C) and biases (K,) out for products of a dtype."""
    weight, (outputs, inputs) = weight.detach().contiguous(), weight.shape
    packed = _packed(library.load().dense_pack, weight, inputs, outputs, dtype)
    whole = None if bias is None else whole_vectors(bias)
    return Packed(weight=packed, bias=whole, inputs=inputs, outputs=outputs, dtype=dtype, has_gelu=has_gelu)


def whole_vectors(bias: Tensor) -> Tensor:
    """Biases (K,) in float32, with zeros behind them where they do not fill the library's vectors."""
    missing = -bias.shape[0] % WIDEST_VECTOR
    return F.pad(bias.detach().float(), (0, missing)) if missing else bias.detach().float().contiguous()


def pack_turned(weight: Tensor, dtype: torch.dtype) -> Packed:
    """Lay weights (C, K) out as those of the Linear from C to K that the backward pass is made of."""
    weight, (inputs, outputs) = weight.detach().contiguous(), weight.shape
    packed = _packed(library.load().dense_pack_turned, weight, inputs, outputs, dtype)
    return Packed(weight=packed, bias=None, inputs=inputs, outputs=outputs, dtype=dtype)


def _packed(run: Any, weight: Tensor, inputs: int, outputs: int, dtype: torch.dtype) -> Tensor:
    sizes, kind = (ctypes.c_int64(inputs), ctypes.c_int64(outputs)), ctypes.c_int64(DTYPES[dtype])
    packed = torch.empty(library.load().dense_packed_size(*sizes, kind))
    at, to = ctypes.c_void_p(weight.data_ptr()), ctypes.c_void_p(packed.data_ptr())
    run(*sizes, at, ctypes.c_int64(DTYPES[weight.dtype]), to, kind)
    return packed


def linears(
    x: Tensor,
    first: Packed,
    second: Packed | None = None,
    *,
    norm: Norm | None = None,
    gates: Tensor | None = None,
    residual: Tensor | None = None,
    may_overwrite: bool = False,
) -> Tensor:
    """Norm or gates, Linear (and GELU), Linear, and a sum with a residual: (…, C) → (…, K).

    Args:
        x: float32 or bfloat16, as the weights were when they were packed.
        first: the first Linear.
        second: the one after it, if there is one.
        norm: what comes before the first.
        gates: (B, C) float32, by which the channels of each of x's B images are multiplied before the first.
        residual: (…, K) in x's dtype, added at the end.
        may_overwrite: whether the answer may be written over the residual, which saves the system from finding memory.

    Raises:
        ValueError: the tokens are not of the dtype that the weights were packed for.
    """
    check_dtype(x, first.dtype)
    assert x.shape[-1] == first.inputs, (x.shape, first.inputs)
    assert residual is None or residual.dtype == x.dtype, (residual.dtype, x.dtype)
    if is_direct(x, residual):
        return _linears(x, first, second, norm, gates, residual, residual if may_overwrite else None)
    norms = (None, None, None) if norm is None else (norm.factors, norm.offsets, norm.eps)
    last = (None, None, 0) if second is None else (second.weight, second.bias, second.outputs)
    layers = (first.weight, first.bias, first.outputs, first.has_gelu, *last)
    return native_linears(x, residual, gates, *norms, *layers)


def check_dtype(x: Tensor, dtype: torch.dtype) -> None:
    """Refuse what the weights were not packed for.

    Raises:
        ValueError: the tokens are of another dtype.
    """
    if x.dtype != dtype:
        came, wanted = (str(one).removeprefix("torch.") for one in (x.dtype, dtype))
        raise ValueError(
            f"{came} came to a model that was deployed for {wanted}; give it {wanted} images outside autocast, "
            f"or deploy the model in {came}"
        )


def layer_norm(x: Tensor, norm: Norm, *, may_overwrite: bool = False) -> Tensor:
    """A layer norm by itself, which may be written over what it came from if that is said: (…, C) → (…, C)."""
    if is_direct(x):
        return _layer_norm(x, norm.factors, norm.offsets, norm.eps, may_overwrite=may_overwrite)
    return native_layer_norm(x, norm.factors, norm.offsets, norm.eps)


def _linears(
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
    outputs = first.outputs if second is None else second.outputs
    out = x.new_empty((*x.shape[:-1], outputs)) if out is None or out is not residual else out
    if x.numel() == 0:
        return out
    task = ChainStruct(x.numel() // dim, DTYPES[x.dtype], x.data_ptr(), DTYPES[x.dtype])
    if norm is not None:
        task.norm = norm_struct(dim, norm.factors, norm.offsets, norm.eps)
    task.gates, task.gate_rows = pointer(gates), 1 if gates is None else x.numel() // dim // gates.shape[0]
    task.residual, task.out = pointer(residual), out.data_ptr()
    task.first = layer_struct(first, int(first.has_gelu))
    if second is not None:
        task.second = layer_struct(second)
    check_memory(library.load().dense_chain(ctypes.byref(task)))
    return out


def _layer_norm(
    x: Tensor, factors: Tensor | None, offsets: Tensor | None, eps: float, *, may_overwrite: bool = False
) -> Tensor:
    x, dim = x.contiguous(), x.shape[-1]
    out = x if may_overwrite else torch.empty_like(x)
    check_memory(
        library.load().layer_norm(
            ctypes.c_int64(x.numel() // dim),
            ctypes.byref(norm_struct(dim, factors, offsets, eps)),
            *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, out)),
            ctypes.c_int64(DTYPES[x.dtype]),
        )
    )
    return out


def norm_struct(dim: int, factors: Tensor | None, offsets: Tensor | None, eps: float) -> NormStruct:
    """A norm for the library; no dim stands for none."""
    return NormStruct(dim, pointer(factors), pointer(offsets), eps)


def layer_struct(packed: Packed, activation: int = 0) -> LayerStruct:
    """A Linear for the library; `activation` is a number of dense.h."""
    return LayerStruct(packed.inputs, packed.outputs, packed.weight.data_ptr(), pointer(packed.bias), activation)


def pointer(tensor: Tensor | None) -> int | None:
    """The address of a tensor's numbers."""
    return None if tensor is None else tensor.data_ptr()


@custom_op("globalvit::native_linears", mutates_args=(), device_types="cpu")
def native_linears(
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
    """`linears`, its arguments one by one as operators want them."""
    norm = None if eps is None else Norm(factors=factors, offsets=offsets, eps=eps)
    inputs = {"inputs": x.shape[-1], "dtype": x.dtype}
    first, second = Packed(weight=weight, bias=bias, outputs=outputs, has_gelu=has_gelu, **inputs), None
    if last_weight is not None:
        second = Packed(weight=last_weight, bias=last_bias, outputs=last_outputs, inputs=outputs, dtype=x.dtype)
    return _linears(x, first, second, norm, gates, residual)


@custom_op("globalvit::native_layer_norm", mutates_args=(), device_types="cpu")
def native_layer_norm(x: Tensor, factors: Tensor | None, offsets: Tensor | None, eps: float) -> Tensor:
    """`layer_norm`, its arguments one by one as operators want them."""
    return _layer_norm(x, factors, offsets, eps)


@native_linears.register_fake
def _(
    x: Tensor,
    residual: Tensor | None,  # noqa: ARG001
    gates: Tensor | None,  # noqa: ARG001
    factors: Tensor | None,  # noqa: ARG001
    offsets: Tensor | None,  # noqa: ARG001
    eps: float | None,  # noqa: ARG001
    weight: Tensor,  # noqa: ARG001
    bias: Tensor | None,  # noqa: ARG001
    outputs: int,
    has_gelu: bool,  # noqa: ARG001
    last_weight: Tensor | None,  # noqa: ARG001
    last_bias: Tensor | None,  # noqa: ARG001
    last_outputs: int,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], last_outputs or outputs))


@register_flop_formula(torch.ops.globalvit.native_linears)
def _(x: torch.Size, *others: Any, **_: Any) -> int:
    outputs, last_outputs = others[7], others[11]
    return 2 * x.numel() * outputs + 2 * x.numel() // x[-1] * outputs * last_outputs


@native_layer_norm.register_fake
def _(x: Tensor, *others: object) -> Tensor:  # noqa: ARG001
    return x.new_empty(x.shape)

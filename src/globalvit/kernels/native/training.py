"""Linear layers of a training on a CPU out of the compiled library, with the norms before them, forward and backward.

Under autocast the stream of tokens stays float32 and products are bfloat16, as in PyTorch; norms are float32 inside.
Gradients of weights are sums over tokens in an order that does not depend on the number of threads.

Legend: `C` channels that come in · `K` that go out · `T` tokens.
"""

import ctypes
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.profiler import record_function

from globalvit.kernels.native import library
from globalvit.kernels.native.call import DTYPES, check_memory
from globalvit.kernels.native.dense import (
    ChainStruct,
    LayerStruct,
    NormStruct,
    Packed,
    computes,
    layer_struct,
    norm_struct,
    pack_turned,
    pack_weight,
    pointer,
)
from globalvit.kernels.native.direct import is_plain

# The kind of operation that a profile shows.
SEEN_AS = "globalvit::native_linears"
TIMES_GELU_SLOPE = 2
# A gradient of weights is cut into so many jobs, where there are rows enough for each.
JOBS, OUTPUTS_A_JOB, ROWS_A_PART = 16, 96, 1024


class _Back(ctypes.Structure):
    """`Back` of dense_back.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "type")),
        *((name, ctypes.c_void_p) for name in ("d_out", "kept", "d_kept", "activated", "x")),
        ("x_type", ctypes.c_int64),
        ("norm", NormStruct),
        *((name, ctypes.c_void_p) for name in ("d_x", "d_norm")),
        *((name, LayerStruct) for name in ("first", "second")),
    )


class _Outer(ctypes.Structure):
    """`Outer` of dense_back.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "type")),
        ("d_out", ctypes.c_void_p),
        ("outputs", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("x_type", "inputs")),
        ("norm", NormStruct),
        *((name, ctypes.c_void_p) for name in ("right", "d_weight", "d_bias")),
        ("parts", ctypes.c_int64),
    )


def trains(x: Tensor, *modules: nn.Module) -> bool:
    """Whether a training step on `x` may take the library's layers in these modules' place."""
    if not all(map(_is_bare, modules)):
        return False
    parameters = [parameter for module in modules for parameter in (module.weight, module.bias)]
    return may_train(x, *parameters) and _dims_fit(x, modules)


def may_train(x: Tensor, *parameters: Any) -> bool:
    """Whether a training step on `x` may take the library's layers in the place of some with these parameters.

    Nobody may watch: no compiler, no mode or transform that wants to see PyTorch's operators.
    """
    is_wanted = torch.is_grad_enabled() and x.device.type == "cpu" and x.dtype in DTYPES and x.numel() > 0
    is_wanted = is_wanted and (x.requires_grad or any(parameter.requires_grad for parameter in parameters))
    if not is_wanted or not is_plain(x) or not all(map(_is_readable, parameters)):
        return False
    dtype, is_autocast = product_dtype(x), torch.is_autocast_enabled("cpu")
    # What does not fit is PyTorch's to refuse.
    is_fitting = is_autocast or all(parameter.dtype == x.dtype for parameter in parameters)
    return is_fitting and dtype in DTYPES and computes(dtype)


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype that products with `x` have: autocast's where it is on."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def _dims_fit(x: Tensor, modules: Sequence[nn.Module]) -> bool:
    """Whether each module takes as many channels as the one before it gives."""
    dim = x.shape[-1]
    for module in modules:
        weight = cast("Tensor", module.weight)
        if weight.shape[-1] != dim:
            return False
        dim = weight.shape[0]
    return True


def _is_bare(module: nn.Module) -> bool:
    """Whether a Linear or a layer norm is just that."""
    is_known = type(module) is nn.Linear or (type(module) is nn.LayerNorm and len(module.normalized_shape) == 1)
    return is_known and not is_watched(module)


def is_watched(module: nn.Module) -> bool:
    """Whether a hook wants to see what goes in or comes out."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def _is_readable(parameter: Any) -> bool:
    return type(parameter) is nn.Parameter and parameter.dtype in DTYPES and parameter.device.type == "cpu"


def norm_linear(x: Tensor, norm: nn.LayerNorm | None, linear: nn.Linear) -> Tensor:
    """`linear(norm(x))`, or `linear(x)`: (…, C) → (…, K) in the dtype of products."""
    norms = (None, None, 0.0) if norm is None else (norm.weight, norm.bias, norm.eps)
    return _NormLinear.apply(x, *norms, linear.weight, linear.bias, product_dtype(x))


def norm_mlp(x: Tensor, norm: nn.LayerNorm, fc1: nn.Linear, fc2: nn.Linear) -> Tensor:
    """`fc2(gelu(fc1(norm(x))))`: (…, C) → (…, C) in the dtype of products."""
    parameters = (fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    return _NormMlp.apply(x, norm.weight, norm.bias, norm.eps, *parameters, product_dtype(x))


class _NormLinear(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        factors: Tensor | None,
        offsets: Tensor | None,
        eps: float,
        weight: Tensor,
        bias: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, factors, offsets, weight)
        ctx.eps, ctx.dtype, ctx.dtypes = eps, dtype, (weight.dtype, bias.dtype)
        with record_function(SEEN_AS):
            return _chain(x, _floats(factors), _floats(offsets), eps, dtype, pack_weight(weight, bias, dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (d_out,) = grad_outputs
        x, factors, offsets, weight = ctx.saved_tensors
        d_out = d_out.to(ctx.dtype).contiguous()
        norm, needs = Normed(_floats(factors), _floats(offsets), ctx.eps), ctx.needs_input_grad
        d_inputs, d_layer = (None, None, None), (None, None)
        with record_function(SEEN_AS):
            if any(needs[:3]):
                d_inputs = inputs_back(d_out, x, norm, ctx.dtype, pack_turned(weight, ctx.dtype))
            if any(needs[4:6]):
                d_layer = outer(d_out, x, norm, ctx.dtype)
        d_norm = _as(d_inputs[1:], [None, None] if factors is None else [factors.dtype, offsets.dtype])
        return d_inputs[0], *d_norm, None, *_as(d_layer, ctx.dtypes), None


class _NormMlp(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        factors: Tensor,
        offsets: Tensor,
        eps: float,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        x = x.contiguous()
        kept = torch.empty((*x.shape[:-1], weight1.shape[0]), dtype=dtype)
        ctx.save_for_backward(x, factors, offsets, weight1, weight2, kept)
        ctx.eps, ctx.dtype, ctx.dtypes = eps, dtype, [one.dtype for one in (weight1, bias1, weight2, bias2)]
        with record_function(SEEN_AS):
            layers = pack_weight(weight1, bias1, dtype, has_gelu=True), pack_weight(weight2, bias2, dtype)
            return _chain(x, _floats(factors), _floats(offsets), eps, dtype, *layers, kept=kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (d_out,) = grad_outputs
        x, factors, offsets, weight1, weight2, kept = ctx.saved_tensors
        d_out, d_kept, activated = d_out.to(ctx.dtype).contiguous(), torch.empty_like(kept), torch.empty_like(kept)
        norm, dtype, needs = Normed(_floats(factors), _floats(offsets), ctx.eps), ctx.dtype, ctx.needs_input_grad
        with record_function(SEEN_AS):
            layers = pack_turned(weight2, dtype), pack_turned(weight1, dtype)
            hidden = (kept, d_kept, activated)
            d_x, *d_norm = inputs_back(d_out, x, norm, dtype, *layers, hidden=hidden)
            d_first = outer(d_kept, x, norm, dtype) if any(needs[4:6]) else (None, None)
            d_last = outer(d_out, activated, UNNORMED, dtype) if any(needs[6:8]) else (None, None)
        return d_x, *_as(d_norm, [factors.dtype, offsets.dtype]), None, *_as((*d_first, *d_last), ctx.dtypes), None


def _as(gradients: Sequence[Tensor | None], dtypes: Sequence[torch.dtype | None]) -> list[Tensor | None]:
    """Gradients in their parameters' dtypes; None where there is no parameter, or nobody asks."""
    pairs = zip(gradients, dtypes, strict=True)
    return [None if gradient is None or dtype is None else gradient.to(dtype) for gradient, dtype in pairs]


class Normed:
    """The norm that a layer's inputs went through; no factors stand for none."""

    def __init__(self, factors: Tensor | None, offsets: Tensor | None, eps: float) -> None:
        self.factors, self.offsets, self.eps = factors, offsets, eps

    def struct(self, dim: int) -> NormStruct:
        """The norm for the library."""
        return norm_struct(0 if self.factors is None else dim, self.factors, self.offsets, self.eps)


UNNORMED = Normed(None, None, 0.0)


def _chain(
    x: Tensor,
    factors: Tensor | None,
    offsets: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    first: Packed,
    second: Packed | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    """The forward pass, in the dtype of products."""
    last, dim = first if second is None else second, x.shape[-1]
    out = torch.empty((*x.shape[:-1], last.outputs), dtype=dtype)
    task = ChainStruct(x.numel() // dim, DTYPES[dtype], x.data_ptr(), DTYPES[x.dtype])
    task.norm = norm_struct(0 if factors is None else dim, factors, offsets, eps)
    task.kept, task.out, task.first = pointer(kept), out.data_ptr(), layer_struct(first, int(first.has_gelu))
    if second is not None:
        task.second = layer_struct(second)
    check_memory(library.load().dense_chain(ctypes.byref(task)))
    return out


def inputs_back(
    d_out: Tensor,
    x: Tensor,
    norm: Normed,
    dtype: torch.dtype,
    first: Packed,
    second: Packed | None = None,
    hidden: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None),
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x and of the norm's factors and offsets, from layers that are turned, the last one first."""
    rows, dim, d_x = x.numel() // x.shape[-1], x.shape[-1], torch.empty_like(x)
    run = library.load()
    sums = torch.empty((0 if norm.factors is None else run.dense_back_blocks(ctypes.c_int64(rows)), 2, dim))
    task = _Back(rows, DTYPES[dtype], d_out.data_ptr(), *map(pointer, hidden), x.data_ptr(), DTYPES[x.dtype])
    task.norm, task.d_x, task.d_norm = norm.struct(dim), d_x.data_ptr(), sums.data_ptr()
    task.first = layer_struct(first, 0 if second is None else TIMES_GELU_SLOPE)
    if second is not None:
        task.second = layer_struct(second)
    check_memory(run.dense_back(ctypes.byref(task)))
    d_factors, d_offsets = sums.sum(0)
    return d_x, d_factors, d_offsets


def outer(d_out: Tensor, x: Tensor, norm: Normed, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Gradients of weights (K, C) and biases (K,) in float32 from those of what came out (T, K), and what went in."""
    rows, inputs, outputs = x.numel() // x.shape[-1], x.shape[-1], d_out.shape[-1]
    parts = min(-(-JOBS * OUTPUTS_A_JOB // outputs), -(-rows // ROWS_A_PART))
    d_weight, d_bias = torch.empty(parts, outputs, inputs), torch.empty(parts, outputs)
    task = _Outer(rows, DTYPES[dtype], d_out.data_ptr(), outputs, x.data_ptr(), DTYPES[x.dtype], inputs)
    task.norm = norm.struct(inputs)
    task.d_weight, task.d_bias, task.parts = d_weight.data_ptr(), d_bias.data_ptr(), parts
    check_memory(library.load().dense_outer(ctypes.byref(task)))
    return (d_weight[0], d_bias[0]) if parts == 1 else (d_weight.sum(0), d_bias.sum(0))


def _floats(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.detach().float().contiguous()

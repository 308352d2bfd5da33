"""Linear layers in training by the C kernels, with the norms before them, forward and backward.

Under autocast the stream of tokens stays float32 and products are bfloat16, as in PyTorch; norms are float32 inside.
Gradients of weights are sums over tokens in an order that does not depend on the number of threads.

Legend: `C` channels that come in · `K` channels that come out · `T` tokens.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.profiler import record_function

from globalvit.kernels.cpu import library, structs
from globalvit.kernels.cpu.dispatch import differentiable_gradients, takes_formula
from globalvit.kernels.cpu.linear import GELU, NO_NORM, PLAIN, TIMES_GELU_SLOPE, Norm, Packed, pack, pack_transposed
from globalvit.kernels.cpu.tensors import DTYPES, address, check_memory, floats, optional

# The name of the operation in a profile.
SHOWN_AS = "globalvit::linear_chain"
# A gradient of weights is cut into at least so many jobs, as long as each has this many rows.
JOBS, OUTPUTS_A_JOB, ROWS_A_PART = 16, 96, 1024


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of products with `x`: autocast's if it is on."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def norm_linear(x: Tensor, norm: nn.LayerNorm | None, linear: nn.Linear) -> Tensor:
    """`linear(norm(x))`, or `linear(x)`: (…, C) → (…, K) in the dtype of products."""
    norms = (None, None, 0.0) if norm is None else (norm.weight, norm.bias, norm.eps)
    return NormLinear.apply(x, *norms, linear.weight, linear.bias, product_dtype(x))


def norm_mlp(x: Tensor, norm: nn.LayerNorm, fc1: nn.Linear, fc2: nn.Linear) -> Tensor:
    """`fc2(gelu(fc1(norm(x))))`: (…, C) → (…, K) in the dtype of products."""
    parameters = (fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    return NormMlp.apply(x, norm.weight, norm.bias, norm.eps, *parameters, product_dtype(x))


def _require_products(dtype: torch.dtype) -> None:
    # Without dot products of pairs, rows between two layers are float32; what training keeps of them is bfloat16.
    if dtype == torch.bfloat16 and not library.load().has_pairs():
        raise ValueError(
            "expected a CPU with dot products of bfloat16 for training with the C kernels, got one without; "
            "use float32, or set_kernels('torch')"
        )


class NormLinear(Function):
    """A Linear, and a layer norm before it if there are factors."""

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
        """(…, C) → (…, K)."""
        _require_products(dtype)
        ctx.save_for_backward(x, factors, offsets, weight, bias)
        ctx.eps, ctx.dtype = eps, dtype
        with record_function(SHOWN_AS):
            return _chain(x.contiguous(), _norm(factors, offsets, eps), dtype, pack(weight, bias, dtype))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the gradients of the seven inputs."""
        (d_out,), (x, factors, offsets, weight, bias), eps, dtype = grad_outputs, ctx.saved_tensors, ctx.eps, ctx.dtype
        if takes_formula(d_out):
            inputs = (x, factors, offsets, eps, weight, bias, dtype)
            return tuple(differentiable_gradients(_plain_norm_linear, inputs, ctx.needs_input_grad, d_out))
        x, d_out, norm, needs = (
            x.contiguous(),
            d_out.to(dtype).contiguous(),
            _norm(factors, offsets, eps),
            ctx.needs_input_grad,
        )
        d_inputs, d_layer = (None, None, None), (None, None)
        with record_function(SHOWN_AS):
            if any(needs[:3]):
                d_inputs = gradients_of_inputs(d_out, x, norm, dtype, pack_transposed(weight, dtype))
            if any(needs[4:6]):
                d_layer = gradients_of_weights(d_out, x, norm, dtype)
        d_x, *d_norm = d_inputs
        return d_x, *_like(d_norm, (factors, offsets)), None, *_like(d_layer, (weight, bias)), None


class NormMlp(Function):
    """A layer norm, a Linear, the exact GELU and a Linear."""

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
        """(…, C) → (…, K)."""
        _require_products(dtype)
        kept = x.new_empty((*x.shape[:-1], weight1.shape[0]), dtype=dtype)
        ctx.save_for_backward(x, factors, offsets, weight1, bias1, weight2, bias2, kept)
        ctx.eps, ctx.dtype = eps, dtype
        with record_function(SHOWN_AS):
            layers = pack(weight1, bias1, dtype, has_gelu=True), pack(weight2, bias2, dtype)
            return _chain(x.contiguous(), _norm(factors, offsets, eps), dtype, *layers, kept=kept)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the gradients of the nine inputs."""
        (d_out,), (*saved, kept), eps, dtype = grad_outputs, ctx.saved_tensors, ctx.eps, ctx.dtype
        if takes_formula(d_out):
            inputs = (*saved[:3], eps, *saved[3:], dtype)
            return tuple(differentiable_gradients(_plain_norm_mlp, inputs, ctx.needs_input_grad, d_out))
        x, factors, offsets, weight1, bias1, weight2, bias2 = saved
        x, d_out, norm, needs = (
            x.contiguous(),
            d_out.to(dtype).contiguous(),
            _norm(factors, offsets, eps),
            ctx.needs_input_grad,
        )
        hidden = kept, torch.empty_like(kept), torch.empty_like(kept)
        with record_function(SHOWN_AS):
            layers = pack_transposed(weight2, dtype), pack_transposed(weight1, dtype)
            d_x, *d_norm = gradients_of_inputs(d_out, x, norm, dtype, *layers, hidden=hidden)
            _, d_kept, activated = hidden
            d_first = gradients_of_weights(d_kept, x, norm, dtype) if any(needs[4:6]) else (None, None)
            d_second = gradients_of_weights(d_out, activated, None, dtype) if any(needs[6:8]) else (None, None)
        d_layers = _like((*d_first, *d_second), (weight1, bias1, weight2, bias2))
        return d_x, *_like(d_norm, (factors, offsets)), None, *d_layers, None


def gradients_of_inputs(
    d_out: Tensor,
    x: Tensor,
    norm: Norm | None,
    dtype: torch.dtype,
    first: Packed,
    second: Packed | None = None,
    hidden: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the gradients of x and of the norm's factors and offsets.

    Args:
        d_out: (…, K) in `dtype`, the gradient of the results.
        x: (…, C), the inputs.
        norm: what x went through first, or None.
        dtype: of products.
        first: the last layer, transposed.
        second: the layer before it, transposed, or None.
        hidden: with two layers the inputs of GELU, and buffers for their gradient and their GELU, all in `dtype`.
    """
    d_x, lead, dim, run = torch.empty_like(x), tuple(x.shape[:-1]), x.shape[-1], library.load()
    rows = x.numel() // dim
    sums_shape = (run.linear_back_blocks(rows), 2, dim)
    sums = None if norm is None else floats(x, *sums_shape)
    task = structs.Back(rows, DTYPES[dtype], address(d_out, (*lead, first.inputs), (dtype,)))
    if hidden is not None:
        shape = (*lead, first.outputs)
        task.kept, task.d_kept, task.activated = (address(one, shape, (dtype,)) for one in hidden)
    task.x, task.x_type = address(x, (*lead, dim), tuple(DTYPES)), DTYPES[x.dtype]
    task.norm = NO_NORM if norm is None else norm.struct(dim)
    task.d_x, task.d_norm = (
        address(d_x, (*lead, dim), (x.dtype,)),
        optional(sums, (run.linear_back_blocks(rows), 2, dim)),
    )
    task.first = first.struct(PLAIN if second is None else TIMES_GELU_SLOPE)
    if second is not None:
        task.second = second.struct()
    check_memory(run.linear_back(ctypes.byref(task)))
    d_factors, d_offsets = (None, None) if sums is None else sums.sum(0)
    return d_x, d_factors, d_offsets


def gradients_of_weights(d_out: Tensor, x: Tensor, norm: Norm | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the gradients of weights (K, C) and biases (K,) in float32.

    Args:
        d_out: (…, K) in `dtype`, the gradient of the results.
        x: (…, C), the inputs.
        norm: what x went through first, or None.
        dtype: of products.
    """
    lead, inputs, outputs = tuple(x.shape[:-1]), x.shape[-1], d_out.shape[-1]
    rows = x.numel() // inputs
    parts = min(-(-JOBS * OUTPUTS_A_JOB // outputs), -(-rows // ROWS_A_PART))
    d_weight, d_bias = floats(x, parts, outputs, inputs), floats(x, parts, outputs)
    task = structs.Outer(rows, DTYPES[dtype], address(d_out, (*lead, outputs), (dtype,)), outputs)
    task.x, task.x_type, task.inputs = address(x, (*lead, inputs), tuple(DTYPES)), DTYPES[x.dtype], inputs
    task.norm = NO_NORM if norm is None else norm.struct(inputs)
    task.d_weight, task.d_bias = address(d_weight, (parts, outputs, inputs)), address(d_bias, (parts, outputs))
    task.parts = parts
    check_memory(library.load().linear_outer(ctypes.byref(task)))
    return (d_weight[0], d_bias[0]) if parts == 1 else (d_weight.sum(0), d_bias.sum(0))


def _chain(
    x: Tensor,
    norm: Norm | None,
    dtype: torch.dtype,
    first: Packed,
    second: Packed | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    """The forward pass, with results in the dtype of products."""
    lead, dim = tuple(x.shape[:-1]), x.shape[-1]
    shape = (*lead, (second or first).outputs)
    out = x.new_empty(shape, dtype=dtype)
    task = structs.Chain(
        x.numel() // dim, DTYPES[dtype], address(x, (*lead, first.inputs), tuple(DTYPES)), DTYPES[x.dtype]
    )
    task.norm, task.gate_rows = NO_NORM if norm is None else norm.struct(dim), 1
    task.kept, task.out = optional(kept, (*lead, first.outputs), (dtype,)), address(out, shape, (dtype,))
    task.first = first.struct(GELU if first.has_gelu else PLAIN)
    if second is not None:
        task.second = second.struct()
    check_memory(library.load().linear_chain(ctypes.byref(task)))
    return out


def _norm(factors: Tensor | None, offsets: Tensor | None, eps: float) -> Norm | None:
    if factors is None or offsets is None:
        return None
    return Norm(factors=factors.detach().float().contiguous(), offsets=offsets.detach().float().contiguous(), eps=eps)


def _like(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return gradients in the dtypes of their parameters."""
    pairs = zip(gradients, parameters, strict=True)
    return [None if gradient is None or one is None else gradient.to(one.dtype) for gradient, one in pairs]


def _plain_norm_linear(
    x: Tensor,
    factors: Tensor | None,
    offsets: Tensor | None,
    eps: float,
    weight: Tensor,
    bias: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        normed = x if factors is None else F.layer_norm(x.float(), factors.shape, factors.float(), _float(offsets), eps)
        return F.linear(normed.to(dtype), weight.to(dtype), bias.to(dtype))


def _plain_norm_mlp(
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
    with torch.autocast("cpu", enabled=False):
        hidden = _plain_norm_linear(x, factors, offsets, eps, weight1, bias1, dtype)
        return F.linear(F.gelu(hidden), weight2.to(dtype), bias2.to(dtype))


def _float(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.float()

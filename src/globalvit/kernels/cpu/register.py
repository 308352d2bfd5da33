"""Registers the C kernels as implementations of the networks' operations, and says which calls they accept."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from globalvit import pytorch
from globalvit.kernels.cpu import attention, library
from globalvit.kernels.cpu.branch_training import branch
from globalvit.kernels.cpu.choices import computable, slower, takes_pytorch
from globalvit.kernels.cpu.dispatch import needs_gradient
from globalvit.kernels.cpu.linear import computes
from globalvit.kernels.cpu.linear_training import norm_linear, norm_mlp, product_dtype
from globalvit.kernels.cpu.selftest import is_trusted
from globalvit.kernels.cpu.tensors import DTYPES
from globalvit.models import ops
from globalvit.models.layers import Mlp, SqueezeExcite
from globalvit.pytorch import is_plain_call, is_plain_module


def unavailable() -> str | None:
    """Return why the kernels cannot be used on this machine, or None if they can."""
    name = pytorch.missing()
    if name is not None:
        return f"PyTorch {torch.__version__} has no {name}, which the C kernels need"
    return library.unavailable()


def slower_operations(dtype: torch.dtype) -> frozenset[str]:
    """Return the operations that PyTorch's operators compute faster on this CPU, such as `linear/float32/small`."""
    return slower(dtype) if computes(dtype) else frozenset()


def _implement(operation: ops.Operation, accepts: Callable[..., bool]) -> Callable[[Callable], Callable]:
    """Register the decorated function.

    It is used for calls that it accepts, once it has passed the self-test, and unless PyTorch is faster on this CPU.
    """

    def accepts_and_pays(x: Tensor, *args: Any, **kwargs: Any) -> bool:
        return accepts(x, *args, **kwargs) and is_trusted(operation.__name__) and _pays(operation.__name__, x)

    computable[operation.__name__] = accepts
    return operation.implement("c", accepts_and_pays)


def _pays(operation: str, x: Tensor) -> bool:
    """Whether the kernels are worth using for `x`; always in a graph, which keeps what it was made with."""
    return torch.compiler.is_compiling() or not takes_pytorch(operation, product_dtype(x), x.numel())


def _accepts_linear(x: Tensor, layer: nn.Module, norm: nn.Module | None = None) -> bool:
    modules = [layer] if norm is None else [norm, layer]
    return (
        is_plain_module(layer, nn.Linear)
        and (norm is None or _is_layer_norm(norm))
        and _trains(x, *_parameters(*modules))
        and _fit(x.shape[-1], modules)
    )


@_implement(ops.linear, _accepts_linear)
def _linear(x: Tensor, layer: nn.Module, norm: nn.Module | None = None) -> Tensor:
    return norm_linear(x, cast("nn.LayerNorm | None", norm), cast("nn.Linear", layer))


def _accepts_mlp(x: Tensor, norm: nn.Module, mlp: nn.Module) -> bool:
    if not is_plain_module(mlp, Mlp) or not _is_exact_gelu(mlp.activation):
        return False
    modules = [norm, mlp.fc1, mlp.fc2]
    return (
        _is_layer_norm(norm)
        and all(is_plain_module(layer, nn.Linear) for layer in modules[1:])
        and _trains(x, *_parameters(*modules))
        and _fit(x.shape[-1], modules)
    )


@_implement(ops.norm_mlp, _accepts_mlp)
def _norm_mlp(x: Tensor, norm: nn.Module, mlp: Mlp) -> Tensor:
    return norm_mlp(x, cast("nn.LayerNorm", norm), mlp.fc1, mlp.fc2)


def _accepts_grid(x: Tensor, projection: nn.Module, *others: Tensor | None) -> bool:
    """Whether windows of any grid can be read without padding it: nobody needs a gradient, and a bias fills them."""
    return (
        is_plain_module(projection, nn.Linear)
        and isinstance(projection.bias, Tensor)
        and not needs_gradient(x, *projection.parameters(), *others)
        and x.ndim == 4
        and not _is_captured()
    )


def _accepts_window_attention(
    x: Tensor,
    norm: nn.Module | None,
    projection: nn.Module,
    table: Tensor,
    *,
    window: int,
    query_BhNd: Tensor | None = None,
) -> bool:
    parameters = () if norm is None else tuple(norm.parameters())
    return _accepts_grid(x, projection, table, query_BhNd, *parameters) and _is_attended(
        x, projection, table, window, query_BhNd
    )


def _is_attended(x: Tensor, projection: Any, table: Tensor, window: int, query: Tensor | None) -> bool:
    """Whether the kernels attend to what `projection` makes of `x`."""
    if torch.compiler.is_compiling():
        return product_dtype(x) in DTYPES
    parts, width = 3 if query is None else 2, projection.weight.shape[0]
    return (
        is_plain_call(x, projection.weight, projection.bias, table, query)
        and product_dtype(x) in DTYPES
        and _is_on_cpu(x, projection.weight, projection.bias, table, query)
        and _fits_windows((*x.shape[:3], width), parts, table, window, query)
    )


@_implement(ops.window_attention, _accepts_window_attention)
def _window_attention(
    x: Tensor,
    norm: nn.Module | None,
    projection: nn.Module,
    table: Tensor,
    *,
    window: int,
    query_BhNd: Tensor | None = None,
) -> Tensor:
    projected = ops.linear(x, projection, norm)
    return attention.windows(projected, table, window, query_BhNd, cast("Tensor", projection.bias))


def _accepts_stripe_attention(
    x: Tensor,
    norm: nn.Module | None,
    projection: nn.Module,
    vertical: nn.Module,
    horizontal: nn.Module,
    *,
    stripe: int,
    heads: int,
) -> bool:
    if not (_is_position(vertical) and _is_position(horizontal)):
        return False
    convs, parameters = _convs(vertical, horizontal), () if norm is None else tuple(norm.parameters())
    if not _accepts_grid(x, projection, *convs, *parameters):
        return False
    if torch.compiler.is_compiling():
        return product_dtype(x) in DTYPES
    weight, bias = cast("Tensor", projection.weight), cast("Tensor", projection.bias)
    return (
        is_plain_call(x, weight, bias, *convs)
        and product_dtype(x) in DTYPES
        and _is_on_cpu(x, weight, bias, *convs)
        and _fits_stripes(weight.shape[0], vertical, horizontal, stripe, heads)
    )


@_implement(ops.stripe_attention, _accepts_stripe_attention)
def _stripe_attention(
    x: Tensor,
    norm: nn.Module | None,
    projection: nn.Module,
    vertical: nn.Module,
    horizontal: nn.Module,
    *,
    stripe: int,
    heads: int,
) -> Tensor:
    qkv, bias = ops.linear(x, projection, norm), cast("Tensor", projection.bias)
    return attention.stripes(qkv, _convs(vertical, horizontal), stripe, heads, bias)


def _accepts_windows(projected: Tensor, table: Tensor, *, window: int, query_BhNd: Tensor | None = None) -> bool:
    if _is_captured() or not _has_product_dtype(projected):
        return False
    if torch.compiler.is_compiling():
        return True
    parts, (_, H, W, _) = 3 if query_BhNd is None else 2, projected.shape
    return (
        is_plain_call(projected, table, query_BhNd)
        and _is_on_cpu(projected, table, query_BhNd)
        and H % window == 0
        and W % window == 0
        and _fits_windows(projected.shape, parts, table, window, query_BhNd)
    )


@_implement(ops.attend_windows, _accepts_windows)
def _attend_windows(projected: Tensor, table: Tensor, *, window: int, query_BhNd: Tensor | None = None) -> Tensor:
    return attention.windows(projected, table, window, query_BhNd)


def _accepts_stripes(qkv: Tensor, vertical: nn.Module, horizontal: nn.Module, *, stripe: int, heads: int) -> bool:
    if _is_captured() or not _has_product_dtype(qkv) or not (_is_position(vertical) and _is_position(horizontal)):
        return False
    if torch.compiler.is_compiling():
        return True
    convs, (_, H, W, width) = _convs(vertical, horizontal), qkv.shape
    return (
        is_plain_call(qkv, *convs)
        and _is_on_cpu(qkv, *convs)
        and H % stripe == 0
        and W % stripe == 0
        and _fits_stripes(width, vertical, horizontal, stripe, heads)
    )


@_implement(ops.attend_stripes, _accepts_stripes)
def _attend_stripes(qkv: Tensor, vertical: nn.Module, horizontal: nn.Module, *, stripe: int, heads: int) -> Tensor:
    return attention.stripes(qkv, _convs(vertical, horizontal), stripe, heads, None)


def _accepts_branch(
    x_BCHW: Tensor, depthwise: nn.Module, activation: nn.Module, squeeze_excite: nn.Module, pointwise: nn.Module
) -> bool:
    dim = x_BCHW.shape[1] if x_BCHW.ndim == 4 else 0
    return (
        _is_conv(depthwise, dim, kernel=3, groups=dim)
        and _is_conv(pointwise, dim, kernel=1, groups=1)
        and _is_exact_gelu(activation)
        and is_plain_module(squeeze_excite, SqueezeExcite)
        and _trains(x_BCHW, *_parameters(depthwise, pointwise))
    )


@_implement(ops.conv_branch, _accepts_branch)
def _conv_branch(
    x_BCHW: Tensor,
    depthwise: nn.Conv2d,
    activation: nn.Module,  # noqa: ARG001 - the kernel has it built in
    squeeze_excite: nn.Module,
    pointwise: nn.Conv2d,
) -> Tensor:
    return branch(x_BCHW.permute(0, 2, 3, 1), depthwise, squeeze_excite, pointwise).permute(0, 3, 1, 2)


def _trains(x: Tensor, *parameters: Any) -> bool:
    """Whether autograd records a layer with these parameters on `x`, and the kernels have its products."""
    if torch.compiler.is_compiling() or not is_plain_call(x):
        return False
    is_autocast, dtype = torch.is_autocast_enabled("cpu"), product_dtype(x)
    return (
        x.dtype in DTYPES
        and x.numel() > 0
        and all(_is_readable(parameter) for parameter in parameters)
        and needs_gradient(x, *parameters)
        # PyTorch refuses other combinations of dtypes.
        and (is_autocast or all(parameter.dtype == x.dtype for parameter in parameters))
        and dtype in DTYPES
        and computes(dtype)
    )


def _is_readable(parameter: Any) -> bool:
    return pytorch.is_plain_tensor(parameter) and parameter.dtype in DTYPES and parameter.device.type == "cpu"


def _parameters(*modules: nn.Module) -> list[Any]:
    """Weights and biases; the bias of a convolution that has none is left out, that of a Linear is None."""
    found = [(module.weight, module.bias) for module in modules]
    return [
        parameter
        for module, pair in zip(modules, found, strict=True)
        for parameter in pair
        if parameter is not None or not isinstance(module, nn.Conv2d)
    ]


def _fit(dim: int, modules: list[nn.Module]) -> bool:
    """Whether each module takes as many channels as the one before it gives."""
    for module in modules:
        weight = cast("Tensor", module.weight)
        if weight.shape[-1] != dim:
            return False
        dim = weight.shape[0]
    return True


def _is_layer_norm(norm: nn.Module) -> bool:
    return is_plain_module(norm, nn.LayerNorm) and len(cast("nn.LayerNorm", norm).normalized_shape) == 1


def _is_exact_gelu(activation: Any) -> bool:
    return is_plain_module(activation, nn.GELU) and activation.approximate == "none"


def _is_conv(conv: Any, dim: int, *, kernel: int, groups: int, has_bias: bool = False) -> bool:
    """Whether it is a convolution that keeps a map's channels and size, and nothing more."""
    return (
        is_plain_module(conv, nn.Conv2d)
        and tuple(conv.weight.shape) == (dim, dim // max(groups, 1), kernel, kernel)
        and conv.groups == groups
        and conv.padding == (kernel // 2, kernel // 2)
        and (conv.stride, conv.dilation, conv.padding_mode) == ((1, 1), (1, 1), "zeros")
        and isinstance(conv.bias, Tensor) == has_bias
    )


def _is_position(conv: Any) -> bool:
    """Whether it is a depthwise 3×3 convolution with a bias."""
    return is_plain_module(conv, nn.Conv2d) and _is_conv(
        conv, conv.out_channels, kernel=3, groups=conv.out_channels, has_bias=True
    )


def _convs(*convs: Any) -> Any:
    """Weights and biases of convolutions."""
    return tuple(parameter for conv in convs for parameter in (conv.weight, conv.bias))


def _fits_windows(shape: Any, parts: int, table: Tensor, window: int, query: Tensor | None) -> bool:
    """Whether sizes are those of `ops.attend_windows`."""
    B, *_, width = shape
    heads = table.shape[-1]
    if table.shape != ((2 * window - 1) ** 2, heads) or heads == 0 or width % (parts * heads):
        return False
    return query is None or query.shape == (B, heads, window**2, width // (parts * heads))


def _fits_stripes(width: int, vertical: Any, horizontal: Any, stripe: int, heads: int) -> bool:
    """Whether sizes are those of `ops.attend_stripes`."""
    half = vertical.out_channels
    return stripe > 0 and heads > 0 and half % heads == 0 and (horizontal.out_channels, width) == (half, 6 * half)


def _is_on_cpu(*tensors: Tensor | None) -> bool:
    return all(tensor is None or tensor.device.type == "cpu" for tensor in tensors)


def _has_product_dtype(projected: Tensor) -> bool:
    """Whether products with `projected` have its dtype, and the kernels read it."""
    return projected.ndim == 4 and projected.dtype in DTYPES and product_dtype(projected) == projected.dtype


def _is_captured() -> bool:
    """Whether the call becomes part of an exported graph, which must run without the kernels."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]

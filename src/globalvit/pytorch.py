"""The private parts of PyTorch that this package uses, all in one place.

They may change with any release. `missing()` names one that is gone; whoever needs it then does without, and PyTorch's
public operators compute the same.
"""

import copy
from functools import cache
from typing import Any, TypeVar

import torch
import torch.utils._device
from torch import Tensor, nn
from torch.autograd import forward_ad

# Dictionaries of hooks and a compiled call: what stands between a module's call and its `forward`.
_CALL_ATTRIBUTES = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_compiled_call_impl",
)
_NAMES = (
    "torch._C._len_torch_dispatch_stack",
    "torch._C._functorch.is_legacy_batchedtensor",
    "torch._C._functorch.peek_interpreter_stack",
    "torch._C._autograd._profiler_enabled",
    "torch.nn.modules.module._has_any_global_hook",
    "torch.overrides._get_current_function_mode_stack",
    "torch.utils._device.DeviceContext",
    "torch.autograd.forward_ad._current_level",
    *(f"torch.nn.Module().{name}" for name in _CALL_ATTRIBUTES),
)
_Module = TypeVar("_Module", bound=nn.Module)
_functorch: Any = getattr(torch._C, "_functorch", None)
_autograd: Any = getattr(torch._C, "_autograd", None)
_ONEDNN_OPERATORS = ("_reorder_linear_weight", "_linear_pointwise", "_convolution_pointwise")


@cache
def missing() -> str | None:
    """Return the first private name that this PyTorch does not have, or None if it has all of them."""
    return next((name for name in _NAMES if not _exists(name)), None)


def is_plain_module(module: Any, kind: type[nn.Module]) -> bool:
    """Whether calling `module` does what the class `kind` does and nothing more.

    Subclasses, parametrizations, hooks, a replaced `forward` and a compiled call all do more.
    """
    return is_unchanged(module, kind) and not _has_global_hooks()


def is_unchanged(module: Any, kind: type[nn.Module]) -> bool:
    """As `is_plain_module`, whatever hooks there are on all modules."""
    return (
        type(module) is kind
        and "forward" not in module.__dict__
        and not any(getattr(module, name, None) for name in _CALL_ATTRIBUTES)
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether a hook sees calls of the module or of anything inside it."""
    return _has_global_hooks() or any(
        getattr(part, name, None) for part in module.modules() for name in _CALL_ATTRIBUTES
    )


def is_plain_tree(module: nn.Module) -> bool:
    """Whether `module` and everything inside it does what its classes do and nothing more."""
    return all(is_plain_module(part, type(part)) for part in module.modules())


def children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the names and children of a module; a child with several names comes once for each."""
    return [(name, child) for name, child in module._modules.items() if child is not None]


def with_child(module: nn.Module, name: str, child: nn.Module) -> nn.Module:
    """Return a module that shares everything with `module` except one child."""
    twin = object.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    twin.__dict__["_modules"] = {**module._modules, name: child}
    return twin


def in_evaluation(module: _Module) -> _Module | None:
    """Return a module in evaluation mode that shares parameters, buffers and hooks with `module`, which stays as it is.

    None is returned where a part has a `forward` that may be bound to the part itself, as compiled ones are: nobody can
    tell what mode that would see.
    """
    if any(_has_own_forward(part) for part in module.modules()):
        return None
    if not any(part.training for part in module.modules()):
        return module
    twins: dict[int, Any] = {}

    def twin(part: nn.Module) -> Any:
        if id(part) not in twins:
            twins[id(part)] = made = object.__new__(type(part))
            inside = {name: child if child is None else twin(child) for name, child in part._modules.items()}
            # A compiled call is bound to the part that it was made for.
            made.__dict__.update(part.__dict__, training=False, _modules=inside, _compiled_call_impl=None)
        return twins[id(part)]

    return twin(module)


def _has_own_forward(module: nn.Module) -> bool:
    return "forward" in module.__dict__ or isinstance(module, torch.jit.ScriptModule)


def copied(module: _Module) -> _Module:
    """Return a copy of a module; tensors that PyTorch computes from parameters, as pruning does, are copied as values.

    Raises:
        ValueError: a part cannot be copied.
    """
    computed = (value for part in module.modules() for value in part.__dict__.values() if isinstance(value, Tensor))
    memo: dict[int, Any] = {id(value): value.detach().clone() for value in computed if value.grad_fn is not None}
    try:
        return copy.deepcopy(module, memo)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the model cannot be copied ({reason}); take out what was added to it") from error


def is_plain_call(*tensors: Tensor | None) -> bool:
    """Whether an operation on these tensors is seen by nobody but autograd.

    Compilers, exporters, function transforms, forward-mode derivatives and modes that watch operators see it, and so do
    subclasses of tensors and lazily negated ones.
    """
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or _functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        or _has_function_mode()
        or not all(tensor is None or is_plain_tensor(tensor) for tensor in tensors)
    )


def is_plain_tensor(tensor: Any) -> bool:
    """Whether a tensor is dense numbers in memory: no subclass, no lazy view and no batch of a transform."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout == torch.strided
        and not tensor.is_neg()
        and not tensor.is_nested
        and not _functorch.is_legacy_batchedtensor(tensor)
    )


def is_profiled() -> bool:
    """Whether a profiler records operators."""
    return _autograd._profiler_enabled()


def is_transformed() -> bool:
    """Whether a function transform or forward-mode differentiation is under way; never while a graph is compiled."""
    if torch.compiler.is_compiling():
        return False
    return _functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


@cache
def has_onednn_operators() -> bool:
    """Whether PyTorch has oneDNN's operators with prepared weights and fused activations."""
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in _ONEDNN_OPERATORS)


def onednn_weight(weight: Tensor) -> Tensor:
    """Return a Linear's weight (K, C) in oneDNN's own layout."""
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """Apply a Linear with a weight of `onednn_weight`, and `gelu` or `none`: (…, C) → (…, K)."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "none")


def onednn_linear_sum(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a Linear with a weight of `onednn_weight` and add a residual: (…, C) and (…, K) → (…, K)."""
    return torch.ops.mkldnn._linear_pointwise.binary(x, residual, weight, bias, "add")


def onednn_convolution(x_BCHW: Tensor, conv: nn.Conv2d, activation: str) -> Tensor:
    """Apply a convolution, then `gelu`, `relu` or `none`: (B, C, H, W) → (B, C', H', W')."""
    return torch.ops.mkldnn._convolution_pointwise(
        *(x_BCHW, conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups),
        *(activation, [], "none"),
    )


def _has_global_hooks() -> bool:
    return bool(torch.nn.modules.module._has_any_global_hook())


def _has_function_mode() -> bool:
    """Whether a mode sees calls of PyTorch's functions; the one of a default device does not count."""
    modes = torch.overrides._get_current_function_mode_stack()
    return any(type(mode) is not torch.utils._device.DeviceContext for mode in modes)


def _exists(path: str) -> bool:
    found: Any = torch
    for name in path.split(".")[1:]:
        if name == "Module()":
            found = nn.Module()
        elif not hasattr(found, name):
            return False
        else:
            found = getattr(found, name)
    return True

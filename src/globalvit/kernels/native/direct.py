"""When the library may be called without PyTorch's dispatcher: going through it takes longer than small layers do."""

import torch
from torch import Tensor
from torch._C._autograd import _profiler_enabled
from torch._C._functorch import peek_interpreter_stack


def is_direct(*tensors: Tensor | None) -> bool:
    """Whether nobody watches: no compiler or profiler, no mode or transform that asks for operators, no gradient."""
    return is_plain(*tensors) and not (
        _profiler_enabled() or (torch.is_grad_enabled() and any(map(_requires_grad, tensors)))
    )


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether tensors are what they seem to be, outside compilers, modes and transforms of functions."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or peek_interpreter_stack() is not None
        or torch._C._is_tracing()
        or any(tensor is not None and type(tensor) not in (Tensor, torch.nn.Parameter) for tensor in tensors)
    )


def _requires_grad(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.requires_grad

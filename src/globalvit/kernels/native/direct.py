"""When the library may be called without PyTorch's dispatcher: going through it takes longer than small layers do."""

import torch
from torch import Tensor


def is_direct(x: Tensor) -> bool:
    """Whether nobody watches: no compiler, gradient or profiler, no mode or transform that wants to see operators."""
    return not (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or type(x) is not Tensor
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd._profiler_enabled()
    )

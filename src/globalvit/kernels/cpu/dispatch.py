"""Calling the kernels directly or as operators of PyTorch, and backward passes that can be differentiated again."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from globalvit.pytorch import is_plain_call, is_profiled


def is_direct(*tensors: Tensor | None) -> bool:
    """Whether a kernel may be called without PyTorch's dispatcher, which takes longer than small layers do.

    That is so if no compiler, profiler, mode or transform sees the call and no gradient is recorded.
    """
    return is_plain_call(*tensors) and not is_profiled() and not needs_gradient(*tensors)


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd records an operation on these tensors."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def takes_formula(*gradients: Tensor | None) -> bool:
    """Whether a backward pass must be made of PyTorch's operators.

    That is so if its results are differentiated again (`create_graph`), or if a transform, a mode or a subclass sees
    the gradients, as in `torch.autograd.grad(…, is_grads_batched=True)`. Compilers see the kernels' own operators.
    """
    return not torch.compiler.is_compiling() and (torch.is_grad_enabled() or not is_plain_call(*gradients))


def differentiable_gradients(
    plain: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Any],
    needed: Sequence[bool],
    gradients: Tensor | tuple[Tensor | None, ...],
) -> list[Tensor | None]:
    """Return the gradients of `plain(*inputs)` as PyTorch computes them, so that they can be differentiated again.

    The backward pass of a kernel takes this way if `takes_formula` says so.

    Args:
        plain: the formula in PyTorch's operators.
        inputs: its arguments, as they were saved for the backward pass.
        needed: which of them need a gradient.
        gradients: those of the results; None for a result without one.
    """
    with torch.enable_grad():
        # Aliases, because one input may have been computed from another.
        aliases = [x.view_as(x) if isinstance(x, Tensor) else x for x in inputs]
        results = plain(*aliases)
        pairs = zip(
            results if isinstance(results, tuple) else (results,),
            gradients if isinstance(gradients, tuple) else (gradients,),
            strict=True,
        )
        outputs = [(result, gradient) for result, gradient in pairs if gradient is not None]
        wanted = [alias for alias, is_needed in zip(aliases, needed, strict=True) if is_needed]
        found = iter(
            torch.autograd.grad(
                [result for result, _ in outputs],
                wanted,
                [gradient for _, gradient in outputs],
                create_graph=True,
                allow_unused=True,
            )
        )
    return [next(found) if is_needed else None for is_needed in needed]

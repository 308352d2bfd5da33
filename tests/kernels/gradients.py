"""Results and gradients of functions, and the nodes of a graph of gradients."""

import torch


def gradients(function, leaves, dtype):
    """The result of a function of tensors and the gradients of these, all in float64; None stays None."""
    leaves = [None if leaf is None else leaf.detach().to(dtype, copy=True).requires_grad_() for leaf in leaves]
    out = function(*leaves)
    torch.manual_seed(1)
    out.backward(torch.randn(out.shape).to(out.dtype))
    return [out.detach().double(), *(leaf.grad.double() for leaf in leaves if leaf is not None)]


def relative_error(got, wanted):
    """The largest difference, relative to the largest number that is expected."""
    wanted = wanted.detach()
    return float((got.double() - wanted).abs().max() / wanted.abs().max())


def node_names(tensor):
    """The names of all nodes of a tensor's graph of gradients."""
    names, waiting, seen = set(), [tensor.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            names.add(type(node).__name__)
            waiting += [parent for parent, _ in node.next_functions]
    return names


def with_threads(numbers, compute):
    """What `compute` returns with each number of threads."""
    before, results = torch.get_num_threads(), []
    try:
        for number in numbers:
            torch.set_num_threads(number)
            results.append(compute())
    finally:
        torch.set_num_threads(before)
    return results

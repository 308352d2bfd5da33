"""Sums over all training processes, for losses that are divided by what all of them counted.

Gradients are averaged over the processes. A loss that is to be a mean over everything all of them saw is therefore
`own_sum · world() / over_processes(own_count)`.
"""

import torch.distributed as dist
from torch import Tensor


def world() -> int:
    """Training processes; 1 without a launcher."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def over_processes(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes, without gradient; every process must ask."""
    total = value.detach().clone()
    if world() > 1:
        dist.all_reduce(total)
    return total

"""Counts of an optimizer step over all its passes and training processes, by which losses are divided.

Gradients are added up over the passes of a step and averaged over the processes. A loss that is to be a mean over
everything a step learns from is therefore, in each pass, `own_sum · world() / over_step(own_count).sum(0)`. A step of
one pass exchanges its counts when it needs them; one of several has counted in all its passes before the first is
divided.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist
from torch import Tensor

# Counts of this process's present pass, which are being written down.
_NOTES: ContextVar[list[Tensor] | None] = ContextVar("notes", default=None)
# Counts of the whole step, in the order in which a pass asks for them.
_KNOWN: ContextVar[Iterator[Tensor] | None] = ContextVar("known", default=None)


def world() -> int:
    """Return the number of training processes; 1 without a launcher."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def over_step(own: Tensor) -> Tensor:
    """Return the values of `own` in all passes of all processes: (parts, *own.shape), without gradient.

    Every pass of every process must ask for the same things in the same order. While a pass is only counted, its own
    value stands for all.
    """
    own = own.detach()
    notes, known = _NOTES.get(), _KNOWN.get()
    if known is not None:
        return next(known)
    if notes is None:
        return exchange([[own]])[0]
    notes.append(own)
    return own[None]


@contextmanager
def counting() -> Iterator[list[Tensor]]:
    """Record in the given list what a pass asks `over_step` for."""
    notes: list[Tensor] = []
    token = _NOTES.set(notes)
    try:
        yield notes
    finally:
        _NOTES.reset(token)


@contextmanager
def counted(parts: Sequence[Tensor]) -> Iterator[None]:
    """Answer `over_step` from what `exchange` gave, while one pass is computed."""
    token = _KNOWN.set(iter(parts))
    try:
        yield
    finally:
        _KNOWN.reset(token)


def exchange(passes: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Return the notes of all passes of all processes, each stacked to (parts, *shape).

    Args:
        passes: what each pass of this process wrote down; equally many of equal shapes in every pass and process.
    """
    stacked = [torch.stack([part.float() for part in parts]) for parts in zip(*passes, strict=True)]
    if world() == 1 or not stacked:
        return stacked
    flat = torch.cat([one.flatten() for one in stacked])
    everywhere = [torch.empty_like(flat) for _ in range(world())]
    dist.all_gather(everywhere, flat)
    sizes = [one.numel() for one in stacked]
    of_process = [whole.split(sizes) for whole in everywhere]
    return [torch.cat([parts[place].view_as(one) for parts in of_process]) for place, one in enumerate(stacked)]

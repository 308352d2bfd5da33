"""Running out of memory, told in words that say what to lower."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from globalvit.train.fields import TrainConfig

# How PyTorch's processor allocator words it; there is no class of its own for it.
_CPU_WORDS = ("not enough memory", "can't allocate memory", "DefaultCPUAllocator")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _CPU_WORDS)


@contextmanager
def explained(config: TrainConfig, step: int) -> Iterator[None]:
    """Turn every way of running out of memory into one error.

    Raises:
        MemoryError: the text names step, batch and image size, and what to lower.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(
            f"out of memory in step {step} with batch_size={config.batch_size} and img_size={config.img_size}; "
            f"lower --batch-size (with --grad-accum-steps {2 * config.grad_accum_steps} half of it gives the same "
            f"training), let --auto-batch choose it, or turn on --grad-checkpointing"
        ) from error

"""Running out of memory and losing a worker, in words that say what to change."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from globalvit.train.fields import TrainConfig

# How libraries on a GPU word it: cuBLAS and cuDNN, CUDA and HIP outside of PyTorch's allocator, NCCL, and Apple's.
_GPU_WORDS = (
    "CUBLAS_STATUS_ALLOC_FAILED",
    "HIPBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "HIP out of memory",
    "HIP error: out of memory",
    "MPS backend out of memory",
    "Failed to CUDA calloc",
    "Cuda failure 2 'out of memory'",
    "Cuda failure 'out of memory'",
    "hip failure 'out of memory'",
)
# How PyTorch's allocator for CPUs and the system word it; there is no class of its own for it.
_CPU_WORDS = ("not enough memory", "can't allocate memory", "annot allocate memory", "DefaultCPUAllocator", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    is_in_cudnn = "CUDNN_STATUS_INTERNAL_ERROR" in text and "alloc" in text.lower()
    return isinstance(error, RuntimeError) and (is_in_cudnn or any(word in text for word in _GPU_WORDS + _CPU_WORDS))


@contextmanager
def explained(config: TrainConfig, doing: str) -> Iterator[None]:
    """Turn every way of running out of memory, and the death of a worker, into one error.

    Args:
        config: of the run.
        doing: what ran out of memory, such as `in step 7` or `while building the model`.

    Raises:
        MemoryError: the text names what was being done, batch and image size, and what to lower.
        OSError: a worker died while the process was busy with something else.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # What this function raised further inside says more.
        if is_out_of_memory(error) and not str(error).startswith("out of memory "):
            raise MemoryError(
                f"out of memory {doing} with batch_size={config.batch_size} and img_size={config.img_size}; "
                f"lower --batch-size (with --grad-accum-steps {2 * config.grad_accum_steps} half of it gives the same "
                f"training), let --auto-batch choose it, or turn on --grad-checkpointing"
            ) from error
        if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
            # PyTorch's signal handler raises this wherever the process happens to be.
            raise OSError(
                f"a worker died {doing}, most often because memory or shared memory (/dev/shm) ran out: lower "
                f"--workers, now {config.workers}, or --batch-size ({str(error).splitlines()[0]})"
            ) from error
        raise

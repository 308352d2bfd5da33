"""Running out of memory is recognized by every library's own words, and nothing else is."""

import pytest
import torch

from globalvit.train.memory import is_out_of_memory


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR: host allocation failed",
        "NCCL error in: ProcessGroupNCCL.cpp:77, unhandled cuda error\nCuda failure 2 'out of memory'",
        "HIP out of memory. Tried to allocate 20.00 MiB",
        "HIP error: out of memory",
        "MPS backend out of memory (MPS allocated: 9.05 GB, other allocations: 3 MB, max allowed: 9.07 GB)",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
    ],
)
def test_each_library_is_understood(text):
    assert is_out_of_memory(RuntimeError(text))
    assert not is_out_of_memory(KeyError(text))


@pytest.mark.parametrize(
    "text",
    [
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`",
        "NCCL error in: ProcessGroupNCCL.cpp:77, remote process exited or there was a network error",
        "CUDA error: an illegal memory access was encountered",
    ],
)
def test_other_failures_of_a_gpu_are_not(text):
    assert not is_out_of_memory(RuntimeError(text))


def test_classes_of_their_own_are_understood():
    assert is_out_of_memory(torch.OutOfMemoryError("any words"))
    assert is_out_of_memory(MemoryError())

"""Handing tensors to the C kernels: the one place where a tensor becomes an address."""

import torch
from torch import Tensor

# The kernels' number for each dtype that they read and write.
DTYPES = {torch.float32: 0, torch.bfloat16: 1}
FLOAT = (torch.float32,)


def address(tensor: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...] = FLOAT, first: int = 0) -> int:
    """Return the address of a tensor's numbers, or of number `first` of them.

    Raises:
        RuntimeError: the tensor is not a contiguous one on the CPU with this shape and one of these dtypes.
    """
    if (
        tensor.device.type != "cpu"
        or tensor.dtype not in dtypes
        or tuple(tensor.shape) != shape
        or not tensor.is_contiguous()
    ):
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise RuntimeError(
            f"a C kernel expected a contiguous {names} tensor of shape {shape} on the CPU, got {tensor.dtype} of shape "
            f"{tuple(tensor.shape)} and strides {tensor.stride()} on {tensor.device}; use kernels='torch' instead"
        )
    return tensor.data_ptr() + first * tensor.element_size()


def optional(tensor: Tensor | None, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...] = FLOAT) -> int | None:
    """Return the address of a tensor's numbers, or None for no tensor."""
    return None if tensor is None else address(tensor, shape, dtypes)


def floats(like: Tensor, *shape: int) -> Tensor:
    """Return an uninitialized float32 tensor on the CPU, whatever PyTorch's default dtype and device are."""
    return like.new_empty(shape, dtype=torch.float32, device="cpu")


def check_memory(status: int) -> None:
    """Turn a kernel's status into an error.

    Raises:
        MemoryError: there was no memory for its intermediate results.
    """
    if status:
        raise MemoryError("no memory is left for the intermediate results of a layer; use a smaller window or batch")

"""Which calls the Triton kernels compute. Triton itself is not imported here: macOS and Windows do not have it."""

import os
from importlib.util import find_spec

import torch
from torch import Tensor

HAS_TRITON = find_spec("triton") is not None
# Triton reads this when it is imported and then runs kernels on the CPU, in Python: for tests.
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDEST_HEAD = 128
LEAST_MAJOR = 8


def unavailable() -> str | None:
    """Return why the kernels cannot be used on this machine, or None if they can."""
    if not HAS_TRITON:
        return "Triton is not installed (it comes with PyTorch for CUDA, on Linux)"
    if not IS_INTERPRETED and not torch.cuda.is_available():
        return "PyTorch finds no NVIDIA GPU here"
    if torch.version.hip is not None:
        return "the kernels are for NVIDIA GPUs, this PyTorch is for AMD's"
    return None


def computes(projected: Tensor, head_dim: int) -> bool:
    """Whether the kernels compute windowed attention of this projection with so many channels a head."""
    device = projected.device
    if device.type == "cuda":
        # The properties, not `get_device_capability`: torch.compile takes only the former for a constant.
        is_able = torch.cuda.get_device_properties(device).major >= LEAST_MAJOR
    else:
        # Triton's interpreter multiplies bfloat16 wrongly.
        is_able = IS_INTERPRETED and projected.dtype != torch.bfloat16
    return is_able and projected.dtype in DTYPES and 0 < head_dim <= WIDEST_HEAD and projected.numel() > 0

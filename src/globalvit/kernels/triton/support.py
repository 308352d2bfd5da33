"""Which cases the Triton kernels compute. Triton itself is not imported here: it is absent on macOS and Windows."""

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


def refusal(projected: Tensor, head_dim: int) -> str | None:
    """Why the kernels cannot compute with this projection and so many channels a head; None where they can."""
    device = projected.device
    if not HAS_TRITON:
        return "Triton is not installed (pip install 'globalvit[triton]', Linux only)"
    if device.type != "cuda" and not IS_INTERPRETED:
        return f"it needs a CUDA device and the input is on {device.type}"
    # The properties, not `get_device_capability`: torch.compile takes only the former for a constant.
    if device.type == "cuda" and torch.cuda.get_device_properties(device).major < LEAST_MAJOR:
        return f"it needs a GPU of compute capability {LEAST_MAJOR}.0 or more"
    if projected.dtype not in DTYPES:
        return f"it computes in float32, bfloat16 or float16 and the input is {projected.dtype}"
    if device.type != "cuda" and projected.dtype == torch.bfloat16:
        return "Triton's interpreter multiplies bfloat16 wrongly"
    if head_dim > WIDEST_HEAD:
        return f"it takes heads of {WIDEST_HEAD} channels at most and these have {head_dim}"
    return None

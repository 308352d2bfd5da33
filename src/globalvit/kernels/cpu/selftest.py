"""A test of the C kernels against PyTorch before their first use in a process; a kernel that differs is not used.

It takes less than a tenth of a second.
"""

import logging
from functools import cache
from threading import RLock

import torch

from globalvit.kernels.cases import BOUNDS, cases, ordinary_mode
from globalvit.kernels.cpu.linear import computes

logger = logging.getLogger(__name__)
# Small, but with windows in both directions, several heads and channels that fill no register tile.
SIDE, DIM = 14, 64
_lock = RLock()


@torch.compiler.assume_constant_result
def is_trusted(operation: str) -> bool:
    """Whether the kernels of an operation compute what PyTorch computes."""
    with _lock:
        return operation not in faults()


@cache
def faults() -> dict[str, str]:
    """Return the operations whose kernels differ from PyTorch, with what was found; logs each once."""
    found: dict[str, str] = {}
    with ordinary_mode():
        for dtype in (torch.float32, torch.bfloat16):
            if dtype == torch.float32 or computes(dtype):
                found |= {name: text for name, text in _faults_of(dtype).items() if name not in found}
    for name, text in found.items():
        logger.warning("the C kernel of %s is not used: %s; see globalvit doctor", name, text)
    return found


def _faults_of(dtype: torch.dtype) -> dict[str, str]:
    found = {}
    for case in cases(dtype, side=SIDE, dim=DIM):
        try:
            error = case.error(case.operation.implementations["c"].run)
        except Exception as failure:  # PyTorch's operators compute the same
            found[case.operation.__name__] = f"it fails with {failure!r}"
            continue
        if not error <= BOUNDS[dtype]:
            name = str(dtype).removeprefix("torch.")
            found[case.operation.__name__] = f"it differs from PyTorch by {error:.1e} in {name}"
    return found

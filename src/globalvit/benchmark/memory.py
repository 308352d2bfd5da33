"""What a run adds to memory at its highest."""

import ctypes
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

STATUS, PEAK_RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
KIB = 2**10


def run_bytes(run: Callable[[], None], device: str) -> int | None:
    """Bytes that `run` adds to what is allocated, at its highest; None where nothing tells.

    On a GPU PyTorch's allocator counts. On a CPU it is the growth of the process's resident set, from Linux's own
    account.
    """
    if device == "cuda":
        return _allocated(run)
    if device == "cpu" and sys.platform == "linux":
        return _resident(run)
    return None


def _allocated(run: Callable[[], None]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _resident(run: Callable[[], None]) -> int | None:
    # Freed memory goes back to the system first, or one network's leavings would hide another's needs.
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        PEAK_RESET.write_text("5")
    except OSError:
        return None
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) * KIB


def _status(field: str) -> int:
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))

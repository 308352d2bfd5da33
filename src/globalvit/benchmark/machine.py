"""The machine that figures come from, and how it is set to compute."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from globalvit.kernels.cpu import library
from globalvit.models import ops

# Instructions that decide how fast half precision is.
FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_fp16", "bf16", "sve")
LIBRARIES = ("torch", "timm", "triton")
# Products in reduced precision err by 1e-3 and more, those in float32 by a few 1e-7.
LARGEST_ERROR = 1e-5
GIB = 2**30


def describe(device: str) -> dict[str, Any]:
    """Processor, its instructions, threads, memory, GPU and versions, as plain values."""
    info = _cpuinfo()
    flags = info.get("flags", info.get("Features", "")).split()
    about = {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "vector": torch.backends.cpu.get_cpu_capability(),
        "kernels": _kernels(device),
        "features": [feature for feature in FEATURES if feature in flags],
        "memory_gib": round(psutil.virtual_memory().total / GIB, 1),
        "device": device,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "cuda": torch.version.cuda if device == "cuda" else None,
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    return about | {name: found for name in LIBRARIES if (found := _version(name))}


def in_a_line(about: dict[str, Any]) -> str:
    """A description for people."""
    features = ", ".join(about["features"]) or "no vector instructions known"
    place = about["gpu"] or f"{about['cpu']} ({features}; PyTorch uses {about['vector']})"
    versions = ", ".join(f"{name} {about[name]}" for name in LIBRARIES if name in about)
    return f"{place}, kernels {about['kernels']}, {about['threads']} threads, {versions}, Python {about['python']}"


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


@contextmanager
def computing(device: str, threads: int | None) -> Iterator[None]:
    """Set the threads, and let float32 mean float32; both are what they were afterwards.

    Raises:
        ValueError: the device computes float32 products in reduced precision nevertheless.
    """
    before = torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        check_float32(device)
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])
        torch.backends.cudnn.allow_tf32 = before[2]


def check_float32(device: str) -> None:
    """Compare float32 products on the device with float64 ones.

    Raises:
        ValueError: they err more than float32 does.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    error = float(((a.to(device) @ b.to(device)).cpu().double() - exact).abs().max() / exact.abs().max())
    if error > LARGEST_ERROR:
        raise ValueError(
            f"float32 products on {device} err by {error:.1e} of the largest, so they are computed in a lower "
            f"precision; unset what switches that on, such as NVIDIA_TF32_OVERRIDE or ONEDNN_DEFAULT_FPMATH_MODE"
        )


def _kernels(device: str) -> str:
    """Return the kernels that compute on the device: `torch`, `triton`, or `c` and the instruction set."""
    kernels = ops.kernels_for(device)
    return f"c for {library.loaded().variant.name}" if kernels == "c" else kernels


def _cpuinfo() -> dict[str, str]:
    """The first processor's entries of Linux's own account; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.exists() else []
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None

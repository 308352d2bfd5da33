"""Devices and numeric precisions: what this machine has, and what `auto` chooses. PyTorch is imported on first use."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

Device = Literal["cpu", "cuda", "mps"]
DeviceChoice = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
PrecisionChoice = Literal["auto", "fp32", "tf32", "bf16", "fp16"]

_GPU_NAMES = {"cuda": "NVIDIA GPU", "mps": "Apple GPU"}
# Features that multiply bfloat16, the fastest first: PyTorch's name → the name to print.
_CPU_BF16 = {"amx_bf16": "AMX-BF16", "avx512_bf16": "AVX512-BF16", "bf16": "Arm BF16"}
# Values of ONEDNN_MAX_CPU_ISA that leave these features on.
_ONEDNN_WITH_BF16 = ("default", "all", "avx512_core_bf16", "avx512_core_fp16", "avx512_core_amx", "avx10")
# Rows, columns and depth of the product that tells how slow an emulated precision is.
_TRIAL_SIDE = 192
_warned: set[tuple[str, str]] = set()


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenPrecision:
    """The precision of a forward pass, and why it was chosen.

    Attributes:
        name: fp32, tf32, bf16 or fp16.
        reason: for the log, such as `this CPU has AVX512-BF16`.
        is_native: whether the device computes products in it without emulation.
    """

    name: Precision
    reason: str
    is_native: bool = True


def choose_device(wish: str) -> Device:
    """Return the kind of device to compute on: `auto` is an NVIDIA GPU if there is one, otherwise the CPU.

    Raises:
        ValueError: the device asked for does not exist here.
    """
    import torch

    # An Apple GPU is used only when asked for: it has not been tested yet.
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wish == "auto":
        return "cuda" if available["cuda"] else "cpu"
    if wish not in available:
        raise ValueError(f"device={wish!r}: expected auto, {', '.join(available)}")
    if not available[wish]:
        raise ValueError(f"device={wish}, but PyTorch finds no {_GPU_NAMES[wish]} here; use --device cpu or auto")
    return wish  # pyright: ignore[reportReturnType]


def choose_precision(wish: PrecisionChoice, device: str) -> ChosenPrecision:
    """Return the precision of the forward pass on a device.

    `auto` is the fastest one that the device computes natively: bf16 on CPUs with AVX512-BF16, AMX or Arm's BF16 and on
    NVIDIA GPUs since Ampere, fp16 on older NVIDIA GPUs, fp32 everywhere else. A precision that is asked for by name is
    used even if the device emulates it, with one warning that says how slow that is.

    Args:
        wish: a precision, or `auto`.
        device: `cpu`, `cuda` or `mps`.

    Raises:
        ValueError: the device cannot compute in this precision.
    """
    if wish == "auto":
        return _automatic(device)
    if wish == "fp16" and device == "cpu":
        raise ValueError("precision=fp16 needs a GPU, and the device is cpu; use --precision auto")
    if wish == "tf32" and not computes(wish, device):
        raise ValueError(f"precision=tf32 needs an NVIDIA GPU since Ampere, and the device is {device}; use fp32")
    is_native = computes(wish, device)
    if not is_native:
        _warn_of_emulation(wish, device)
    return ChosenPrecision(name=wish, reason="as asked for", is_native=is_native)


def computes(precision: PrecisionChoice, device: str) -> bool:
    """Whether a device computes products in `precision` without emulation; False for `auto`, which is yet to choose."""
    match precision:
        case "fp32":
            return True
        case "tf32":
            return device == "cuda" and _is_since_ampere()
        case "bf16":
            return native_bf16(device) is not None
        case "fp16":
            return device != "cpu"
        case _:
            return False


def native_bf16(device: str) -> str | None:
    """Return the instructions that multiply bfloat16 natively on a device, or None if it emulates them."""
    import torch

    if device == "cuda":
        return "bfloat16 tensor cores" if _is_since_ampere() else None
    if device != "cpu" or not torch.backends.mkldnn.is_available() or _is_limited():
        return None
    features = cpu_features()
    return next((text for name, text in _CPU_BF16.items() if name in features), None)


def cpu_features() -> frozenset[str]:
    """Return the names of this CPU's instruction sets, such as `avx2`, as PyTorch reports them."""
    import torch

    return frozenset(name for name, value in torch.cpu.get_capabilities().items() if value is True)


def autocast(device: str, precision: Precision) -> AbstractContextManager[Any]:
    """Return a context in which products are computed in `precision`; fp32 is true float32 inside."""
    import torch

    if precision in ("fp32", "tf32"):
        return float32_products(device, precision)
    return torch.autocast(device, dtypes()[precision])


@contextmanager
def float32_products(device: str, precision: Precision) -> Iterator[None]:
    """Compute float32 products on an NVIDIA GPU in true float32, or for `tf32` with its shorter numbers."""
    if device != "cuda":
        yield
        return
    import torch

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def dtypes() -> "dict[Precision, torch.dtype]":
    """Return the dtype of products in each precision."""
    import torch

    return {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _automatic(device: str) -> ChosenPrecision:
    if device == "mps":
        return ChosenPrecision(name="fp32", reason="auto: lower precisions are not measured on Apple GPUs yet")
    found, owner = native_bf16(device), "CPU" if device == "cpu" else "GPU"
    if found is not None:
        return ChosenPrecision(name="bf16", reason=f"auto: this {owner} has {found}")
    if device == "cuda":
        return ChosenPrecision(name="fp16", reason="auto: this GPU has no bfloat16 tensor cores")
    return ChosenPrecision(name="fp32", reason="auto: this CPU would emulate bfloat16")


def _is_since_ampere() -> bool:
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def _is_limited() -> bool:
    """Whether the user limits oneDNN to instruction sets without bfloat16."""
    return not os.environ.get("ONEDNN_MAX_CPU_ISA", "default").lower().startswith(_ONEDNN_WITH_BF16)


def _warn_of_emulation(precision: Precision, device: str) -> None:
    if (precision, device) in _warned:
        return
    _warned.add((precision, device))
    logger.warning(
        "%s is emulated on this %s: a product took %.2g times as long as in fp32; use --precision auto",
        *(precision, "CPU" if device == "cpu" else "GPU", _slowdown(precision, device)),
    )


def _slowdown(precision: Precision, device: str) -> float:
    """Measure how many times longer a small product takes in `precision` than in float32."""
    return _product_seconds(precision, device) / _product_seconds("fp32", device)


def _product_seconds(precision: Precision, device: str) -> float:
    import torch

    a = torch.ones(_TRIAL_SIDE, _TRIAL_SIDE, device=device, dtype=dtypes()[precision])
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        # Reading a number waits for the device.
        float((a @ a)[0, 0])
        seconds.append(time.perf_counter() - start)
    return min(seconds)

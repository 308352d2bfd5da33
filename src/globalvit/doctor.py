"""Checks of this machine: hardware, versions, and every kernel's results and speed compared with PyTorch."""

import copy
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from globalvit import __version__, pytorch
from globalvit.build import create_model
from globalvit.deploy.deploying import BOUNDS as DEPLOYED_BOUNDS
from globalvit.deploy.deploying import deployed_choices
from globalvit.hardware import choose_precision, cpu_features, native_bf16
from globalvit.kernels import cases as calls
from globalvit.models import ops

LIBRARIES = ("torch", "torchvision", "timm", "accelerate", "numpy", "pillow", "safetensors", "keras", "triton")
# Instruction sets that decide how fast the networks are.
FEATURES = ("sse4_2", "avx2", "fma3", "avx512_f", "avx512_bf16", "amx_bf16", "neon", "sve", "bf16")
# Kernels → the device that they are checked on.
KERNELS = {"c": "cpu", "triton": "cuda"}
MODELS = ("gcvit_xxtiny", "gpvit_l1")
GIB = 2**30
# Sizes that take seconds in total, but are large enough for meaningful timings.
SIDE, DIM, IMAGES, REPEATS = 28, 128, 4, 7
PIXELS = 224
# Shared memory below which data loaders run out of it.
LEAST_SHARED = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Comparison of one operation, or of a deployed model, with PyTorch's operators.

    Attributes:
        name: name of the operation or model.
        kernels: `c` or `triton`.
        dtype: dtype of tensors and weights.
        error: largest difference from float64, relative to the largest number.
        bound: maximum error that rounding explains.
        seconds: median time per call.
        torch_seconds: median time per call with PyTorch's operators, measured in alternation.
        is_used: whether the kernels are used for this operation.
        failure: error message; empty if there was none.
    """

    name: str
    kernels: str
    dtype: str
    error: float
    bound: float
    seconds: float
    torch_seconds: float
    is_used: bool
    failure: str = ""

    @property
    def is_right(self) -> bool:
        """Whether the kernels' results match PyTorch's."""
        return not self.failure and self.error <= self.bound

    @property
    def speedup(self) -> float:
        """Speedup over PyTorch's operators."""
        return self.torch_seconds / self.seconds if self.seconds else 0.0


@dataclass(kw_only=True)
class Report:
    """Results of the checks.

    Attributes:
        versions: versions of this package, Python, the system and libraries.
        cpu: name, cores, threads, instruction sets, bfloat16.
        memory: bytes of main memory and of shared memory.
        gpus: name, bytes and compute capability of each GPU.
        precision: by device, the precision that `auto` chooses and why.
        kernels: by name, the variant and origin, or the reason why the kernels are unavailable.
        verdicts: comparison of each operation and of deployed models with PyTorch.
        problems: one sentence per problem; empty on a healthy machine.
        notes: causes of reduced speed, with remedies.
    """

    versions: dict[str, str]
    cpu: dict[str, Any]
    memory: dict[str, int]
    gpus: list[dict[str, Any]]
    precision: dict[str, dict[str, Any]]
    kernels: dict[str, dict[str, Any]]
    verdicts: list[Verdict] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        verdicts = [asdict(one) | {"is_right": one.is_right, "speedup": one.speedup} for one in self.verdicts]
        return asdict(self) | {"verdicts": verdicts}


def examine() -> Report:
    """Check this machine, which takes about ten seconds."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    report = Report(
        versions=_versions(),
        cpu=_cpu(),
        memory=_memory(),
        gpus=[_gpu(index) for index in range(torch.cuda.device_count())] if "cuda" in devices else [],
        precision={device: asdict(choose_precision("auto", device)) for device in devices},
        kernels={name: _kernels(name) for name in KERNELS},
    )
    for name, device in KERNELS.items():
        if device in devices and report.kernels[name]["is_available"]:
            report.verdicts += _judge(name)
    if report.kernels["c"]["is_available"]:
        report.verdicts += [_judge_deployed(model) for model in MODELS]
    _conclude(report)
    return report


def _versions() -> dict[str, str]:
    found = {"globalvit": __version__, "python": platform.python_version(), "system": platform.platform()}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu() -> dict[str, Any]:
    features, name = cpu_features(), str(torch.cpu.get_capabilities().get("cpu_name") or platform.processor())
    return {
        "name": name or platform.machine(),
        "machine": platform.machine(),
        "cores": psutil.cpu_count(logical=False),
        "threads": torch.get_num_threads(),
        "features": [feature for feature in FEATURES if feature in features],
        "pytorch": torch.backends.cpu.get_cpu_capability(),
        "bf16": native_bf16("cpu"),
        "limits": {
            variable: os.environ[variable]
            for variable in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "GLOBALVIT_CPU_LEVEL", "GLOBALVIT_KERNELS")
            if variable in os.environ
        },
    }


def _memory() -> dict[str, int]:
    memory = psutil.virtual_memory()
    found = {"total": memory.total, "available": memory.available}
    shared = Path("/dev/shm")
    if shared.is_dir():
        found["shared"] = shutil.disk_usage(shared).total
    return found


def _gpu(index: int) -> dict[str, Any]:
    about = torch.cuda.get_device_properties(index)
    return {
        "name": about.name,
        "memory": about.total_memory,
        "capability": f"{about.major}.{about.minor}",
        "cuda": torch.version.cuda,
    }


def _kernels(name: str) -> dict[str, Any]:
    reason = ops.unavailable(name)
    if reason is not None:
        return {"is_available": False, "reason": reason}
    if name != "c":
        return {"is_available": True}
    from globalvit.kernels.cpu import library

    found = library.loaded()
    return {"is_available": True, "variant": found.variant.name, "origin": found.origin, "choices": _choices()}


def _choices() -> dict[str, dict[str, Any]]:
    """Return, by dtype, the operations left to PyTorch on this CPU, and the kernels of deployed blocks."""
    from globalvit.kernels.cpu import choices

    found = {}
    for dtype in _dtypes("c"):
        operations, blocks = choices.of_operations(dtype), deployed_choices(dtype)
        found[_name(dtype)] = {
            "origin": operations.origin,
            "pytorch": ops.settled_operations("cpu", dtype),
            "deployed": blocks.used("block", "c"),
        }
    return found


def _judge(kernels: str) -> Iterator[Verdict]:
    """Compare every operation of the kernels with PyTorch's operators."""
    for dtype in _dtypes(kernels):
        for case in calls.cases(dtype, side=SIDE, dim=DIM, images=IMAGES, device=KERNELS[kernels]):
            implementation = case.operation.implementations.get(kernels)
            if implementation is not None:
                yield _judge_call(case, kernels, implementation.run)


def _judge_call(case: calls.Case, kernels: str, run: Callable[..., torch.Tensor]) -> Verdict:
    error, seconds, failure = float("inf"), [0.0, 0.0], ""
    is_used = ops.kernels_for(KERNELS[kernels]) == kernels and case.accepts(kernels)
    with ops.set_kernels(kernels):  # pyright: ignore[reportArgumentType] - one of the two
        try:
            error = case.error(run)
            seconds = calls.medians([lambda: case.results(run), lambda: _by_pytorch(case)], REPEATS)
        except Exception as problem:  # the report shows it
            failure = f"{type(problem).__name__}: {problem}"
    return Verdict(
        name=case.name,
        kernels=kernels,
        dtype=_name(case.dtype),
        error=error,
        bound=calls.BOUNDS[case.dtype],
        seconds=seconds[0],
        torch_seconds=seconds[1],
        is_used=is_used and not failure,
        failure=failure,
    )


def _by_pytorch(case: calls.Case) -> list[torch.Tensor]:
    with ops.set_kernels("torch"):
        return case.results(case.operation.plain)


def _judge_deployed(name: str) -> Verdict:
    """Compare a deployed copy with the model: its results with float64, its time with the original's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, images = create_model(name).eval(), torch.randn(1, 3, PIXELS, PIXELS)
    with torch.inference_mode():
        exact = copy.deepcopy(model).double()(images.double())
        deployed = model.deploy()
        error = float((deployed(images) - exact).abs().max() / exact.abs().max())
        with ops.set_kernels("torch"):
            slow = model.deploy()
        seconds = calls.medians([lambda: deployed(images), lambda: slow(images)], REPEATS)
    return Verdict(
        name=f"{name}, deployed",
        kernels="c",
        dtype="float32",
        error=error,
        bound=DEPLOYED_BOUNDS[torch.float32],
        seconds=seconds[0],
        torch_seconds=seconds[1],
        is_used=True,
    )


def _dtypes(kernels: str) -> list[torch.dtype]:
    if kernels != "c":
        return [torch.float32, torch.bfloat16]
    from globalvit.kernels.cpu.linear import computes

    return [dtype for dtype in (torch.float32, torch.bfloat16) if computes(dtype)]


def _conclude(report: Report) -> None:
    for one in report.verdicts:
        if not one.is_right:
            found = one.failure or f"it differs from float64 by {one.error:.1e}, expected at most {one.bound:.0e}"
            remedy = "set GLOBALVIT_KERNELS=torch" if one.is_used else "it is not used"
            report.problems.append(
                f"the {one.kernels} kernel of {one.name} in {one.dtype} gives wrong results ({found}); {remedy}"
            )
    reason = report.kernels["c"].get("reason")
    if reason is not None:
        report.notes.append(f"the C kernels are not used, which reduces speed: {reason}")
    missing = pytorch.missing()
    if missing is not None:
        report.notes.append(f"this PyTorch version no longer has {missing}; upgrade globalvit")
    if report.memory.get("shared", LEAST_SHARED) < LEAST_SHARED:
        shared = report.memory["shared"] / GIB
        report.notes.append(
            f"/dev/shm has {shared:.2f} GiB; data loading workers may need more (docker run --shm-size 8g)"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

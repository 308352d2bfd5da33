"""Choice of the fastest implementation of each operation on this CPU, from measurements.

`choices.json` next to this file has the choices for CPUs that `benchmarks/choices.py` has measured. Any other CPU is
measured at first use, in at most two seconds per dtype, and its choices are saved in the user's cache. If they cannot
be saved, the C kernels are used, so that all processes compute the same.
"""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from threading import RLock
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout

from globalvit import locks
from globalvit.atomic import replace_with
from globalvit.kernels.cases import Case, cases, ordinary_mode
from globalvit.kernels.cpu import library, variants
from globalvit.kernels.cpu.selftest import faults
from globalvit.models import ops

logger = logging.getLogger(__name__)

TABLE = Path(__file__).with_name("choices.json")
# The first candidate is kept unless another takes less than this fraction of its time, which is rarely noise.
MARGIN = 0.95
# In training these keep a third less memory than PyTorch's operators, which is worth some time.
SAVES_MEMORY, MEMORY_MARGIN = ("norm_mlp", "linear"), 0.85
# Time limit in seconds for a group, and the maximum and minimum number of rounds.
BUDGET_S, ROUNDS, LEAST_ROUNDS = 2.0, 15, 2
# Number of input elements from which a call counts as large.
LARGE = 1 << 17
# Images, side and channels of the calls that are measured, by size.
SIZES = {"small": (1, 14, 128), "large": (2, 28, 160)}
# Seconds to wait for another process that is measuring.
WAIT_S = 30
C, TORCH = "c", "torch"
# Operation → whether the C kernels can compute a call, at whatever speed; `register` fills it.
computable: dict[str, Callable[..., bool]] = {}
_lock = RLock()


@dataclass(frozen=True, slots=True)
class Candidates:
    """Implementations of the same operation.

    Attributes:
        name: name of the operation.
        runs: the implementations by name; the first is kept unless another is clearly faster.
        margin: maximum fraction of the first one's time that counts as clearly faster.
    """

    name: str
    runs: Mapping[str, Callable[[], Any]]
    margin: float = MARGIN


@dataclass(frozen=True, slots=True)
class Group:
    """Candidates that are measured together.

    Attributes:
        name: name of the group.
        candidates: creates the candidates when they have to be measured.
    """

    name: str
    candidates: Callable[[], Iterable[Candidates]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The chosen implementation, and the shortest time of each candidate in seconds."""

    used: str
    seconds: dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Choices:
    """The choices of a group.

    Attributes:
        by_name: choice for each name.
        origin: description of where the choices came from.
    """

    by_name: dict[str, Choice]
    origin: str

    def used(self, name: str, default: str) -> str:
        """Return the implementation to use for `name`."""
        found = self.by_name.get(name)
        return default if found is None else found.used


def takes_pytorch(operation: str, dtype: torch.dtype, elements: int) -> bool:
    """Return whether PyTorch's operators are faster for an input of this many elements, or were requested by name."""
    asked = ops.torch_operations()
    excepted = slower(dtype) if asked is None else asked
    return bool(excepted) and key(operation, dtype, "large" if elements >= LARGE else "small") in excepted


@torch.compiler.assume_constant_result
def slower(dtype: torch.dtype) -> frozenset[str]:
    """Return the operations for which PyTorch's operators are faster than the C kernels on this CPU.

    Names are those that `key` returns.
    """
    with _lock:
        found = of_operations(dtype)
    return frozenset(name for name, choice in found.by_name.items() if choice.used == TORCH)


@cache
def of_operations(dtype: torch.dtype) -> Choices:
    """Return the choices for the models' operations; `slower` prevents concurrent measurements."""
    return choose(operations(dtype))


def key(operation: str, dtype: torch.dtype, size: str) -> str:
    """Return the name of an operation at one dtype and size: `linear/float32/large`."""
    return f"{operation}/{_name(dtype)}/{size}"


def cpu() -> str:
    """Return the key of a CPU's choices: its vendor, family, model, and the kernels' variant."""
    about = _cpuinfo()
    names = ("vendor_id", "cpu family", "model") if "vendor_id" in about else ("CPU implementer", "CPU part")
    return " ".join([*(about.get(name, "?") for name in names), library.loaded().variant.name])


def choose(group: Group) -> Choices:
    """Return the choices of a group from the table or the user's cache, or measure them now and save them there."""
    name = cpu()
    listed = _read(TABLE).get(name, {}).get(group.name)
    if listed is not None:
        return Choices(by_name=_parsed(listed), origin=f"shipped measurements of this CPU model ({name})")
    try:
        return _kept(library.cache_folder() / "choices.json", group)
    except (OSError, Timeout) as error:
        logger.warning(
            "kernels are not timed on this CPU, since the results cannot be saved: %s; using the C kernels", error
        )
        return Choices(by_name={}, origin=f"not measured: {error}")


def _kept(path: Path, group: Group) -> Choices:
    # Timings may change with the kernels' sources and with PyTorch.
    name = f"{cpu()}, PyTorch {torch.__version__}, {variants.sources_hash()[:16]}"
    origin = f"measured on this machine, saved in {path}"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    library.check_owner(path.parent)
    lock = FileLock(path.with_suffix(".lock"))
    locks.acquire(lock, WAIT_S)
    try:
        content = _read(path)
        found = content.get(name, {}).get(group.name)
        if found is None:
            logger.info("timing kernels on this CPU, once (%s)", group.name)
            found = to_json(measure(group))
            content.setdefault(name, {})[group.name] = found
            with replace_with(path) as temporary:
                temporary.write_text(json.dumps(content, indent=1) + "\n")
    finally:
        lock.release()
    return Choices(by_name=_parsed(found), origin=origin)


def measure(group: Group, budget_s: float = BUDGET_S, rounds: int = ROUNDS) -> dict[str, Choice]:
    """Time the candidates in alternation and return the choice for each name.

    The measure is the CPU time of one thread, which depends least on other load.

    Args:
        group: the candidates to time.
        budget_s: time limit for the group, in seconds.
        rounds: maximum number of rounds.
    """
    asked, threads = list(group.candidates()), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {one.name: _measure_one(one, budget_s / len(asked), rounds) for one in asked}
    finally:
        torch.set_num_threads(threads)


def _measure_one(one: Candidates, budget_s: float, rounds: int) -> Choice:
    start = time.perf_counter()
    best = dict.fromkeys(one.runs, float("inf"))
    for turn in range(rounds + 1):
        for name, run in one.runs.items():
            began = time.thread_time()
            run()
            # The first round warms up.
            best[name] = min(best[name], time.thread_time() - began) if turn else best[name]
        if turn >= LEAST_ROUNDS and time.perf_counter() - start > budget_s:
            break
    first, fastest = next(iter(best)), min(best, key=lambda name: best[name])
    return Choice(used=fastest if best[fastest] < one.margin * best[first] else first, seconds=best)


def to_json(choices: Mapping[str, Choice]) -> dict[str, Any]:
    """Return choices as plain values."""
    return {
        name: {
            "used": choice.used,
            "seconds": {run: float(f"{seconds:.3g}") for run, seconds in choice.seconds.items()},
        }
        for name, choice in choices.items()
    }


def operations(dtype: torch.dtype) -> Group:
    """Return the models' operations with C kernels and with PyTorch's operators, in training mode if they train."""
    return Group(f"operations in {_name(dtype)}", lambda: _operations(dtype))


def _operations(dtype: torch.dtype) -> Iterator[Candidates]:
    faulty = faults()
    for size, (images, side, dim) in SIZES.items():
        found: dict[str, list[Case]] = {}
        for case in cases(dtype, side=side, dim=dim, images=images):
            if case.operation.__name__ not in faulty and case.is_accepted(computable[case.operation.__name__]):
                found.setdefault(case.operation.__name__, []).append(case)
        for operation, calls in found.items():
            runs = {C: partial(_run, calls, "c"), TORCH: partial(_run, calls, "torch")}
            margin = MEMORY_MARGIN if operation in SAVES_MEMORY and size == "large" else MARGIN
            yield Candidates(key(operation, dtype, size), runs, margin)


def _run(calls: list[Case], kernels: Literal["c", "torch"]) -> None:
    with ops.set_kernels(kernels), ordinary_mode():
        for case in calls:
            case.results(case.operation.implementations[C].run if kernels == C else case.operation.plain)


def _parsed(found: Mapping[str, Any]) -> dict[str, Choice]:
    return {name: Choice(used=one["used"], seconds=dict(one["seconds"])) for name, one in found.items()}


def _read(path: Path) -> dict[str, Any]:
    """Return a file's content, or an empty dict if it is missing or damaged."""
    try:
        content = json.loads(path.read_text())
        for groups in content.values():
            for group in groups.values():
                _parsed(group)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return content


@cache
def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.exists() else []
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

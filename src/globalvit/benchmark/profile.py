"""Where the time of a run goes, by kind of operation, and how far each kind is from what the machine can do."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from globalvit.benchmark.machine import synchronize
from globalvit.benchmark.operators import KINDS, OUTSIDE, kind_of
from globalvit.benchmark.roofline import Rates, Work, floor_seconds, product_limit, rates
from globalvit.benchmark.steps import Step

RUNS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """Where the time of a run goes.

    Attributes:
        seconds: of a run, by kind of operation, largest first.
        work: operations of a run, by kind; of a compiled or deployed network as they are before that.
        floors: least seconds, by kind; of a compiled or deployed network of its products only, for the rest is fused.
        rates: of the machine.
        limit: images a second that the products alone would allow.
    """

    seconds: dict[str, float]
    work: dict[str, Work]
    floors: dict[str, float]
    rates: Rates
    limit: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in the units of tables."""
        return {
            "ms": {kind: 1e3 * spent for kind, spent in self.seconds.items()},
            "work": {kind: {"gflop": done.flops / 1e9, "mb": done.bytes / 1e6} for kind, done in self.work.items()},
            "floor_ms": {kind: 1e3 * floor for kind, floor in self.floors.items()},
            "gflops_per_second": self.rates.flops / 1e9,
            "gb_per_second": self.rates.bandwidth / 1e9,
            "limit_images_per_second": self.limit,
        }


def profile(step: Step, plain: Step) -> Profile:
    """Run a step a few times under torch's profiler, and once as it is without compiling, to count its operations."""
    cell, seconds, work = step.cell, times_of(step), work_of(plain)
    measured = rates(step.device, cell.precision, torch.get_num_threads())
    floors = {
        kind: floor_seconds(kind, done, measured)
        for kind, done in work.items()
        if kind in seconds and (step is plain or done.flops)
    }
    limit = product_limit(work, measured, cell.batch_size)
    return Profile(seconds=seconds, work=work, floors=floors, rates=measured, limit=limit)


def times_of(step: Step) -> dict[str, float]:
    """Seconds of a run by kind of operation, largest first."""
    device = step.device
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with torch.profiler.profile(activities=activities) as recorded:
        for _ in range(RUNS):
            with torch.profiler.record_function(OUTSIDE):
                step()
        synchronize(device)
    return by_kind(recorded.key_averages(), RUNS, is_gpu=device == "cuda")


def by_kind(events: Any, runs: int, *, is_gpu: bool) -> dict[str, float]:
    """Sum the profiler's own times of operators, in µs, to seconds of a run by kind, largest first.

    On a GPU an operator's time is that of its kernels. Kernels that no operator owns are the compiler's.
    """
    seconds: dict[str, float] = defaultdict(float)
    kernels = 0.0
    for event in events:
        if event.device_type.name != "CPU":
            kernels += event.self_device_time_total
        else:
            own = event.self_device_time_total if is_gpu else event.self_cpu_time_total
            seconds[kind_of(event.key)] += own / runs / 1e6
    if is_gpu:
        seconds["compiled"] += max(0.0, kernels / runs / 1e6 - sum(seconds.values()))
    return {kind: spent for kind, spent in sorted(seconds.items(), key=lambda item: -item[1]) if spent}


def work_of(step: Step) -> dict[str, Work]:
    """Operations of one run, by kind, without the compiler."""
    work: dict[str, Work] = defaultdict(Work)
    with FlopCounterMode(display=False) as counter, Traffic() as traffic:
        step.plain()
    for operator, flops in counter.get_flop_counts()["Global"].items():
        work[kind_of(str(operator).replace(".", "::", 1))].flops += flops
    for kind, moved in traffic.bytes.items():
        work[kind].bytes += moved
    return {kind: work[kind] for kind in KINDS if kind in work}


class Traffic(TorchDispatchMode):
    """Counts the bytes that operators read and write, by kind, while it is entered; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not _is_view(func):
            moved = [*_tensors([args, kwargs]), *_tensors(out)]
            self.bytes[kind_of(func.name())] += sum(_bytes(tensor) for tensor in moved)
        return out


def _is_view(operator: Any) -> bool:
    """Whether the results are the inputs' memory, unwritten."""
    aliases = [result.alias_info for result in operator._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _tensors(values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _bytes(tensor: Tensor) -> int:
    """Of a tensor's memory; what is spread over more places than it has counts once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())

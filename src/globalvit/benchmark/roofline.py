"""How fast a machine can be at best: its rates of matrix products and of memory, and the floors they set."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch

from globalvit.benchmark.machine import synchronize
from globalvit.benchmark.operators import PRODUCTS
from globalvit.benchmark.steps import DTYPES

SECONDS, LEAST = 0.3, 3
SIDES = {"cpu": (1024, 2048), "mps": (2048, 4096), "cuda": (4096, 8192)}
# Larger than any cache.
COPIED = {"cpu": 2**28, "mps": 2**29, "cuda": 2**30}


@dataclass(frozen=True, slots=True)
class Rates:
    """What a machine was measured to reach.

    Attributes:
        flops: floating-point operations a second in square matrix products; a multiply-add is two.
        bandwidth: bytes a second, read and written, of a large copy.
    """

    flops: float
    bandwidth: float


@dataclass(slots=True)
class Work:
    """Operations that have to be done: floating-point ones, and bytes read and written."""

    flops: float = 0.0
    bytes: float = 0.0


def floor_seconds(kind: str, work: Work, rates: Rates) -> float:
    """The least time a kind of operation can take: its products at their rate, or its bytes at theirs.

    Each operation reads its inputs and writes its outputs once; fusing several can beat that floor, nothing else can.
    """
    of_memory = work.bytes / rates.bandwidth
    return max(work.flops / rates.flops, of_memory) if kind in PRODUCTS else of_memory


def product_limit(work: Mapping[str, Work], rates: Rates, batch_size: int) -> float | None:
    """Images a second if matrix products ran at their measured rate and all else took no time; None without any."""
    flops = sum(work[kind].flops for kind in PRODUCTS if kind in work)
    return batch_size * rates.flops / flops if flops else None


@cache
def rates(device: str, precision: str, threads: int) -> Rates:
    """Measure the machine now, once for each device, precision and number of threads."""
    del threads
    return Rates(max(_flops(device, precision, side) for side in SIDES[device]), _bandwidth(device))


def _flops(device: str, precision: str, side: int) -> float:
    a, b = (torch.randn(side, side, device=device).to(DTYPES[precision]) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / _fastest(lambda: torch.mm(a, b, out=out), device)


def _bandwidth(device: str) -> float:
    source = torch.zeros(COPIED[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _fastest(lambda: target.copy_(source), device)


def _fastest(run: Callable[[], object], device: str) -> float:
    """Seconds of the fastest of several runs after a first one."""
    run()
    times: list[float] = []
    while len(times) < LEAST or sum(times) < SECONDS:
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)

"""Measuring a cell: its networks run in turn, so that a drifting clock rate slows all of them alike."""

import gc
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

from globalvit.benchmark import memory
from globalvit.benchmark.cells import Cell, Entry
from globalvit.benchmark.machine import synchronize
from globalvit.benchmark.networks import create
from globalvit.benchmark.steps import Step, make_step
from globalvit.train.memory import is_out_of_memory

logger = logging.getLogger(__name__)
# After the first run. CUDA graphs are recorded in the second one and replayed from the third.
WARM_UPS = 2
LEAST_REPEATS, MOST_REPEATS = 3, 1000
MEMORY_RUNS = 3
# Compiled networks of one class in a cell: more than torch expects.
RECOMPILE_LIMIT = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How long a cell is measured.

    Attributes:
        seconds: of repetitions, once everything is compiled and warm; there are at least three.
        repeats: of every network, whatever time they take; None leaves the number to `seconds`.
    """

    seconds: float = 3.0
    repeats: int | None = None

    def is_spent(self, rounds: int, elapsed: float) -> bool:
        """Whether to stop: another round would not fit."""
        if self.repeats is not None:
            return rounds >= self.repeats
        if rounds < LEAST_REPEATS:
            return False
        return rounds >= MOST_REPEATS or elapsed * (rounds + 1) / rounds > self.seconds


@dataclass(kw_only=True, slots=True)
class Result:
    """What was measured of an entry of a cell.

    Attributes:
        cell: the work.
        entry: the network.
        seconds: of each repetition, in the order in which they ran.
        first_s: of the first run, compiling included.
        run_bytes: most that a run adds to memory; None where nothing tells.
        state_bytes: of weights, buffers and what the optimizer remembers.
        params: number of parameters.
        error: why figures are missing; None if there are some.
    """

    cell: Cell
    entry: Entry
    seconds: list[float] = field(default_factory=list)
    first_s: float | None = None
    run_bytes: int | None = None
    state_bytes: int | None = None
    params: int | None = None
    error: str | None = None

    @property
    def compile_s(self) -> float | None:
        """What the first run took longer than the others, of compiled networks."""
        if self.entry.compiler == "eager" or self.first_s is None or not self.seconds:
            return None
        return max(0.0, self.first_s - statistics.median(self.seconds))


class Measurement:
    """The networks of a cell, from being built to being dropped."""

    def __init__(self, cell: Cell, device: str, window: str | None) -> None:
        self.device, self.window = device, window
        self.results = [Result(cell=cell, entry=entry) for entry in cell.entries]
        self.steps: dict[int, Step] = {}

    def run(self, budget: Budget, advance: Callable[[], None]) -> list[Result]:
        """Measure everything; `advance` is called once for each network."""
        for number, result in enumerate(self.results):
            self._try(number, lambda number=number, result=result: self._start(number, result))
            advance()
        self._alternate(budget)
        for number in list(self.steps):
            self._try(number, lambda number=number: self._measure_memory(number))
        return self.results

    def _start(self, number: int, result: Result) -> None:
        """Build a network, and run it until nothing is new to it."""
        cell = result.cell
        module = create(result.entry, cell, self.window)
        result.params = sum(parameter.numel() for parameter in module.parameters())
        step = self.steps[number] = make_step(module, cell, result.entry, self.device)
        with step.compiling():
            result.first_s = self._seconds(step)
            for _ in range(1 if result.entry.compiler == "eager" else WARM_UPS):
                step()
        result.state_bytes = step.state_bytes

    def _alternate(self, budget: Budget) -> None:
        start, rounds = time.perf_counter(), 0
        while self.steps and not budget.is_spent(rounds, time.perf_counter() - start):
            for number in list(self.steps):
                self._try(number, lambda number=number: self._repeat(number))
            rounds += 1

    def _repeat(self, number: int) -> None:
        self.results[number].seconds.append(self._seconds(self.steps[number]))

    def _measure_memory(self, number: int) -> None:
        """Measure the memory of a run, after its times, which that would disturb."""
        result, step = self.results[number], self.steps[number]
        # The pools of CUDA graphs keep what they once took.
        if result.entry.compiler != "graphs":
            runs = MEMORY_RUNS if result.seconds[0] < 1 else 1
            found = sorted(filter(None, (memory.run_bytes(step, self.device) for _ in range(runs))))
            result.run_bytes = found[len(found) // 2] if found else None

    def _seconds(self, step: Step) -> float:
        synchronize(self.device)
        start = time.perf_counter()
        step()
        synchronize(self.device)
        return time.perf_counter() - start

    def _try(self, number: int, action: Callable[[], None]) -> None:
        """Do something with one network; if it fails, the others go on without it."""
        result = self.results[number]
        try:
            action()
        except Exception as error:  # what a library's network or compiler raises is not known beforehand
            result.error = "out of memory" if is_out_of_memory(error) else _in_a_line(error)
            logger.debug("%s failed", result.entry, exc_info=True)
        if result.error is not None:
            # Only now, when the error no longer holds on to what it was raised in.
            result.seconds.clear()
            self.steps.pop(number, None)
            _free(self.device)


def measure(
    cells: Sequence[Cell],
    device: str,
    *,
    budget: Budget,
    window: str | None = None,
    advance: Callable[[], None] = lambda: None,
) -> list[Result]:
    """Measure cell after cell; a network that fails says why in its result, and the rest goes on.

    Args:
        cells: what to measure.
        device: `cpu`, `cuda` or `mps`.
        budget: of each cell.
        window: of GC ViT, `own` or `ratio`, as in `create_model`.
        advance: called after each network has been built and compiled.
    """
    results = []
    is_compiling = any(entry.compiler != "eager" for cell in cells for entry in cell.entries)
    with _first_time() if is_compiling else nullcontext():
        for cell in cells:
            results += Measurement(cell, device, window).run(budget, advance)
            if is_compiling:
                torch._dynamo.reset()
            _free(device)
    return results


@contextmanager
def _first_time() -> Iterator[None]:
    """Let compiling take as long as for somebody who does it for the first time."""
    from torch._dynamo import config
    from torch._inductor.utils import fresh_cache

    with fresh_cache(), config.patch(recompile_limit=RECOMPILE_LIMIT):
        yield


def _free(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def _in_a_line(error: BaseException) -> str:
    """The first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__

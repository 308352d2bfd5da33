"""How a run shows that it moves: a progress bar on a terminal or in a notebook, a line now and then elsewhere."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from globalvit.console import NotebookBar, in_notebook

logger = logging.getLogger(__name__)

MIB = 2**20
# Seconds between two lines where there is no terminal.
LINE_EVERY = 10.0
# Seconds between two updates of a notebook's bar, each of which is a message to the browser.
NOTEBOOK_EVERY = 0.2


class Display(Protocol):
    """Shows the state of the run after a step."""

    def show(self, step: int, epoch: float, loss: float, speed: float) -> None:
        """Steps done, epochs done, loss of the last record or step, images per second over all processes."""


@contextmanager
def open_display(total_steps: int, done: int, device: torch.device, *, is_main: bool) -> Iterator[Display]:
    """A bar on a terminal or in a notebook, lines in the log otherwise, nothing on processes other than the first."""
    if not is_main:
        yield _Nothing()
    elif in_notebook():
        yield _InNotebook(total_steps, device)
    elif sys.stderr.isatty():
        with _Bar(total_steps, done, device) as bar:
            yield bar
    else:
        yield _Lines(total_steps, device)


def memory_mib(device: torch.device) -> float:
    """Largest memory used so far in MiB: of the GPU, or of this process where it computes on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    try:
        import resource
    except ImportError:  # on Windows
        return psutil.Process().memory_info().peak_wset / MIB  # pyright: ignore[reportAttributeAccessIssue]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts kibibytes, macOS bytes.
    return peak / (MIB if sys.platform == "darwin" else 1024)


class _Nothing:
    def show(self, step: int, epoch: float, loss: float, speed: float) -> None:
        """Show nothing."""


class _Bar:
    def __init__(self, total: int, done: int, device: torch.device) -> None:
        self.device = device
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]:.1f}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f} · {task.fields[speed]:.0f} img/s · left"),
            TimeRemainingColumn(),
            TextColumn("· {task.fields[memory]:.0f} MiB"),
            console=Console(stderr=True),
        )
        self.task: TaskID = self.bar.add_task("", total=total, completed=done, epoch=0.0, loss=0.0, speed=0.0, memory=0)

    def __enter__(self) -> "_Bar":
        self.bar.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self.bar.stop()

    def show(self, step: int, epoch: float, loss: float, speed: float) -> None:
        """Move the bar."""
        memory = memory_mib(self.device)
        self.bar.update(self.task, completed=step, epoch=epoch, loss=loss, speed=speed, memory=memory)


class _InNotebook:
    def __init__(self, total: int, device: torch.device) -> None:
        self.total, self.device = total, device
        self.bar = NotebookBar(total)
        self.shown = 0.0

    def show(self, step: int, epoch: float, loss: float, speed: float) -> None:
        """Move the bar, where the last move is long enough ago."""
        now = time.monotonic()
        if now - self.shown < NOTEBOOK_EVERY and step < self.total:
            return
        self.shown = now
        self.bar.update(
            step, f"epoch {epoch:.1f}, loss {loss:.4f}, {speed:.0f} img/s, {memory_mib(self.device):.0f} MiB"
        )


class _Lines:
    def __init__(self, total: int, device: torch.device) -> None:
        self.total = total
        self.device = device
        self.first: tuple[int, float] | None = None
        self.written = time.monotonic()

    def show(self, step: int, epoch: float, loss: float, speed: float) -> None:
        """Log a line where the last one is long enough ago."""
        now = time.monotonic()
        first_step, start = self.first = self.first or (step, now)
        if now - self.written < LINE_EVERY and step < self.total:
            return
        self.written = now
        left = (now - start) / max(step - first_step, 1) * (self.total - step)
        logger.info(
            "step %d/%d, epoch %.1f, loss %.4f, %.0f img/s, %s left, %.0f MiB",
            *(step, self.total, epoch, loss, speed, timedelta(seconds=round(left)), memory_mib(self.device)),
        )

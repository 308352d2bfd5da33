"""Scoring a task on a validation set, exactly, on one process or many."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from globalvit.data.common.loading import to_device
from globalvit.data.common.transforms import ChannelStatistics
from globalvit.hardware import Precision, autocast
from globalvit.metrics.metric import Metric
from globalvit.tasks.task import Batch, Task

Gather = Callable[[Any], list[Any]]


class StoppedError(Exception):
    """Evaluation was given up because the run is to stop."""


def evaluate(
    task: Task,
    loader: Iterable[Batch],
    transform: ChannelStatistics,
    device: torch.device,
    precision: Precision = "fp32",
    *,
    gather: Gather = lambda item: [item],
    should_stop: Callable[[], Any] = lambda: False,
    on_batch: Callable[[Batch], None] = lambda _: None,
    make_metric: Callable[[], Metric] | None = None,
) -> Metric:
    """Score `task` on the batches of `loader`.

    Args:
        task: on `device`; its mode is what it was afterwards.
        loader: this process's share of the set, as `eval_loader` gives it: uint8 images, no padding.
        transform: normalizes the batches; the task's own preprocessing.
        device: where to compute.
        precision: of the forward pass.
        gather: sends an object to all processes and returns everybody's in rank order.
        should_stop: asked before every batch; true gives up, on every process.
        on_batch: called with every batch as it came from the loader.
        make_metric: makes an empty metric in place of the task's own.

    Returns:
        The task's metric over the shares of all processes, equal on each.

    Raises:
        StoppedError: `should_stop` said so on one of the processes.
    """
    make_metric = make_metric or task.metric
    metric = make_metric()
    was_stopped = False
    with task.evaluating(), autocast(device.type, precision):
        for batch in loader:
            was_stopped = bool(should_stop())
            if was_stopped:
                break
            on_batch(batch)
            if len(batch["indices"]):
                task.evaluate(to_device(batch, transform, device), metric)
    shares = gather((was_stopped, metric.state()))
    if any(stopped for stopped, _ in shares):
        raise StoppedError
    return _merged(make_metric(), [state for _, state in shares])


def _merged(metric: Metric, states: list[Any]) -> Metric:
    # Always in rank order from an empty metric: floating-point sums are then the same on every process.
    for state in states:
        metric.merge(state)
    return metric

"""Batches in a fixed order from any number of workers.

What a batch holds is a function of (seed, epoch, batch, batch size, rank), never of the workers: they are
handed lists of indices, and everything random is drawn per sample.

Legend: `B` images · `C` channels · `H W` pixels.
"""

import atexit
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any
from weakref import WeakSet

import torch
from torch.utils.data import DataLoader

from globalvit.data.common.holdout import Subset
from globalvit.data.common.plans import EvalPlan, TrainPlan
from globalvit.data.common.samples import (
    Batch,
    Collate,
    EvalSamples,
    Samples,
    SkippedFiles,
    TrainSamples,
    collate_erased,
    collate_labeled,
)
from globalvit.data.common.transforms import ChannelStatistics, check_channels

SECONDS_AFTER_SIGTERM = 60
_open_loaders: WeakSet["Loader"] = WeakSet()


class _Batches(DataLoader):
    def check_worker_number_rationality(self) -> None:
        """Do not warn of more processes than processors: where reading waits for a network, they are right."""


class Loader:
    """Batches of one split, in a fixed order; its processes start at the first batch and serve every later epoch.

    Each batch is a dict: `indices` (B,) int64, `skipped`, a list of (name, reason), and what `collate` makes: of
    classification `images` uint8 (B, C, H, W) and `labels` (B,) int64, in training also `erase`, a list of `Erasure`.

    Attributes:
        skipped: the unreadable images met so far; the loader keeps this account itself.
    """

    def __init__(
        self,
        samples: Samples,
        plan: TrainPlan | EvalPlan,
        workers: int,
        pin_memory: bool,
        start_method: str | None,
    ) -> None:
        self.skipped = SkippedFiles(len(samples.source))
        self._plan = plan
        method = start_method or multiprocessing.get_start_method()
        self._is_importable = method != "fork" and type(samples.source).__module__ != "__main__"
        self._batches = _Batches(
            samples,
            sampler=plan,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=workers,
            worker_init_fn=_outlive_signals,
            # The loader would otherwise draw from the process's own generator.
            generator=torch.Generator(),
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            multiprocessing_context=start_method if workers else None,
        )
        _open_loaders.add(self)

    def __len__(self) -> int:
        """Batches that the next loop over this loader gives at most."""
        return len(self._plan)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches.

        Raises:
            ValueError: too many unreadable images, or one of more than 179 megapixels.
            OSError: a worker died.
        """
        for item in self._received():
            if isinstance(item, Exception):
                raise item
            self.skipped.add(item["skipped"])
            if len(item["indices"]):
                yield item

    def close(self) -> None:
        """End the workers; a later loop starts new ones."""
        # Left to the garbage collector, the queues may go first, and the processes are waited for in vain.
        running, self._batches._iterator = self._batches._iterator, None
        if running is not None and self._batches.num_workers:
            running._shutdown_workers()  # pyright: ignore[reportAttributeAccessIssue]

    def _received(self) -> Iterator[Batch | Exception]:
        try:
            with _without_script() if self._is_importable else nullcontext():
                batches = iter(self._batches)
            yield from batches
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise OSError(
                f"a worker died, most often for want of memory or of shared memory (/dev/shm): lower "
                f"--workers, now {self._batches.num_workers}, or --batch-size ({str(error).splitlines()[0]})"
            ) from error


class TrainLoader(Loader):
    """Training's batches; `start_at` chooses epoch, first batch and image size of the next loop."""

    _plan: TrainPlan

    @property
    def batches_per_epoch(self) -> int:
        """Batches of a whole epoch, the same on every rank."""
        return self._plan.batches_per_epoch

    def start_at(self, epoch: int, batch: int = 0, image_size: tuple[int, int] | None = None) -> None:
        """Let the next loop begin at a batch of an epoch.

        Args:
            epoch: decides the order and the augmentation.
            batch: batches of that epoch to leave out, as when a run is resumed.
            image_size: height and width in pixels in place of the transform's own.
        """
        self._plan.epoch, self._plan.start_batch, self._plan.image_size = epoch, batch, image_size


def train_loader(
    source: Any,
    transform: Any,
    *,
    batch_size: int,
    seed: int,
    epoch: int = 0,
    start_batch: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
    start_method: str | None = None,
    collate: Collate = collate_erased,
    plan: type[TrainPlan] = TrainPlan,
) -> TrainLoader:
    """Shuffled, augmented batches of one epoch; `start_at` of the loader goes on to others with the same processes.

    With a global batch of batch_size × world samples, global batch k is the k-th piece of the epoch's order, and rank
    r has the r-th part of it. The last, incomplete global batch is dropped.

    Args:
        source: the samples.
        transform: called with (sample, seed, epoch, index), makes an item; has `channels` and `prepare()`.
        batch_size: samples in a batch of this process.
        seed: of order and augmentation.
        epoch: likewise.
        start_batch: batches of the epoch to leave out.
        rank: of this process.
        world: number of processes.
        workers: workers of this process; 0 loads in the process itself.
        pin_memory: put batches into page-locked memory, for a GPU.
        start_method: of the workers: `fork`, `spawn` or `forkserver`; None is the platform's.
        collate: makes a batch of items.
        plan: which samples share a batch, and when.

    Raises:
        ValueError: the samples do not fill one global batch, or the transform's options are not understood.
    """
    _ask_channels(source, transform.channels)
    # Finds mistakes now, and imports timm once for all processes that are forked later.
    transform.prepare()
    samples = TrainSamples(source, transform, seed, collate)
    loader = TrainLoader(samples, plan.over(source, batch_size, seed, rank, world), workers, pin_memory, start_method)
    loader.start_at(epoch, start_batch)
    return loader


def eval_loader(
    source: Any,
    transform: Any,
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
    start_method: str | None = None,
    make: Callable[[Any], Any] | None = None,
    collate: Collate = collate_labeled,
) -> Loader:
    """Batches of the samples rank, rank + world, rank + 2·world, …: every sample once over all ranks, none padded.

    The arguments are those of `train_loader`, with the transform of evaluation, and `make`, from a sample to an item;
    by default samples are images, and items `transform.to_uint8` of them.
    """
    _ask_channels(source, transform.channels)
    plan, samples = (
        EvalPlan(len(source), batch_size, rank, world),
        EvalSamples(source, make or transform.to_uint8, collate),
    )
    return Loader(samples, plan, workers, pin_memory, start_method)


def _ask_channels(source: Any, channels: int) -> None:
    """Tell a source how many channels its images must have; one that reads no files gives RGB, which is refused later.

    Raises:
        ValueError: image files do not give so many.
    """
    check_channels(channels)
    inner = source.source if isinstance(source, Subset) else source
    if hasattr(inner, "channels"):
        inner.channels = channels


def to_device(batch: Batch, transform: ChannelStatistics, device: torch.device | str) -> Batch:
    """A loader's batch on a device, its images normalized float32 and erased where their records say so.

    Images of several sizes are a list, and stay one.
    """
    moved = {key: _moved(value, device) for key, value in batch.items()}
    images = moved["images"]
    if isinstance(images, list):
        return moved | {"images": [transform.normalize(image) for image in images]}
    return moved | {"images": transform.finish(transform.normalize(images), batch)}


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, list):
        return [_moved(item, device) for item in value]
    return value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value


@contextmanager
def _without_script() -> Iterator[None]:
    """Keep workers that are spawned from importing the script that is running, which would begin everything again.

    They need nothing of it: what they are given comes from importable modules.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _unchanged(item: Any) -> Any:
    return item


def _outlive_signals(_: int) -> None:
    # A scheduler signals the whole process group. The training process decides when to stop, needs its batches until
    # then, and ends these processes itself; should it fail to, they end some time after the signal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: _end_later())


def _end_later() -> None:
    timer = threading.Timer(SECONDS_AFTER_SIGTERM, os._exit, (1,))
    timer.daemon = True
    timer.start()


@atexit.register
def _close_all() -> None:
    # Must come before multiprocessing's own cleaning up at exit, which would wait for processes that outlive SIGTERM.
    for loader in list(_open_loaders):
        loader.close()

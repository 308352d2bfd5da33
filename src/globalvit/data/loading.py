"""Batches in a fixed order from any number of loader processes.

What a batch holds is a function of (seed, epoch, batch, batch size, rank), never of the loader processes: they are
handed lists of indices, and everything random is drawn per sample.

Legend: `B` images · `C` channels · `H W` pixels.
"""

import atexit
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple
from weakref import WeakSet

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from globalvit.data.erasing import Erasure, erase
from globalvit.data.image_folder import Source
from globalvit.data.images import OversizedImage, UnreadableImage
from globalvit.data.randomness import Purpose, derive
from globalvit.data.skipped import SkippedFiles, TooManyUnreadableError, most_unreadable
from globalvit.data.transforms import EvalTransform, TrainTransform, check_channels

Batch = dict[str, Any]
Skipped = list[tuple[str, str]]
# What no other picture can stand in for. Loader processes send these instead of a batch, to be raised with their own
# text; any other error is a mistake of ours and comes with its traceback.
FATAL = (OversizedImage, TooManyUnreadableError, MemoryError)
SECONDS_AFTER_SIGTERM = 60
_open_loaders: WeakSet["Loader"] = WeakSet()


class Request(NamedTuple):
    """What a loader process is asked for: one batch."""

    indices: tuple[int, ...]
    epoch: int = 0
    image_size: tuple[int, int] | None = None


class TrainSamples(Dataset):
    """Batches of augmented pictures; in place of an unreadable one stands the next readable one of the source."""

    def __init__(self, source: Source, transform: TrainTransform, seed: int) -> None:
        self.source = source
        self.transform = transform
        self.seed = seed

    def __getitem__(self, request: Request) -> Batch | Exception:
        transform = self.transform
        if request.image_size:
            transform = replace(transform, image_size=request.image_size)
        samples: list[tuple[int, torch.Tensor]] = []
        erasures: list[Erasure] = []
        skipped: Skipped = []
        try:
            for wanted in request.indices:
                index, picture = _read_next(self.source, wanted, skipped)
                image, erasure = transform(picture, self.seed, request.epoch, index)
                samples.append((index, image))
                erasures.append(erasure)
        except FATAL as error:
            return error
        return _collate(self.source, samples, skipped) | {"erase": erasures}


class EvalSamples(Dataset):
    """Batches of pictures as they are evaluated; unreadable ones are left out, so a batch may be smaller, or empty."""

    def __init__(self, source: Source, transform: EvalTransform) -> None:
        self.source = source
        self.transform = transform

    def __getitem__(self, request: Request) -> Batch | Exception:
        samples: list[tuple[int, torch.Tensor]] = []
        skipped: Skipped = []
        try:
            for index in request.indices:
                picture = _read(self.source, index, skipped)
                if picture is not None:
                    samples.append((index, self.transform.to_uint8(picture)))
        except FATAL as error:
            return error
        return _collate(self.source, samples, skipped)


class EvalPlan:
    """The batches of one rank in evaluation: the indices rank, rank + world, rank + 2·world and so on."""

    def __init__(self, total: int, batch_size: int, rank: int, world: int) -> None:
        self.indices = range(rank, total, world)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[Request]:
        for start in range(0, len(self.indices), self.batch_size):
            yield Request(tuple(self.indices[start : start + self.batch_size]))


class TrainPlan:
    """The batches of one rank in an epoch of training.

    Raises:
        ValueError: the pictures do not fill one global batch.
    """

    def __init__(self, total: int, batch_size: int, seed: int, rank: int, world: int) -> None:
        self.total, self.batch_size, self.seed, self.rank, self.world = total, batch_size, seed, rank, world
        self.batches_per_epoch = total // (batch_size * world)
        if not self.batches_per_epoch:
            raise ValueError(
                f"{total} training pictures do not fill one batch of {batch_size} on {world} process(es); lower "
                "--batch-size"
            )
        self.epoch, self.start_batch = 0, 0
        self.image_size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return max(self.batches_per_epoch - self.start_batch, 0)

    def __iter__(self) -> Iterator[Request]:
        generator = np.random.Generator(np.random.PCG64(derive(Purpose.ORDER, self.seed, self.epoch)))
        order = generator.permutation(self.total)[: self.batches_per_epoch * self.world * self.batch_size]
        mine = order.reshape(self.batches_per_epoch, self.world, self.batch_size)[self.start_batch :, self.rank]
        epoch, image_size = self.epoch, self.image_size
        return (Request(tuple(indices.tolist()), epoch, image_size) for indices in mine)


class _Batches(DataLoader):
    def check_worker_number_rationality(self) -> None:
        """Do not warn of more processes than processors: where reading waits for a network, they are right."""


class Loader:
    """Batches of one split, in a fixed order; its processes start at the first batch and serve every later epoch.

    Each batch is a dict: `images` uint8 (B, C, H, W), `labels` (B,) and `indices` (B,) int64, `skipped`, a list of
    (name, reason); of training also `erase`, a list of `Erasure`.

    Attributes:
        skipped: the unreadable pictures met so far; the loader keeps this account itself.
    """

    def __init__(
        self,
        samples: TrainSamples | EvalSamples,
        plan: TrainPlan | EvalPlan,
        workers: int,
        pin_memory: bool,
        start_method: str | None,
    ) -> None:
        check_channels(samples.transform.channels)
        self.skipped = SkippedFiles(len(samples.source))
        self._plan = plan
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
        """Batches that the next loop over this loader gives at the most."""
        return len(self._plan)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches.

        Raises:
            ValueError: too many unreadable pictures, or one of more than 179 megapixels.
            OSError: a loader process died.
        """
        for item in self._received():
            if isinstance(item, Exception):
                raise item
            self.skipped.add(item["skipped"])
            if len(item["labels"]):
                yield item

    def close(self) -> None:
        """End the loader processes; a later loop starts new ones."""
        # Left to the garbage collector, the queues may go first, and the processes are waited for in vain.
        running, self._batches._iterator = self._batches._iterator, None
        if running is not None and self._batches.num_workers:
            running._shutdown_workers()  # pyright: ignore[reportAttributeAccessIssue]

    def _received(self) -> Iterator[Batch | Exception]:
        try:
            yield from self._batches
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise OSError(
                f"a loader process died, most often for want of memory or of shared memory (/dev/shm): lower "
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
    source: Source,
    transform: TrainTransform,
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
) -> TrainLoader:
    """Shuffled, augmented batches of one epoch; `start_at` of the loader goes on to others with the same processes.

    With a global batch of batch_size × world pictures, global batch k is the k-th piece of the epoch's order, and rank
    r has the r-th part of it. The last, incomplete global batch is dropped.

    Args:
        source: the pictures.
        transform: makes uint8 tensors of them.
        batch_size: pictures in a batch of this process.
        seed: of order and augmentation.
        epoch: likewise.
        start_batch: batches of the epoch to leave out.
        rank: of this process.
        world: number of processes.
        workers: loader processes of this process; 0 loads in the process itself.
        pin_memory: put batches into page-locked memory, for a GPU.
        start_method: of the loader processes: `fork`, `spawn` or `forkserver`; None is the platform's.

    Raises:
        ValueError: the pictures do not fill one global batch, or the transform's options are not understood.
    """
    # Finds mistakes now, and imports timm once for all processes that are forked later.
    transform.prepare()
    plan = TrainPlan(len(source), batch_size, seed, rank, world)
    samples = TrainSamples(source, transform, seed)
    loader = TrainLoader(samples, plan, workers, pin_memory, start_method)
    loader.start_at(epoch, start_batch)
    return loader


def eval_loader(
    source: Source,
    transform: EvalTransform,
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
    start_method: str | None = None,
) -> Loader:
    """Batches of the pictures rank, rank + world, rank + 2·world, …: every picture once over all ranks, none padded.

    The arguments are those of `train_loader`.
    """
    plan, samples = EvalPlan(len(source), batch_size, rank, world), EvalSamples(source, transform)
    return Loader(samples, plan, workers, pin_memory, start_method)


def to_device(batch: Batch, transform: EvalTransform | TrainTransform, device: torch.device | str) -> Batch:
    """A loader's batch on a device, its images normalised float32 and erased where their records say so."""
    moved = {
        key: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
    }
    moved["images"] = transform.normalise(moved["images"])
    if isinstance(transform, TrainTransform):
        erase(moved["images"], batch["erase"], transform.remode)
    return moved


def _unchanged(item: Any) -> Any:
    return item


def _outlive_signals(_: int) -> None:
    # A scheduler signals the whole process group. The training process decides when to stop, needs its batches until
    # then, and ends these processes itself; should it fail to, they end some time after the signal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(SECONDS_AFTER_SIGTERM))


@atexit.register
def _close_all() -> None:
    # Must come before multiprocessing's own cleaning up at exit, which would wait for processes that outlive SIGTERM.
    for loader in list(_open_loaders):
        loader.close()


def _read(source: Source, index: int, skipped: Skipped) -> Image.Image | None:
    """Picture `index`, or None and an entry in `skipped`."""
    try:
        return source.read(index)
    except (UnreadableImage, OSError) as error:
        skipped.append((source.name(index), str(error)))
        return None


def _read_next(source: Source, index: int, skipped: Skipped) -> tuple[int, Image.Image]:
    """The first readable picture from `index` on, and its index.

    Raises:
        TooManyUnreadableError: so many in a row are unreadable that the run must stop.
    """
    total = len(source)
    for step in range(min(total, most_unreadable(total) + 1)):
        candidate = (index + step) % total
        image = _read(source, candidate, skipped)
        if image is not None:
            return candidate, image
    raise TooManyUnreadableError.of(total, dict(skipped))


def _collate(source: Source, samples: Sequence[tuple[int, torch.Tensor]], skipped: Skipped) -> Batch:
    indices = [index for index, _ in samples]
    images = [image for _, image in samples]
    return {
        "images": torch.stack(images) if images else torch.empty(0, dtype=torch.uint8),
        "labels": torch.tensor([source.label(index) for index in indices], dtype=torch.int64),
        "indices": torch.tensor(indices, dtype=torch.int64),
        "skipped": skipped,
    }

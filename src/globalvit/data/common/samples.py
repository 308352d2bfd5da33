"""What a worker does: read the samples of a batch, transform them, put them together.

Legend: `B` images · `C` channels · `H W` pixels.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from globalvit.data.common.images import OversizedImage, UnreadableImage, WrongLabels
from globalvit.data.common.plans import Request

logger = logging.getLogger(__name__)

Batch = dict[str, Any]
# More unreadable images than both of these stop the run.
MOST_FILES = 10
MOST_SHARE = 0.01


class Source(Protocol):
    """Labeled images by position 0 … len − 1; picklable, so that workers can hold it."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels 0 … K−1."""
        ...

    def __len__(self) -> int: ...

    def label(self, index: int) -> int:
        """The label of image `index`."""
        ...

    def name(self, index: int) -> str:
        """What to call image `index` in messages: its path where it has one."""
        ...

    def read(self, index: int) -> Image.Image:
        """Image `index` as RGB; raises `UnreadableImage`, `OversizedImage` or OSError."""
        ...


class TooManyUnreadableError(ValueError):
    """So many images are unreadable that the run stops."""

    @classmethod
    def of(cls, total: int, reasons: Mapping[str, str]) -> Self:
        """The error for some of `total` images, name → reason."""
        last = list(reasons.values())[-1]
        return cls(
            f"{len(reasons)} of {total} images cannot be read, a run stops above {MOST_FILES} and {MOST_SHARE:.0%}; "
            f"`globalvit data check` lists them, the last was: {last}"
        )


class SkippedFiles:
    """Unreadable images of one set, by name; each is logged once.

    Args:
        total: images in the set.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.reasons: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, skipped: Iterable[tuple[str, str]]) -> None:
        """Count (name, reason) pairs, such as a batch's `skipped`.

        Raises:
            TooManyUnreadableError: more than 10 images and more than 1 % of all are unreadable.
        """
        for name, reason in skipped:
            if name not in self.reasons:
                self.reasons[name] = reason
                logger.warning("skipped: %s", reason)
        if len(self) > most_unreadable(self.total):
            raise TooManyUnreadableError.of(self.total, self.reasons)

    def merge(self, reasons: Mapping[str, str]) -> None:
        """Count what another process or an earlier part of the run found: its `reasons`; raises as `add` does."""
        self.add(reasons.items())


def most_unreadable(total: int) -> int:
    """How many unreadable images of `total` a run goes on with."""
    return max(MOST_FILES, int(total * MOST_SHARE))


Skipped = list[tuple[str, str]]
# What no other image can stand in for. Workers send these instead of a batch, to be raised with their own
# text; any other error is a mistake of ours and comes with its traceback.
FATAL = (OversizedImage, WrongLabels, TooManyUnreadableError, MemoryError)


@dataclass(frozen=True, slots=True)
class Item:
    """One sample of a batch: its index in the source, and what the transform made of it."""

    index: int
    value: Any


# From (source, items) to a batch without `indices` and `skipped`, which every batch has.
Collate = Callable[[Any, Sequence[Item]], Batch]


class Samples(Dataset, ABC):
    """Batches of what a source gives, transformed.

    Args:
        source: the samples; see `Source` for what is asked of it.
        collate: makes a batch of items.
    """

    def __init__(self, source: Any, collate: Collate) -> None:
        self.source = source
        self.collate = collate

    def __getitem__(self, request: Request) -> Batch | Exception:
        skipped: Skipped = []
        try:
            items = list(self.items(request, skipped))
        except FATAL as error:
            return error
        indices = torch.tensor([item.index for item in items], dtype=torch.int64)
        return self.collate(self.source, items) | {"indices": indices, "skipped": skipped}

    @abstractmethod
    def items(self, request: Request, skipped: Skipped) -> Iterator[Item]:
        """The items of a batch; those that cannot be read are added to `skipped`."""


class TrainSamples(Samples):
    """Batches of augmented samples; in place of an unreadable one stands the next readable one of the source."""

    def __init__(self, source: Any, transform: Any, seed: int, collate: Collate) -> None:
        super().__init__(source, collate)
        self.transform = transform
        self.seed = seed

    def items(self, request: Request, skipped: Skipped) -> Iterator[Item]:
        """An item for each index; its own or that of the next sample that can be read."""
        transform = self.transform
        if request.image_size:
            transform = replace(transform, image_size=request.image_size)
        for wanted in request.indices:
            index, sample = _read_next(self.source, wanted, skipped)
            yield Item(index, transform(sample, self.seed, request.epoch, index))


class EvalSamples(Samples):
    """Batches of samples as they are evaluated; unreadable ones are left out, so a batch may be smaller, or empty."""

    def __init__(self, source: Any, make: Callable[[Any], Any], collate: Collate) -> None:
        super().__init__(source, collate)
        self.make = make

    def items(self, request: Request, skipped: Skipped) -> Iterator[Item]:
        """An item for each index whose sample can be read."""
        for index in request.indices:
            sample = _read(self.source, index, skipped)
            if sample is not None:
                yield Item(index, self.make(sample))


def collate_labeled(source: Source, items: Sequence[Item]) -> Batch:
    """`images` uint8 (B, C, H, W) and `labels`: (B,) int64, or in multi-label sets (B, K) float32 of 0 and 1."""
    images = [item.value for item in items]
    return {
        "images": torch.stack(images) if images else torch.empty(0, dtype=torch.uint8),
        "labels": _labels(source, items),
    }


def _labels(source: Any, items: Sequence[Item]) -> Tensor:
    if getattr(source, "is_multi_label", False):
        rows = [torch.from_numpy(source.target(item.index)) for item in items]
        return torch.stack(rows) if rows else torch.empty(0, len(source.classes))
    return torch.tensor([source.label(item.index) for item in items], dtype=torch.int64)


def collate_erased(source: Source, items: Sequence[Item]) -> Batch:
    """The same of training's items (image, what to erase of it); the latter are `erase`."""
    images = [Item(item.index, item.value[0]) for item in items]
    return collate_labeled(source, images) | {"erase": [item.value[1] for item in items]}


def _read(source: Any, index: int, skipped: Skipped) -> Any:
    """Sample `index`, or None and an entry in `skipped`."""
    try:
        return source.read(index)
    except (UnreadableImage, OSError) as error:
        skipped.append((source.name(index), str(error)))
        return None


def _read_next(source: Any, index: int, skipped: Skipped) -> tuple[int, Any]:
    """The first readable sample from `index` on, and its index.

    Raises:
        TooManyUnreadableError: so many in a row are unreadable that the run must stop.
    """
    total = len(source)
    for step in range(min(total, most_unreadable(total) + 1)):
        candidate = (index + step) % total
        sample = _read(source, candidate, skipped)
        if sample is not None:
            return candidate, sample
    raise TooManyUnreadableError.of(total, dict(skipped))

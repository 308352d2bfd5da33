"""Which samples make a batch, and in which order: a function of (seed, epoch, batch, batch size, rank) alone."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import numpy as np

from globalvit.data.common.randomness import Purpose, derive

# Enough to find partners of alike shapes, few enough that they are others in every epoch.
SORTED_BATCHES = 32


class Request(NamedTuple):
    """What a worker is asked for: one batch."""

    indices: tuple[int, ...]
    epoch: int = 0
    image_size: tuple[int, int] | None = None


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
        ValueError: the images do not fill one global batch.
    """

    @classmethod
    def over(cls, source: Any, batch_size: int, seed: int, rank: int, world: int) -> Self:
        """The plan of a source's samples."""
        return cls(len(source), batch_size, seed, rank, world)

    def __init__(self, total: int, batch_size: int, seed: int, rank: int, world: int) -> None:
        self.total, self.batch_size, self.seed, self.rank, self.world = total, batch_size, seed, rank, world
        self.batches_per_epoch = total // (batch_size * world)
        if not self.batches_per_epoch:
            raise ValueError(
                f"{total} training images do not fill one batch of {batch_size} on {world} process(es); lower "
                "--batch-size"
            )
        self.epoch, self.start_batch = 0, 0
        self.image_size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return max(self.batches_per_epoch - self.start_batch, 0)

    def __iter__(self) -> Iterator[Request]:
        generator = np.random.Generator(np.random.PCG64(derive(Purpose.ORDER, self.seed, self.epoch)))
        order = generator.permutation(self.total)[: self.batches_per_epoch * self.world * self.batch_size]
        batches = self._divided(order, generator).reshape(self.batches_per_epoch, self.world, self.batch_size)
        mine = batches[self.start_batch :, self.rank]
        epoch, image_size = self.epoch, self.image_size
        return (Request(tuple(indices.tolist()), epoch, image_size) for indices in mine)

    def _divided(self, order: np.ndarray, generator: np.random.Generator) -> np.ndarray:  # noqa: ARG002
        """The epoch's samples, one global batch after the other."""
        return order


class AspectPlan(TrainPlan):
    """As `TrainPlan`, but the images of a global batch are of alike shapes, so that little of it is padding.

    The epoch's order is cut into pieces of 32 global batches; each piece is sorted by width over height and divided
    into batches, and at last all batches are shuffled. Which images share a batch changes from epoch to epoch.
    """

    aspects: np.ndarray

    @classmethod
    def over(cls, source: Any, batch_size: int, seed: int, rank: int, world: int) -> Self:
        """The plan of a source's samples, which tells the `sizes` of its images, (len, 2): height and width."""
        plan = super().over(source, batch_size, seed, rank, world)
        plan.aspects = source.sizes[:, 1] / source.sizes[:, 0]
        return plan

    def _divided(self, order: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        global_batch = self.batch_size * self.world
        pieces = np.split(order, range(global_batch * SORTED_BATCHES, len(order), global_batch * SORTED_BATCHES))
        ordered = np.concatenate([piece[np.argsort(self.aspects[piece], kind="stable")] for piece in pieces])
        return generator.permutation(ordered.reshape(-1, global_batch))

"""How each kind of task is fed: from a config to data sets, transforms, batches and a look at them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

from PIL import Image

from globalvit.data.common.loading import Batch, Loader, TrainLoader
from globalvit.models.variants import Kind
from globalvit.tasks.task import Task
from globalvit.train.fields import TrainConfig

Transform = TypeVar("Transform")


class Feed(ABC, Generic[Transform]):
    """What a run of one kind of task eats.

    Attributes:
        kind: of the task.
    """

    kind: ClassVar[Kind]

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    @abstractmethod
    def open_split(self, split: str, classes: Sequence[str] | None = None, *, is_whole: bool = False) -> Any:
        """A split of `data_dir`, labeled as `classes` say where they are given.

        Args:
            split: its name, or `train`, `val` or `test`.
            classes: names of the classes by label.
            is_whole: keep the images that training may do without.

        Raises:
            NoSplitError: the data have no such split.
            FileNotFoundError: a folder or file is missing.
            ValueError: the data are not what they should be; the text says what is wrong and where.
        """

    def is_named(self, split: str) -> bool:
        """Whether the user named this split, so that no other one may be meant."""
        return split == self.config.val_split

    @abstractmethod
    def augmentation(self, transform: Transform) -> Any:
        """Training's transform, ending in the statistics of the evaluation transform."""

    @abstractmethod
    def train_loader(self, source: Any, augmentation: Any, **share: Any) -> TrainLoader:
        """Batches to train on; `share` as in `data.common.loading.train_loader`."""

    @abstractmethod
    def eval_loader(self, source: Any, transform: Transform, **share: Any) -> Loader:
        """Batches to evaluate on; `share` as in `data.common.loading.eval_loader`."""

    @abstractmethod
    def sheet(self, batch: Batch, classes: Sequence[str], transform: Transform) -> Image.Image:
        """An image of a training batch as the network gets it."""

    def set_up(self, task: Task) -> None:
        """Give a task what the config says of its losses and its evaluation."""

    def finish(self, batch: Batch, number: int, *, is_on: bool) -> Batch:  # noqa: ARG002 - for those that mix
        """Complete a batch on the device; `number` counts the batches of the run, `is_on` says whether to mix."""
        return batch

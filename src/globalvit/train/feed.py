"""How each kind of task is fed: from a config to data sets, transforms, batches and a look at them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

from PIL import Image

from globalvit.data.image_folder import open_split
from globalvit.data.imagenet import readable
from globalvit.data.loading import Batch, Loader, TrainLoader, eval_loader, train_loader
from globalvit.data.mixing import Mixing
from globalvit.data.preview import sample_sheet
from globalvit.data.transforms import EvalTransform, TrainTransform
from globalvit.models.variants import Kind, ModelSpec
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
    def open_split(self, split: str, classes: Sequence[str] | None = None) -> Any:
        """A split of `data_dir`, labelled as `classes` say where they are given.

        Raises:
            FileNotFoundError: a folder or file is missing.
            ValueError: the data are not what they should be; the text says what is wrong and where.
        """

    @abstractmethod
    def augmentation(self, transform: Transform) -> Any:
        """Training's transform, ending in the statistics of the evaluation transform."""

    @abstractmethod
    def train_loader(self, source: Any, augmentation: Any, **share: Any) -> TrainLoader:
        """Batches to train on; `share` as in `data.loading.train_loader`."""

    @abstractmethod
    def eval_loader(self, source: Any, transform: Transform, **share: Any) -> Loader:
        """Batches to evaluate on; `share` as in `data.loading.eval_loader`."""

    @abstractmethod
    def sheet(self, batch: Batch, classes: Sequence[str], transform: Transform) -> Image.Image:
        """A picture of a training batch as the network gets it."""

    def set_up(self, task: Task) -> None:
        """Give a task what the config says of its losses and its evaluation."""

    def finish(self, batch: Batch, number: int, *, is_on: bool) -> Batch:  # noqa: ARG002 - for those that mix
        """Complete a batch on the device; `number` counts the batches of the run, `is_on` says whether to mix."""
        return batch


class ClassifyFeed(Feed[EvalTransform]):
    """Pictures with one label each."""

    kind = "classify"

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self._mixing: Mixing | None = None

    def open_split(self, split: str, classes: Sequence[str] | None = None) -> Any:
        """See `data.image_folder.open_split`."""
        assert self.config.data_dir is not None
        return open_split(self.config.data_dir, split, classes)

    def augmentation(self, transform: EvalTransform) -> TrainTransform:
        """The augmentation of the config, at the size of the evaluation transform."""
        config = self.config
        return TrainTransform(
            image_size=transform.image_size,
            scale=config.scale,
            ratio=config.ratio,
            hflip=config.hflip,
            vflip=config.vflip,
            aa=config.aa,
            color_jitter=config.color_jitter or None,
            interpolation=config.train_interpolation,
            reprob=config.reprob,
            remode=config.remode,
            recount=config.recount,
            mean=transform.mean,
            std=transform.std,
        )

    def train_loader(self, source: Any, augmentation: TrainTransform, **share: Any) -> TrainLoader:
        """Batches of one size, to be mixed."""
        config = self.config
        self._mixing = Mixing(
            len(source.classes),
            mixup=config.mixup,
            cutmix=config.cutmix,
            prob=config.mixup_prob,
            switch_prob=config.mixup_switch_prob,
            smoothing=config.smoothing,
            seed=config.seed,
        )
        self._mixing.check_batch_size(config.batch_size)
        return train_loader(source, augmentation, **share)

    def eval_loader(self, source: Any, transform: EvalTransform, **share: Any) -> Loader:
        """Batches of one size."""
        return eval_loader(source, transform, **share)

    def set_up(self, task: Task) -> None:
        """Give a task what the config says of its losses and its evaluation."""

    def finish(self, batch: Batch, number: int, *, is_on: bool) -> Batch:
        """Mix images and labels."""
        assert self._mixing is not None
        return self._mixing(batch, number, is_on=is_on)

    def sheet(self, batch: Batch, classes: Sequence[str], transform: EvalTransform) -> Image.Image:
        """Rows of images, each with its classes below."""
        return sample_sheet(batch, readable(classes), transform)


FEEDS: dict[Kind, type[Feed[Any]]] = {"classify": ClassifyFeed}


def feed_for(config: TrainConfig) -> Feed[Any]:
    """What the config's model is fed with."""
    return FEEDS[ModelSpec(model=config.model).kind](config)

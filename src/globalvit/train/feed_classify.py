"""How classifiers are fed: images with one label each, or in multi-label sets with any number."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from globalvit.data.classification.dataset import open_split
from globalvit.data.classification.imagenet import readable
from globalvit.data.classification.mixing import Mixing, MultiLabelMixing
from globalvit.data.classification.transforms import EvalTransform, TrainTransform
from globalvit.data.common.images import RGB
from globalvit.data.common.loading import Batch, Loader, TrainLoader, eval_loader, train_loader
from globalvit.drawing.samples import sample_sheet
from globalvit.tasks.classify import Classifier
from globalvit.tasks.task import Task
from globalvit.train.feed import Feed
from globalvit.train.fields import TrainConfig


class ClassifyFeed(Feed[EvalTransform]):
    """Images with one label each."""

    kind = "classify"

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self._mixing: Mixing | None = None

    def open_split(self, split: str, classes: Sequence[str] | None = None, *, is_whole: bool = False) -> Any:  # noqa: ARG002
        """See `data.classification.dataset.open_split`."""
        config = self.config
        assert config.data_dir is not None
        exact = self.is_named(split)
        nested = config.nested_classes
        return open_split(
            config.data_dir,
            split,
            classes,
            form=config.format,
            exact=exact,
            nested=nested,
            multi_label=config.multi_label,
        )

    def augmentation(self, transform: EvalTransform) -> TrainTransform:
        """The augmentation of the config, at the size of the evaluation transform."""
        config = self.config
        return TrainTransform(
            image_size=transform.image_size,
            scale=config.scale,
            ratio=config.ratio,
            hflip=config.hflip,
            vflip=config.vflip,
            # Beyond three channels no color is changed.
            aa=config.aa if transform.channels <= RGB else None,
            color_jitter=(config.color_jitter or None) if transform.channels <= RGB else None,
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
        kind = MultiLabelMixing if getattr(source, "is_multi_label", False) else Mixing
        self._mixing = kind(
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

    def finish(self, batch: Batch, number: int, *, is_on: bool) -> Batch:
        """Mix images and labels."""
        assert self._mixing is not None
        return self._mixing(batch, number, is_on=is_on)

    def set_up(self, task: Task) -> None:
        """Choose whether to average with the mirror image."""
        assert isinstance(task, Classifier)
        task.flip = self.config.eval_flip

    def sheet(self, batch: Batch, classes: Sequence[str], transform: EvalTransform) -> Image.Image:
        """Rows of images, each with its classes below."""
        return sample_sheet(batch, readable(classes), transform)

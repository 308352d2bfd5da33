"""How detectors are fed: images with boxes and, for most, masks."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from globalvit.data.common.loading import Batch, Loader, TrainLoader, eval_loader, train_loader
from globalvit.data.common.plans import AspectPlan
from globalvit.data.common.transforms import FitTransform
from globalvit.data.detection.dataset import open_detection
from globalvit.data.detection.instances import DetectSource
from globalvit.data.detection.transforms import (
    DetectEvalTransform,
    DetectTrainTransform,
    collate_ground_truth,
    collate_targets,
)
from globalvit.drawing.instances import instance_sheet
from globalvit.models.variants import ModelSpec
from globalvit.tasks.detect import Detector, RegionDetector
from globalvit.tasks.task import Task
from globalvit.train.feed import Feed
from globalvit.train.fields import TrainConfig

BOXES_ONLY = ("retinanet",)


class DetectFeed(Feed[FitTransform]):
    """Images of many sizes: those of a training batch are alike in shape."""

    kind = "detect"

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        # Training's ids of the categories, which other splits must not contradict.
        self._category_ids: tuple[int | None, ...] | None = None

    def open_split(self, split: str, classes: Sequence[str] | None = None, *, is_whole: bool = False) -> DetectSource:
        """See `open_detection`; images without objects may be left out of training."""
        config = self.config
        assert config.data_dir is not None
        source = open_detection(
            config.data_dir,
            split,
            classes=classes,
            category_ids=None if classes is None else self._category_ids,
            form=config.format,
            annotations=self._annotations(split),
            need_masks=ModelSpec(model=config.model).head not in BOXES_ONLY,
            crowd_as_instances=config.crowd_as_instances,
            with_empty=config.keep_empty or is_whole or split != config.train_split,
            exact=self.is_named(split),
        )
        if split == config.train_split:
            self._category_ids = source.category_ids
        return source

    def _annotations(self, split: str) -> str | None:
        """The file of annotations that the config names for a split."""
        if split == self.config.train_split:
            return self.config.train_annotations
        return self.config.val_annotations

    def augmentation(self, transform: FitTransform) -> DetectTrainTransform:
        """Resized and cropped as the config says, for images of the sides of evaluation."""
        config = self.config
        return DetectTrainTransform(
            policy=config.det_augment,
            short_side=transform.short_side or transform.long_side,
            long_side=transform.long_side,
            crop=config.det_crop,
            scale=config.jitter_scale,
            hflip=config.hflip,
            interpolation=transform.interpolation,
            mean=transform.mean,
            std=transform.std,
        )

    def train_loader(self, source: DetectSource, augmentation: DetectTrainTransform, **share: Any) -> TrainLoader:
        """Lists of images of alike shapes, with what is in them."""
        return train_loader(source, augmentation, collate=collate_targets, plan=AspectPlan, **share)

    def eval_loader(self, source: DetectSource, transform: FitTransform, **share: Any) -> Loader:
        """Lists of whole images, with what is in them in the images' own pixels."""
        make = DetectEvalTransform(transform)
        return eval_loader(source, transform, make=make, collate=collate_ground_truth, **share)

    def set_up(self, task: Task) -> None:
        """Choose how many regions are learned from, and whether to look at mirror images."""
        assert isinstance(task, Detector)
        task.flip = self.config.eval_flip
        if isinstance(task, RegionDetector):
            task.set_samples(self.config.roi_samples)

    def sheet(self, batch: Batch, classes: Sequence[str], transform: FitTransform) -> Image.Image:
        """Images with boxes, masks and names."""
        return instance_sheet(batch, classes, transform)

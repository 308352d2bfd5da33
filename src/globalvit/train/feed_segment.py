"""How segmenters are fed: images with a label for every pixel."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from globalvit.data.common.images import RGB
from globalvit.data.common.loading import Batch, Loader, TrainLoader, eval_loader, train_loader
from globalvit.data.common.transforms import FitTransform
from globalvit.data.segmentation.dataset import MaskSource
from globalvit.data.segmentation.registry import open_labeled
from globalvit.data.segmentation.transforms import (
    SegmentEvalTransform,
    SegmentTrainTransform,
    collate_crops,
    collate_images,
)
from globalvit.drawing.overlay import label_sheet
from globalvit.models.variants import as_size
from globalvit.tasks.segment import Segmenter, SegmentInference
from globalvit.tasks.segment_loss import SegmentLoss
from globalvit.tasks.task import Task
from globalvit.train.feed import Feed
from globalvit.train.fields import TrainConfig


class SegmentFeed(Feed[FitTransform]):
    """Images with a label for every pixel: random crops to train on, whole images to evaluate on."""

    kind = "segment"

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self._palette: np.ndarray | None = None
        # What 255 stands for in training's label maps, so that validation reads its own alike.
        self._is_binary: bool | None = None

    def open_split(
        self,
        split: str,
        classes: Sequence[str] | None = None,
        *,
        is_whole: bool = False,  # noqa: ARG002
    ) -> MaskSource:
        """See `data.segmentation.registry.open_labeled`."""
        config = self.config
        assert config.data_dir is not None
        source = open_labeled(
            config.data_dir,
            split,
            form=config.format,
            classes=classes,
            num_classes=config.num_classes,
            reduce_zero_label=config.reduce_zero_label,
            class_file=config.class_file,
            ignore_label=config.ignore_label,
            is_binary=self._is_binary,
            exact=self.is_named(split),
        )
        if split == config.train_split:
            self._is_binary = source.is_binary
        return source

    def augmentation(self, transform: FitTransform) -> SegmentTrainTransform:
        """Crops of `img_size` from images resized by a random ratio."""
        config = self.config
        size = _crop(config, transform)
        return SegmentTrainTransform(
            image_size=size,
            short_side=transform.short_side or min(size),
            long_side=transform.long_side,
            scale=config.resize_ratio,
            max_share=config.crop_max_share,
            hflip=config.hflip,
            vflip=config.vflip,
            distortion=float(config.photometric) if transform.channels <= RGB else 0.0,
            mean=transform.mean,
            std=transform.std,
        )

    def train_loader(self, source: MaskSource, augmentation: SegmentTrainTransform, **share: Any) -> TrainLoader:
        """Batches of crops."""
        self._palette = source.palette
        return train_loader(source, augmentation, collate=collate_crops, **share)

    def eval_loader(self, source: MaskSource, transform: FitTransform, **share: Any) -> Loader:
        """Lists of whole images, with labels in the images' own sizes."""
        make = SegmentEvalTransform(transform)
        return eval_loader(source, transform, make=make, collate=collate_images, **share)

    def set_up(self, task: Task) -> None:
        """Choose losses and the way of inference."""
        assert isinstance(task, Segmenter)
        config = self.config
        assert isinstance(task.preprocessing, FitTransform)
        crop = max(_crop(config, task.preprocessing))
        task.loss_options = SegmentLoss(
            aux_weight=config.aux_weight, ohem=config.ohem, class_weights=config.class_weights
        )
        task.inference = SegmentInference(
            mode=config.eval_mode,
            crop=crop,
            stride=config.eval_stride or max(crop * 2 // 3, 1),
            scales=config.eval_scales,
            flip=config.eval_flip,
        )

    def sheet(self, batch: Batch, classes: Sequence[str], transform: FitTransform) -> Image.Image:
        """Crops with their labels laid over them."""
        return label_sheet(batch, classes, transform, self._palette)


def _crop(config: TrainConfig, transform: FitTransform) -> tuple[int, int]:
    """Height and width of training's crops, in pixels."""
    return as_size(config.img_size or transform.short_side or transform.long_side)

"""Semantic segmentation: one label per pixel.

Legend: `B` images · `C` channels · `H W` pixels · `h w` coarse grid · `K` classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from globalvit.heads.dense import DenseHead
from globalvit.heads.fcn import FCNHead
from globalvit.heads.segformer import SegFormerHead
from globalvit.heads.upernet import UPerNetHead
from globalvit.metrics.labels import check_labels
from globalvit.metrics.metric import Metric
from globalvit.metrics.miou import IGNORE, MeanIoU
from globalvit.models.backbone import Backbone
from globalvit.models.layers import resize_bilinear
from globalvit.models.variants import SMALLEST_IMAGE, ModelSpec
from globalvit.tasks.inputs import groups, sized
from globalvit.tasks.rows import Mirrored, Resized, Rows, Windowed, likeliest, whole
from globalvit.tasks.segment_loss import SegmentLoss, count_pixels, pixel_loss
from globalvit.tasks.task import Batch, Preprocessing, Task

Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentInference:
    """How labels are found in evaluation and prediction.

    Attributes:
        mode: `whole`, the image at once; `slide`, windows of it, their logits averaged where they overlap.
        crop: side of a window in pixels of the resized image.
        stride: from one window to the next.
        scales: factors of the resized image's sides; with several, the softmax is averaged.
        flip: average with the mirrored image.

    Raises:
        ValueError: a value is none of these.
    """

    mode: Literal["whole", "slide"] = "whole"
    crop: int = 512
    stride: int = 341
    scales: Sequence[float] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if self.mode not in ("whole", "slide"):
            raise ValueError(f"mode={self.mode!r} must be 'whole' or 'slide'")
        if not (self.crop >= SMALLEST_IMAGE and 1 <= self.stride <= self.crop):
            raise ValueError(
                f"crop={self.crop} must be {SMALLEST_IMAGE} pixels or more, and stride={self.stride} from 1 to the crop"
            )
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales={self.scales} must be one factor or more, all above 0")


class Segmenter(Task):
    """`model(images)`: (B, C, H, W) float → logits (B, K, H, W), for any H and W from 32 up.

    Attributes:
        head: maps → logits on the finest map's grid.
        auxiliary_head: the same of one map, for training alone; None where the paper has none.
        loss_options: what `losses` minimizes.
        inference: how `evaluate` and `predict` find labels.
    """

    kind = "segment"
    is_counted = True

    def __init__(
        self,
        spec: ModelSpec,
        backbone: Backbone,
        head: DenseHead,
        preprocessing: Preprocessing,
        classes: tuple[str, ...] | None = None,
        *,
        auxiliary_head: FCNHead | None = None,
    ) -> None:
        super().__init__(spec, backbone, preprocessing, classes)
        if spec.num_classes > IGNORE:
            raise ValueError(f"num_classes={spec.num_classes} must be at most {IGNORE}: labels are bytes")
        self.head = head
        self.auxiliary_head = auxiliary_head
        self.loss_options = SegmentLoss()
        self.inference = SegmentInference()

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) → (B, K, H, W)."""
        return resize_bilinear(self.coarse_logits(images_BCHW), *images_BCHW.shape[-2:])

    def coarse_logits(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) → (B, K, h, w) on the grid of the backbone's finest map."""
        return self.head(self.backbone(images_BCHW))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of `images` (B, C, H, W) against `labels` (B, H, W), 0 … K−1 or IGNORE.

        Returns:
            `loss_head`, `loss_aux` where there is an auxiliary head, and `loss`: the first plus `aux_weight` times the
            second. Each is a mean over the pixels of all passes and processes of a step.

        Raises:
            ValueError: a label is neither a class nor IGNORE.
        """
        labels, options = batch["labels"], self.loss_options
        check_labels(labels, self.spec.num_classes, IGNORE)
        weights = options.weights(self.spec.num_classes, labels.device)
        maps = self.backbone(batch["images"])
        size = labels.shape[-2:]
        head = pixel_loss(resize_bilinear(self.head(maps).float(), *size), labels, weights, ohem=options.ohem)
        if self.auxiliary_head is None:
            return {"loss": head, "loss_head": head}
        aux = pixel_loss(resize_bilinear(self.auxiliary_head(maps).float(), *size), labels, weights)
        return {"loss": head + options.aux_weight * aux, "loss_head": head, "loss_aux": aux}

    def count(self, batch: Batch) -> None:
        """Count the pixels of `labels`; hard ones are known after a forward pass only."""
        if self.loss_options.ohem:
            super().count(batch)
            return
        labels = batch["labels"]
        check_labels(labels, self.spec.num_classes, IGNORE)
        weights = self.loss_options.weights(self.spec.num_classes, labels.device)
        for _ in range(1 if self.auxiliary_head is None else 2):
            count_pixels(labels, weights)

    def evaluate(self, batch: Batch, metric: Metric) -> None:
        """Add a batch to a `MeanIoU`: lists `images`, (C, h, w) each, and `labels`, (H, W) in their own sizes."""
        assert isinstance(metric, MeanIoU)
        labels = batch["labels"]
        for positions, images_BCHW in groups(batch["images"], len(labels)):
            sizes = [(labels[position].shape[0], labels[position].shape[1]) for position in positions]
            for position, mask_HW in zip(positions, self._masks(images_BCHW, sizes), strict=True):
                metric.update(mask_HW, labels[position])
                if metric.noted is not None and (labels[position] != IGNORE).any():
                    alone = self.metric()
                    alone.update(mask_HW, labels[position])
                    metric.noted[int(batch["indices"][position])] = alone.compute()["miou"]

    def metric(self) -> MeanIoU:
        """Return an empty `MeanIoU`."""
        return MeanIoU(self.class_names)

    def predict(self, images: Any, *, batch_size: int = 8) -> list[dict[str, Any]]:
        """Predict the most likely class of every pixel.

        Args:
            images: one image or several: paths, PIL images, RGB uint8 arrays (H, W, 3), which go through
                `preprocessing`, or float tensors (C, H, W) that have been through it.
            batch_size: images in a forward pass at most.

        Returns:
            For each image `mask`, labels as uint8 (H, W) on the CPU in the size of the image that was given;
            `names` of the labels 0 … K−1; `areas`, the part of the pixels that each class found has, by name, largest
            first.

        Raises:
            ValueError: an image is none of the kinds above.
        """
        answers: dict[int, dict[str, Any]] = {}
        sizes: list[Size] = []
        with self.predicting() as model:
            for positions, images_BCHW in groups(_noting(sized(images, self.preprocessing), sizes), batch_size):
                wanted = [sizes[position] for position in positions]
                masks = model._masks(self.place(images_BCHW), wanted)
                answers.update((position, self._answer(mask)) for position, mask in zip(positions, masks, strict=True))
        return [answers[position] for position in sorted(answers)]

    def _answer(self, mask_HW: Tensor) -> dict[str, Any]:
        mask_HW = mask_HW.cpu()
        pixels = mask_HW.flatten().bincount(minlength=self.spec.num_classes).tolist()
        found = sorted((label for label, count in enumerate(pixels) if count), key=lambda label: -pixels[label])
        areas = {self.class_names[label]: pixels[label] / mask_HW.numel() for label in found}
        return {"mask": mask_HW, "names": self.class_names, "areas": areas}

    def _masks(self, images_BCHW: Tensor, sizes: Sequence[Size]) -> Iterator[Tensor]:
        """Return the labels of each image, uint8, in the requested size."""
        views = [list(self._views(one_BCHW, sizes)) for one_BCHW in self._scaled(images_BCHW)]
        for of_image in zip(*views, strict=True):
            yield likeliest([view for of_scale in of_image for view in of_scale], self.spec.num_classes)

    def _scaled(self, images_BCHW: Tensor) -> Iterator[Tensor]:
        for scale in self.inference.scales:
            sides = (max(SMALLEST_IMAGE, round(side * scale)) for side in images_BCHW.shape[-2:])
            size = tuple(sides)
            same = size == tuple(images_BCHW.shape[-2:])
            yield images_BCHW if same else F.interpolate(images_BCHW, size=size, mode="bilinear", antialias=True)

    def _views(self, images_BCHW: Tensor, sizes: Sequence[Size]) -> Iterator[list[Rows]]:
        """Return the logits of each image of a batch and, with `flip`, those of its mirror image."""
        straight = self._logits(images_BCHW, sizes)
        if not self.inference.flip:
            yield from ([one] for one in straight)
            return
        mirrored = self._logits(images_BCHW.flip(-1), sizes)
        yield from ([one, Mirrored(other)] for one, other in zip(straight, mirrored, strict=True))

    def _logits(self, images_BCHW: Tensor, sizes: Sequence[Size]) -> list[Rows]:
        """Return each image's logits in the requested size."""
        if self.inference.mode == "slide":
            crop, stride = self.inference.crop, self.inference.stride
            windowed = (Windowed(image_CHW, crop, stride, self.coarse_logits) for image_CHW in images_BCHW)
            return [Resized(one, *size) for one, size in zip(windowed, sizes, strict=True)]
        height, width = images_BCHW.shape[-2:]
        logits_BKhw = self.coarse_logits(images_BCHW)
        return [whole(one, (height, width), size) for one, size in zip(logits_BKhw, sizes, strict=True)]


def build_segmenter(
    spec: ModelSpec, backbone: Backbone, preprocessing: Preprocessing, classes: tuple[str, ...] | None
) -> Segmenter:
    """Build a segmenter with fresh heads on `backbone`; UPerNet has an auxiliary head, SegFormer does not."""
    maps = (backbone.channels, backbone.strides, spec.num_classes)
    head, auxiliary_head = SegFormerHead(*maps), None
    if spec.head == "upernet":
        # The last of GPViT's maps; the last but one of GC ViT's, whose last is coarse.
        index = len(backbone.channels) - (1 if backbone.is_plain else 2)
        head, auxiliary_head = UPerNetHead(*maps), FCNHead(*maps, index=index)
        auxiliary_head.init_weights()
    head.init_weights()
    return Segmenter(spec, backbone, head, preprocessing, classes, auxiliary_head=auxiliary_head)


def _noting(pairs: Iterator[tuple[Tensor, Size]], sizes: list[Size]) -> Iterator[Tensor]:
    """Yield the tensors, and append the sizes of their images to `sizes`."""
    for tensor, size in pairs:
        sizes.append(size)
        yield tensor

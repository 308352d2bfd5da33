"""Object detection and instance segmentation: boxes, labels and, from most detectors, masks.

Legend: `B` images · `C` channels · `H W` pixels · `N` detections · `L` levels · `A` anchors a cell · `K` classes.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, TypeVar

import torch
from torch import Tensor

from globalvit.detectors.boxes import Size
from globalvit.detectors.cascade import CascadeHeads
from globalvit.detectors.found import Found, limits_of
from globalvit.detectors.limits import LEAST_SCORE, MOST_DETECTIONS, TILE_OVERLAP, check_limit, check_tiles
from globalvit.detectors.mask_rcnn import BoxLayers, MaskRCNNHeads
from globalvit.detectors.masks import paste
from globalvit.detectors.objects import Detections, Objects
from globalvit.detectors.padding import pad, padded_size, stack
from globalvit.detectors.regions import Learning
from globalvit.detectors.retinanet import RetinaNetHead
from globalvit.detectors.rpn import CASCADE, MASK_RCNN, RPN
from globalvit.metrics.coco_ap import CocoAP
from globalvit.metrics.labels import check_labels
from globalvit.metrics.metric import Metric
from globalvit.models.backbone import Backbone
from globalvit.models.variants import ModelSpec
from globalvit.necks.fpn import FPN
from globalvit.tasks.reduce import over_step, world
from globalvit.tasks.task import Batch, Preprocessing, Task
from globalvit.tasks.views import View, merge, mirrored, seen, whole

SCORE_THRESHOLD = LEAST_SCORE
# RetinaNet looks at no finer map: GC ViT's of stride 4 is left out by the neck, GPViT's is not made.
DENSE_FINEST = 8
Maps = dict[str, list[Tensor]]
T = TypeVar("T")


class Detector(Task):
    """`model(images)`: (B, C, H, W) float → raw maps by name, for any H and W.

    Attributes:
        neck: the backbone's maps → a pyramid.
        needs_masks: whether it learns and predicts masks as well as boxes.
        max_detections: objects of an image, the best ones, that it is scored with and that `predict` answers.
        flip: whether evaluation and prediction also look at the mirror image of each image and merge the boxes.
    """

    kind = "detect"
    is_counted = True
    needs_masks: bool

    def __init__(
        self,
        spec: ModelSpec,
        backbone: Backbone,
        neck: FPN,
        preprocessing: Preprocessing,
        classes: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__(spec, backbone, preprocessing, classes)
        self.neck = neck
        self.max_detections = MOST_DETECTIONS
        self.flip = False

    def forward(self, images_BCHW: Tensor) -> Maps:
        """Raw maps of normalized images, which are padded to multiples of 32 right and below.

        Returns:
            Lists of NCHW maps, finest first: `features`, the pyramid, and what the first heads make of it: `rpn_logits`
            and `rpn_deltas`, or `logits` and `deltas`.
        """
        features = self.neck(self.backbone(pad(images_BCHW)))
        return {"features": features, **self._read(features)}

    @abstractmethod
    def _read(self, features: Sequence[Tensor]) -> Maps:
        """Return the first heads' outputs for the pyramid."""

    @abstractmethod
    def _losses(self, maps: Maps, objects: Sequence[Objects], sizes: Sequence[Size]) -> dict[str, Tensor]:
        """Terms to sum, scalars or one number a level."""

    @abstractmethod
    def find(
        self,
        maps: Maps,
        limits_B14: Tensor,
        threshold: float,
        *,
        most: int = MOST_DETECTIONS,
        is_fixed: bool = False,
    ) -> tuple[Found, Tensor | None]:
        """Return the detections of all images together, in pixels of the padded images.

        Args:
            maps: what the forward gave.
            limits_B14: borders of each image without its padding, as `limits_of` gives them.
            threshold: the score that a detection has to exceed.
            most: detections of an image.
            is_fixed: whether each image gets `most` rows, as an exported graph needs it.

        Returns:
            Boxes, scores and labels, and, from detectors that have some, masks (B, T, h, w) within the boxes.
        """

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return every loss term by its published name, summed over levels, and `loss`, their sum.

        Args:
            batch: lists with an entry for each image: `images` float (C, h, w), normalized; `boxes` float32 (G, 4)
                xyxy in its pixels; `labels` int64 (G,); for detectors that learn masks `masks` (G, h, w), bool or
                uint8.

        Raises:
            ValueError: the detector learns masks and the batch has none, or a label is not a class.
        """
        for labels in batch["labels"]:
            check_labels(labels, self.spec.num_classes)
        images = list(batch["images"])
        maps = self(stack(images))
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        terms = self._losses(maps, self._objects(batch), sizes)
        terms = {name: value.sum() for name, value in terms.items()}
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}

    def _objects(self, batch: Batch) -> list[Objects]:
        masks = batch.get("masks")
        if self.needs_masks and masks is None:
            raise ValueError(
                f"{self.spec.model} learns masks and the data has none; give annotations with segmentations, or train "
                f"{self.spec.backbone}_retinanet, which learns boxes only"
            )
        shapes: Iterable[Tensor | None] = (
            masks if self.needs_masks and masks is not None else [None] * len(batch["boxes"])
        )
        return [
            Objects(boxes=boxes.float(), labels=labels, masks=shape)
            for boxes, labels, shape in zip(batch["boxes"], batch["labels"], shapes, strict=True)
        ]

    def evaluate(self, batch: Batch, metric: Metric) -> None:
        """Add a batch to a `CocoAP`.

        Args:
            batch: lists with an entry for each image: `images` float (C, h, w), normalized; `sizes` (H, W) of the
                image itself; `annotations`, its objects as the metric takes them.
            metric: what `metric()` gave.
        """
        assert isinstance(metric, CocoAP)
        pairs = enumerate(zip(batch["images"], batch["sizes"], strict=True))
        views = ((image, whole(position, size)) for position, (image, size) in pairs)
        views = mirrored(views) if self.flip else views
        thresholds_K = torch.full((self.spec.num_classes,), SCORE_THRESHOLD, dtype=torch.float64)
        for position, answer in self._answers(views, len(batch["images"]), thresholds_K, self.max_detections):
            metric.update([answer], [batch["annotations"][position]])
            if metric.noted is not None:
                metric.noted[int(batch["indices"][position])] = int(batch["annotations"][position]["image_id"])

    def metric(self) -> CocoAP:
        """Return an empty `CocoAP` of boxes and, if the detector has them, masks."""
        return CocoAP(self.class_names, with_masks=self.needs_masks, max_detections=self.max_detections)

    def predict(
        self,
        images: Any,
        *,
        batch_size: int = 8,
        score_threshold: float | None = None,
        max_detections: int | None = None,
        tile: int | None = None,
        overlap: float = TILE_OVERLAP,
        flip: bool | None = None,
    ) -> list[dict[str, Any]]:
        """Detect the objects of each image.

        Args:
            images: one image or several: paths, PIL images, RGB uint8 arrays (H, W, 3), which go through
                `preprocessing`, or float tensors (C, H, W) that have been through it.
            batch_size: images or tiles in a forward pass at most; it holds only those of one padded size.
            score_threshold: the score that a detection has to exceed; None takes the threshold of each class in
                `score_thresholds`, or 0.05 if there is none.
            max_detections: objects of an image at most, 1 to 1000; None takes the detector's own limit, 100.
            tile: side in pixels of square tiles that each image is cut into, for objects that are small in it; each
                goes through `preprocessing` as a separate image. None predicts whole images.
            overlap: fraction of a tile that it shares with the next, 0 to 0.9; objects should fit into it.
            flip: whether to look at the mirror image, too, and merge the boxes; None takes the detector's own `flip`.

        Returns:
            For each image, best first: `boxes` (N, 4) float32, xyxy in pixels of the image (of a
            tensor: of the tensor); `scores` (N,) float32; `labels` (N,) int64; `names`; from detectors with masks
            `masks` (N, H, W) bool. Tensors are on the CPU.

        Raises:
            ValueError: `score_threshold` is not in [0, 1), `max_detections` not in 1 … 1000, `tile` under 32, `overlap`
                not in 0 … 0.9, or an image is none of the kinds above.
        """
        if score_threshold is not None and not 0.0 <= score_threshold < 1.0:
            raise ValueError(f"score_threshold={score_threshold} must be 0 or more and under 1")
        check_tiles(tile, overlap)
        most = check_limit(self.max_detections if max_detections is None else max_detections)
        views = seen(images, self.preprocessing, tile, overlap)
        views = mirrored(views) if (self.flip if flip is None else flip) else views
        with self.predicting() as model:
            found = model._answers(views, batch_size, self.thresholds(score_threshold), most)
            answers = {position: self._named(answer) for position, answer in found}
        return [answers[position] for position in sorted(answers)]

    def best_thresholds(self, metric: Metric) -> list[float | None]:
        """See `Task`."""
        assert isinstance(metric, CocoAP)
        return metric.score_thresholds(SCORE_THRESHOLD)

    def thresholds(self, score_threshold: float | None = None) -> Tensor:
        """Return the score threshold of each class, float64 (K,); a number is that of all."""
        own = self.score_thresholds if score_threshold is None else None
        chosen = own or [score_threshold] * self.spec.num_classes
        return torch.tensor([SCORE_THRESHOLD if one is None else one for one in chosen], dtype=torch.float64)

    def _named(self, answer: dict[str, Tensor]) -> dict[str, Any]:
        names = [self.class_names[label] for label in answer["labels"].tolist()]
        return {**{name: value.cpu() for name, value in answer.items()}, "names": names}

    def _answers(
        self, seen: Iterable[tuple[Tensor, View]], batch_size: int, thresholds_K: Tensor, most: int
    ) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Yield (position, answer in the image's own pixels) of each image, once all its views have been seen."""
        parts: dict[int, list[tuple[View, Detections]]] = {}
        threshold = float(thresholds_K.min())
        for _, tensors, views in of_one_padded_size(seen, batch_size):
            maps = self(stack([self.place(tensor) for tensor in tensors]))
            shapes = [(tensor.shape[1], tensor.shape[2]) for tensor in tensors]
            rows, masks_BThw = self.find(maps, limits_of(shapes, self.device), threshold, most=most)
            for one, shape, view in zip(rows.split(masks_BThw), shapes, views, strict=True):
                found = parts.setdefault(view.position, [])
                found.append((view, view.place(_above(one, thresholds_K), shape)))
                if len(found) == view.views:
                    yield view.position, as_answer(merge(parts.pop(view.position), most), view.size)


class RegionDetector(Detector):
    """A two-stage detector, which classifies proposed regions: Mask R-CNN and its cascade.

    Attributes:
        rpn: the pyramid → proposals.
        roi: proposals → detections.
    """

    needs_masks = True

    def __init__(
        self,
        spec: ModelSpec,
        backbone: Backbone,
        neck: FPN,
        rpn: RPN,
        roi: MaskRCNNHeads | CascadeHeads,
        preprocessing: Preprocessing,
        classes: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__(spec, backbone, neck, preprocessing, classes)
        self.rpn = rpn
        self.roi = roi

    def set_samples(self, number: int) -> None:
        """Choose how many regions of an image enter the RoI heads' losses."""
        if isinstance(self.roi, CascadeHeads):
            self.roi.learning = [_with_samples(one, number) for one in self.roi.learning]
        else:
            self.roi.learning = _with_samples(self.roi.learning, number)

    def _read(self, features: Sequence[Tensor]) -> Maps:
        logits, deltas = self.rpn(features)
        return {"rpn_logits": logits, "rpn_deltas": deltas}

    def _losses(self, maps: Maps, objects: Sequence[Objects], sizes: Sequence[Size]) -> dict[str, Tensor]:
        logits, deltas = maps["rpn_logits"], maps["rpn_deltas"]
        losses = self.rpn.losses(logits, deltas, objects, sizes, share)
        proposals = [one.boxes for one in self.rpn.propose(logits, deltas, sizes, self.rpn.how.choice)]
        return losses | self.roi.losses(maps["features"], proposals, objects, sizes, share)

    def find(
        self,
        maps: Maps,
        limits_B14: Tensor,
        threshold: float,
        *,
        most: int = MOST_DETECTIONS,
        is_fixed: bool = False,
    ) -> tuple[Found, Tensor | None]:
        """See `Detector`."""
        proposals = self.rpn.find(maps["rpn_logits"], maps["rpn_deltas"], limits_B14, is_fixed=is_fixed)
        return self.roi.find(maps["features"], proposals, limits_B14, threshold, most=most, is_fixed=is_fixed)


class DenseDetector(Detector):
    """A one-stage detector, which classifies all anchors: RetinaNet.

    Attributes:
        dense: the pyramid → detections.
    """

    needs_masks = False

    def __init__(
        self,
        spec: ModelSpec,
        backbone: Backbone,
        neck: FPN,
        dense: RetinaNetHead,
        preprocessing: Preprocessing,
        classes: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__(spec, backbone, neck, preprocessing, classes)
        self.dense = dense

    def _read(self, features: Sequence[Tensor]) -> Maps:
        logits, deltas = self.dense(features)
        return {"logits": logits, "deltas": deltas}

    # Anchors on the padding learn background like any others, so sizes do not matter.
    def _losses(self, maps: Maps, objects: Sequence[Objects], sizes: Sequence[Size]) -> dict[str, Tensor]:  # noqa: ARG002
        return self.dense.losses(maps["logits"], maps["deltas"], objects, share)

    def find(
        self,
        maps: Maps,
        limits_B14: Tensor,
        threshold: float,
        *,
        most: int = MOST_DETECTIONS,
        is_fixed: bool = False,
    ) -> tuple[Found, Tensor | None]:
        """See `Detector`."""
        found = self.dense.find(maps["logits"], maps["deltas"], limits_B14, threshold, most=most, is_fixed=is_fixed)
        return found, None


def _with_samples(learning: Learning, number: int) -> Learning:
    return replace(learning, sampler=replace(learning.sampler, number=number))


def share(own_count: Tensor) -> Tensor:
    """Return the divisor of a pass's sums: the count of the whole step, at least one, per process."""
    return over_step(own_count).sum(0).clamp(min=1).float() / world()


def of_one_padded_size(
    images: Iterable[tuple[Tensor, T]], most: int
) -> Iterator[tuple[list[int], list[Tensor], list[T]]]:
    """Gather (image, what belongs to it) into lists of at most `most` of one padded size, with their positions."""
    waiting: dict[Size, list[tuple[int, Tensor, T]]] = {}
    for position, (image, belonging) in zip(count(), images, strict=False):
        padded = padded_size(image.shape[1], image.shape[2])
        group = waiting.setdefault(padded, [])
        group.append((position, image, belonging))
        if len(group) == most:
            yield _unzip(waiting.pop(padded))
    for group in waiting.values():
        yield _unzip(group)


def _above(found: Detections, thresholds_K: Tensor) -> Detections:
    """Return the detections whose scores exceed the threshold of their class."""
    is_above = found.scores.cpu().double() > thresholds_K[found.labels.cpu()]
    return found if is_above.all() else found.take(is_above.to(found.labels.device))


def _unzip(group: list[tuple[int, Tensor, T]]) -> tuple[list[int], list[Tensor], list[T]]:
    positions, images, belongings = zip(*group, strict=True)
    return list(positions), list(images), list(belongings)


def as_answer(found: Detections, size: Size) -> dict[str, Tensor]:
    """Return the detections of an image of (height, width): `boxes`, `scores`, `labels`, maybe `masks`."""
    answer = {"boxes": found.boxes, "scores": found.scores, "labels": found.labels}
    return answer if found.masks is None else answer | {"masks": paste(found.masks, found.boxes, size)}


def build_detector(
    spec: ModelSpec, backbone: Backbone, preprocessing: Preprocessing, classes: tuple[str, ...] | None
) -> Detector:
    """Build a detector with a fresh neck and fresh heads on `backbone`."""
    if spec.head == "retinanet":
        return _build_dense(spec, backbone, preprocessing, classes)
    neck = FPN(backbone.channels, backbone.strides, norm=backbone.is_plain, extra="pool")
    is_cascade = spec.head == "cascade_mask_rcnn"
    rpn = RPN(neck.channels, neck.strides, CASCADE if is_cascade else MASK_RCNN)
    if is_cascade:
        roi = CascadeHeads(neck.channels, neck.strides, spec.num_classes)
    else:
        layers = BoxLayers(convs=4, fcs=1) if backbone.is_plain else BoxLayers(convs=0, fcs=2)
        roi = MaskRCNNHeads(neck.channels, neck.strides, spec.num_classes, layers)
    for part in (neck, rpn, roi):
        part.init_weights()
    return RegionDetector(spec, backbone, neck, rpn, roi, preprocessing, classes)


def _build_dense(
    spec: ModelSpec,
    backbone: Backbone,
    preprocessing: Preprocessing,
    classes: tuple[str, ...] | None,
) -> DenseDetector:
    neck = FPN(backbone.channels, backbone.strides, norm=backbone.is_plain, extra="convs", finest=DENSE_FINEST)
    dense = RetinaNetHead(neck.channels, neck.strides, spec.num_classes)
    backbone.leave_out(neck.unused)
    for part in (neck, dense):
        part.init_weights()
    return DenseDetector(spec, backbone, neck, dense, preprocessing, classes)

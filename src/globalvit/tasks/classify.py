"""Image classification: one label per image, or any number.

Legend: `B` images · `C` channels · `H W` pixels · `K` classes.
"""

from collections.abc import Iterator
from math import log
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from globalvit.data.classification.transforms import EvalTransform
from globalvit.heads.classify import ClassifyHead, GroupPool, MeanPool
from globalvit.metrics.accuracy import Accuracy
from globalvit.metrics.labels import check_labels
from globalvit.metrics.metric import Metric
from globalvit.metrics.multi_label import MultiLabelScores
from globalvit.models.backbone import Backbone
from globalvit.models.variants import ModelSpec
from globalvit.tasks.inputs import batches
from globalvit.tasks.task import Batch, Task

# The probability from which on a label is reported where no evaluation has chosen one.
DEFAULT_THRESHOLD = 0.5


class Classifier(Task):
    """`model(images)`: (B, C, H, W) float → logits (B, K), for any H and W.

    Attributes:
        head: the last map → logits.
        flip: whether evaluation and prediction average the probabilities with those of the mirror image.
    """

    kind = "classify"

    def __init__(
        self,
        spec: ModelSpec,
        backbone: Backbone,
        head: ClassifyHead,
        preprocessing: EvalTransform,
        classes: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__(spec, backbone, preprocessing, classes)
        self.head = head
        self.flip = False

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) → (B, K)."""
        return self.head(self.backbone(images_BCHW)[-1])

    def probabilities(self, logits_BK: Tensor) -> Tensor:
        """Logits → probabilities (B, K)."""
        return logits_BK.softmax(1)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean cross-entropy with soft `targets` (B, K) if the batch has them, else with `labels` (B,).

        Raises:
            ValueError: a label is not a class, or the targets are of another number of classes.
        """
        check_labels(batch["labels"], self.spec.num_classes)
        target = batch.get("targets", batch["labels"])
        if target.ndim == 2 and target.shape[1] != self.spec.num_classes:
            raise ValueError(
                f"expected targets (B, {self.spec.num_classes}), one column per class, got {tuple(target.shape)}"
            )
        logits_BK = self(batch["images"])
        return {"loss": F.cross_entropy(logits_BK.float(), target)}

    def evaluate(self, batch: Batch, metric: Metric) -> None:
        """Add a batch with `images` and `labels` to an `Accuracy`."""
        assert isinstance(metric, Accuracy)
        logits_BK = self._logits(batch["images"], flip=self.flip)
        self.check_outputs(logits_BK.shape[1])
        metric.update(logits_BK, batch["labels"])
        if metric.noted is not None:
            metric.noted.update(zip(batch["indices"].tolist(), _notes(logits_BK, batch["labels"]), strict=True))

    def metric(self) -> Accuracy:
        """Return an empty `Accuracy`."""
        return Accuracy(self.class_names)

    def predict(
        self, images: Any, *, batch_size: int = 32, top_k: int = 5, flip: bool | None = None
    ) -> list[dict[str, Any]]:
        """Predict the most likely classes of each image.

        Args:
            images: one image or several: paths, PIL images, RGB uint8 arrays (H, W, 3), which go through
                `preprocessing`, or float tensors (C, H, W) that have been through it.
            batch_size: images in a forward pass at most.
            top_k: classes to name, at most all of them.
            flip: whether to average the probabilities with those of the mirror image; None takes the model's own
                `flip`.

        Returns:
            For each image `labels` (ints), `names` and `scores` (probabilities), best first.

        Raises:
            ValueError: `top_k` is under 1, an image is none of the kinds above, or the head was replaced by one with
                more or fewer outputs than there are classes.
        """
        if top_k < 1:
            raise ValueError(f"top_k={top_k} must be at least 1")
        answers: dict[int, dict[str, Any]] = {}
        with self.predicting() as model:
            for positions, images_BCHW in batches(images, self.preprocessing, batch_size):
                views = self.flip if flip is None else flip
                logits_BK = model._logits(self.place(images_BCHW), flip=views).float()
                self.check_outputs(logits_BK.shape[1])
                scores, labels = self.probabilities(logits_BK).topk(min(top_k, logits_BK.shape[1]))
                rows = zip(positions, labels.tolist(), scores.tolist(), strict=True)
                answers.update((position, self._answer(*row)) for position, *row in rows)
        return [answers[position] for position in sorted(answers)]

    def _logits(self, images_BCHW: Tensor, *, flip: bool) -> Tensor:
        """Return logits (B, K); with `flip`, those of the mean probabilities of each image and its mirror image."""
        logits_BK = self(images_BCHW)
        return self._mean(logits_BK.float(), self(images_BCHW.flip(-1)).float()) if flip else logits_BK

    def _mean(self, one_BK: Tensor, other_BK: Tensor) -> Tensor:
        """Return the logits of the mean of two probabilities."""
        return torch.logaddexp(one_BK.log_softmax(1), other_BK.log_softmax(1)) - log(2)

    def _answer(self, labels: list[int], scores: list[float]) -> dict[str, Any]:
        names = [self.class_names[label] for label in labels]
        return {"labels": labels, "names": names, "scores": scores}


class MultiLabelClassifier(Classifier):
    """A classifier of images that have any number of labels: (B, C, H, W) float → logits (B, K)."""

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The probability from which on each label is reported."""
        chosen = self.score_thresholds or (None,) * self.spec.num_classes
        return tuple(DEFAULT_THRESHOLD if one is None else one for one in chosen)

    def best_thresholds(self, metric: Metric) -> tuple[float, ...]:
        """See `Task`."""
        assert isinstance(metric, MultiLabelScores)
        return metric.best_thresholds()

    def probabilities(self, logits_BK: Tensor) -> Tensor:
        """Logits → a probability for each label by itself (B, K)."""
        return logits_BK.sigmoid()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Mean binary cross-entropy against `targets` (B, K) where the batch has them, else `labels` (B, K).

        Raises:
            ValueError: they are of another shape.
        """
        targets_BK, logits_BK = batch.get("targets", batch["labels"]), self(batch["images"])
        if targets_BK.shape != logits_BK.shape:
            raise ValueError(
                f"expected targets {tuple(logits_BK.shape)}, one column per class, got {tuple(targets_BK.shape)}"
            )
        return {"loss": F.binary_cross_entropy_with_logits(logits_BK.float(), targets_BK.float())}

    def evaluate(self, batch: Batch, metric: Metric) -> None:
        """Add a batch with `images` and `labels` (B, K) to a `MultiLabelScores`."""
        assert isinstance(metric, MultiLabelScores)
        logits_BK = self._logits(batch["images"], flip=self.flip)
        self.check_outputs(logits_BK.shape[1])
        metric.update(logits_BK, batch["labels"])

    def metric(self) -> MultiLabelScores:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Empty scores, at this model's thresholds."""
        return MultiLabelScores(self.class_names, self.thresholds)

    def _mean(self, one_BK: Tensor, other_BK: Tensor) -> Tensor:
        return torch.logit((one_BK.sigmoid() + other_BK.sigmoid()) / 2)

    def predict(
        self, images: Any, *, batch_size: int = 32, top_k: int | None = None, flip: bool | None = None
    ) -> list[dict[str, Any]]:
        """The labels of each image whose probability reaches their threshold; there may be none.

        Args:
            images: as in `Classifier.predict`.
            batch_size: images in a forward pass at most.
            top_k: labels to name at most; None names all.
            flip: as in `Classifier.predict`.

        Returns:
            For each image `labels` (ints), `names` and `scores` (probabilities), best first.
        """
        everything = super().predict(images, batch_size=batch_size, top_k=self.spec.num_classes, flip=flip)
        return [self._above(answer, top_k) for answer in everything]

    def _above(self, answer: dict[str, Any], top_k: int | None) -> dict[str, Any]:
        thresholds = self.thresholds
        kept = [
            (label, score)
            for label, score in zip(answer["labels"], answer["scores"], strict=True)
            if score >= thresholds[label]
        ]
        return self._answer([label for label, _ in kept[:top_k]], [score for _, score in kept[:top_k]])


def _notes(logits_BK: Tensor, labels_B: Tensor) -> Iterator[dict[str, Any]]:
    """Yield the label and the guess of each image, how confident that is, and the entropy of the probabilities."""
    scores_BK = logits_BK.float().softmax(1)
    entropies_B = torch.special.entr(scores_BK).sum(1)
    best = scores_BK.max(1)
    columns = (labels_B, best.indices, best.values, entropies_B)
    for row in zip(*(column.tolist() for column in columns), strict=True):
        yield dict(zip(("label", "guess", "confidence", "entropy"), row, strict=True))


def build_classifier(
    spec: ModelSpec, backbone: Backbone, preprocessing: EvalTransform, classes: tuple[str, ...] | None
) -> Classifier:
    """Build a classifier with a fresh head on `backbone`."""
    channels = backbone.channels[-1]
    pool = GroupPool(channels) if backbone.pooling == "group" else MeanPool()
    head = ClassifyHead(pool, channels, spec.num_classes)
    head.init_weights()
    kind = MultiLabelClassifier if spec.multi_label else Classifier
    return kind(spec, backbone, head, preprocessing, classes)

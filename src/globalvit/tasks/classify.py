"""Image classification: one label an image.

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
from globalvit.models.backbone import Backbone
from globalvit.models.variants import VARIANTS, GPViTConfig, ModelSpec
from globalvit.tasks.inputs import batches
from globalvit.tasks.task import Batch, Task


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

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Mean cross-entropy against `targets` (B, K), soft, where the batch has them, else `labels` (B,).

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
        """An empty count of hits."""
        return Accuracy(self.class_names)

    def predict(
        self, images: Any, *, batch_size: int = 32, top_k: int = 5, flip: bool | None = None
    ) -> list[dict[str, Any]]:
        """The likeliest classes of each image.

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
                logits_BK = model._logits(images_BCHW.to(self.device), flip=views).float()
                self.check_outputs(logits_BK.shape[1])
                scores, labels = logits_BK.softmax(1).topk(min(top_k, logits_BK.shape[1]))
                rows = zip(positions, labels.tolist(), scores.tolist(), strict=True)
                answers.update((position, self._answer(*row)) for position, *row in rows)
        return [answers[position] for position in sorted(answers)]

    def _logits(self, images_BCHW: Tensor, *, flip: bool) -> Tensor:
        """Return logits (B, K); with `flip`, logarithms of the mean probabilities of each image and its mirror."""
        logits_BK = self(images_BCHW)
        if not flip:
            return logits_BK
        both = [one.float().log_softmax(1) for one in (logits_BK, self(images_BCHW.flip(-1)))]
        return torch.logaddexp(*both) - log(2)

    def _answer(self, labels: list[int], scores: list[float]) -> dict[str, Any]:
        names = [self.class_names[label] for label in labels]
        return {"labels": labels, "names": names, "scores": scores}


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
    """A classifier with a fresh head on `backbone`."""
    config = VARIANTS[spec.backbone]
    has_group_pool = isinstance(config, GPViTConfig) and config.pooling == "group"
    head = ClassifyHead(
        GroupPool(config.width) if has_group_pool else MeanPool(), backbone.channels[-1], spec.num_classes
    )
    head.init_weights()
    return Classifier(spec, backbone, head, preprocessing, classes)

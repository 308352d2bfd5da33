"""Top-1 and top-5 accuracy, cross-entropy and the confusion matrix of a classifier.

Legend: `B` images · `K` classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from globalvit.metrics.labels import check_labels
from globalvit.metrics.metric import Metric

TOP = 5


class Accuracy(Metric):
    """Counts over a set of images, each with one label.

    With fewer than five classes `top5` asks for all of them, so it is 100.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.confusion_KK = torch.zeros(len(classes), len(classes), dtype=torch.int64)
        self.in_top5 = 0
        self.loss_sum = 0.0

    def update(self, logits_BK: Tensor, labels_B: Tensor) -> None:
        """Add a batch: logits of any float dtype, labels 0 … K−1 as int64, on any device.

        Raises:
            ValueError: a label is not a class.
        """
        logits, labels = logits_BK.float(), labels_B
        check_labels(labels, len(self.classes))
        guesses_BT = logits.topk(min(TOP, logits.shape[1])).indices
        self.in_top5 += int((guesses_BT == labels[:, None]).any(1).sum())
        self.loss_sum += float(F.cross_entropy(logits, labels, reduction="none").cpu().double().sum())
        # Rows are true classes, columns the guesses: the flattened pair is counted.
        pairs = (labels * len(self.classes) + guesses_BT[:, 0]).cpu()
        self.confusion_KK += torch.bincount(pairs, minlength=self.confusion_KK.numel()).view_as(self.confusion_KK)

    def state(self) -> tuple[Tensor, int, float]:
        """Confusion counts, hits in the top five, summed cross-entropy."""
        return self.confusion_KK.clone(), self.in_top5, self.loss_sum

    def merge(self, state: tuple[Tensor, int, float]) -> None:
        """Add another process's counts."""
        confusion_KK, in_top5, loss_sum = state
        self.confusion_KK += confusion_KK
        self.in_top5 += in_top5
        self.loss_sum += loss_sum

    @property
    def count(self) -> int:
        """Images seen."""
        return int(self.confusion_KK.sum())

    def compute(self) -> dict[str, float]:
        """`top1` and `top5` in percent, `loss` the mean cross-entropy, `count` the images.

        Raises:
            ValueError: no image was seen.
        """
        if self.count == 0:
            raise ValueError("no image was scored; the validation split is empty or none of its files can be read")
        return {
            "top1": 100.0 * int(self.confusion_KK.diagonal().sum()) / self.count,
            "top5": 100.0 * self.in_top5 / self.count,
            "loss": self.loss_sum / self.count,
            "count": float(self.count),
        }

    def report(self) -> dict[str, Any]:
        """Rows `{label, name, images, recall, precision}` (percent, None where nothing can be said), the matrix."""
        hits = self.confusion_KK.diagonal().tolist()
        images, guesses = self.confusion_KK.sum(1).tolist(), self.confusion_KK.sum(0).tolist()
        rows = [
            {
                "label": label,
                "name": name,
                "images": images[label],
                "recall": _percent(hits[label], images[label]),
                "precision": _percent(hits[label], guesses[label]),
            }
            for label, name in enumerate(self.classes)
        ]
        return {"per_class": rows, "confusion_matrix": self.confusion_KK.tolist()}


def _percent(part: int, whole: int) -> float | None:
    return 100.0 * part / whole if whole else None

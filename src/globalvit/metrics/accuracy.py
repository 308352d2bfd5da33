"""Top-1 and top-5 accuracy, cross-entropy and the confusion matrix of a classifier.

Legend: `B` images · `K` classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from globalvit.metrics.confusion import Confusion, countable
from globalvit.metrics.labels import check_labels
from globalvit.metrics.metric import Metric

TOP = 5


class Accuracy(Metric):
    """Counts over a set of images, each with one label.

    With fewer than five classes `top5` asks for all of them, so it is 100.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._confusion = Confusion(len(classes))
        # Hits in the top five and summed cross-entropy, on the device of the logits.
        self._sums = torch.zeros(2, dtype=torch.float64)

    def update(self, logits_BK: Tensor, labels_B: Tensor) -> None:
        """Add a batch: logits of any float dtype, labels 0 … K−1 as int64, on any device.

        Raises:
            ValueError: a label is not a class. On a GPU, reading the counts raises it instead.
        """
        logits, labels = countable(logits_BK).float(), countable(labels_B)
        if labels.device.type == "cpu":
            check_labels(labels, len(self.classes))
        guesses_BT = logits.topk(min(TOP, logits.shape[1])).indices
        is_hit_B = (guesses_BT == labels[:, None]).any(1)
        losses_B = F.cross_entropy(logits, labels.clamp(0, logits.shape[1] - 1), reduction="none")
        self._add(labels, guesses_BT[:, 0], is_hit_B, losses_B)

    def _add(self, labels_B: Tensor, best_B: Tensor, is_hit_B: Tensor, losses_B: Tensor) -> None:
        """Count images without waiting for their device."""
        self._confusion.add(labels_B, best_B)
        self._sums = self._sums.to(losses_B.device) + torch.stack([is_hit_B.double().sum(), losses_B.double().sum()])

    @property
    def confusion(self) -> Tensor:
        """Images by true class (rows) and by guess (columns), on the device where they are counted."""
        return self._confusion.matrix

    def state(self) -> tuple[Tensor, int, float]:
        """Confusion counts, hits in the top five, summed cross-entropy.

        Raises:
            ValueError: a label was not a class.
        """
        hits, loss_sum = self._sums.tolist()
        return self._confusion.read(), int(hits), loss_sum

    def merge(self, state: tuple[Tensor, int, float]) -> None:
        """Add another process's counts."""
        confusion_KK, hits, loss_sum = state
        self.confusion.add_(confusion_KK.to(self.confusion.device))
        self._sums = self._sums + self._sums.new_tensor([hits, loss_sum])

    @property
    def count(self) -> int:
        """Images seen."""
        return int(self.confusion.sum())

    def compute(self) -> dict[str, float]:
        """`top1` and `top5` in percent, `loss` the mean cross-entropy, `count` the images.

        Raises:
            ValueError: no image was seen.
        """
        confusion_KK, in_top5, loss_sum = self.state()
        count = int(confusion_KK.sum())
        if count == 0:
            raise ValueError("no image was scored; the validation split is empty or none of its files can be read")
        return {
            "top1": 100.0 * int(confusion_KK.diagonal().sum()) / count,
            "top5": 100.0 * in_top5 / count,
            "loss": loss_sum / count,
            "count": float(count),
        }

    def report(self) -> dict[str, Any]:
        """Rows `{label, name, images, recall, precision}` (percent, None where nothing can be said), the matrix."""
        confusion_KK = self._confusion.read()
        hits = confusion_KK.diagonal().tolist()
        images, guesses = confusion_KK.sum(1).tolist(), confusion_KK.sum(0).tolist()
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
        return {"per_class": rows, "confusion_matrix": confusion_KK.tolist()}


def _percent(part: int, whole: int) -> float | None:
    return 100.0 * part / whole if whole else None

"""Average precision and F1 of a classifier whose images have any number of labels.

Legend: `N` images · `K` classes.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from globalvit.metrics.metric import Metric

logger = logging.getLogger(__name__)
State = tuple[list[Tensor], list[Tensor], list[float]]


class MultiLabelScores(Metric):
    """Probabilities and labels of a whole set of images.

    Classes without an image have no average precision and are left out of the mean, with a warning.

    Args:
        classes: names of the labels.
        thresholds: the probability from which on each label counts as predicted, for F1.
    """

    def __init__(self, classes: Sequence[str], thresholds: Sequence[float]) -> None:
        self.classes, self.thresholds = tuple(classes), tuple(thresholds)
        self._scores: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._losses: list[float] = []

    def update(self, logits_BK: Tensor, labels_BK: Tensor) -> None:
        """Add a batch: logits of any float dtype, labels of 0 and 1, both (B, K), on any device."""
        logits_BK, labels_BK = logits_BK.float().cpu(), labels_BK.cpu()
        losses_BK = F.binary_cross_entropy_with_logits(logits_BK.double(), labels_BK.double(), reduction="none")
        self._losses += losses_BK.mean(1).tolist()
        # In float64 first: in float32 the last bit depends on an image's place in the batch.
        self._scores.append(logits_BK.double().sigmoid().float())
        self._labels.append(labels_BK > 0.5)

    def state(self) -> State:
        """Probabilities, labels and losses of the images."""
        return list(self._scores), list(self._labels), list(self._losses)

    def merge(self, state: State) -> None:
        """Add another process's images."""
        scores, labels, losses = state
        self._scores += scores
        self._labels += labels
        self._losses += losses

    def compute(self) -> dict[str, float]:
        """`map`, `f1_micro` and `f1_macro` in percent, `loss` the mean binary cross-entropy, `count` the images.

        Raises:
            ValueError: no image was seen, or none has a label.
        """
        if not self._losses:
            raise ValueError("no image was scored; the validation split is empty or none of its files can be read")
        rows = self._rows()
        known = [row for row in rows if row["ap"] is not None]
        if not known:
            raise ValueError("no image of the validation split has a label; expected labels for mAP")
        if len(known) < len(rows):
            unseen = [row["name"] for row in rows if row["ap"] is None]
            logger.warning("%d of %d classes have no image and no AP, such as %r", len(unseen), len(rows), unseen[0])
        hits, wrong = sum(row["hits"] for row in rows), sum(row["predicted"] + row["images"] for row in rows)
        return {
            "map": sum(row["ap"] for row in known) / len(known),
            "f1_micro": 200.0 * hits / wrong if wrong else 0.0,
            "f1_macro": sum(row["f1"] for row in known) / len(known),
            # Equal for every order of the images.
            "loss": math.fsum(self._losses) / len(self._losses),
            "count": float(len(self._losses)),
        }

    def report(self) -> dict[str, Any]:
        """Rows `{label, name, images, ap, f1, recall, precision, threshold}`, in percent; None where undefined."""
        hidden = ("hits", "predicted")
        return {"per_class": [{k: v for k, v in row.items() if k not in hidden} for row in self._rows()]}

    def best_thresholds(self) -> tuple[float, ...]:
        """Return the probability of each class from which on its F1 is the highest; 0.5 for classes without images."""
        scores_NK, labels_NK = torch.cat(self._scores), torch.cat(self._labels)
        return tuple(_best_threshold(scores_NK[:, k], labels_NK[:, k]) for k in range(len(self.classes)))

    def _rows(self) -> list[dict[str, Any]]:
        scores_NK, labels_NK = torch.cat(self._scores), torch.cat(self._labels)
        predicted_NK = scores_NK.double() >= torch.tensor(self.thresholds, dtype=torch.float64)
        hits = (predicted_NK & labels_NK).sum(0).tolist()
        images, predicted = labels_NK.sum(0).tolist(), predicted_NK.sum(0).tolist()
        return [
            {
                "label": k,
                "name": name,
                "images": images[k],
                "ap": _average_precision(scores_NK[:, k], labels_NK[:, k]),
                "f1": _percent(2 * hits[k], images[k] + predicted[k]),
                "recall": _percent(hits[k], images[k]),
                "precision": _percent(hits[k], predicted[k]),
                "threshold": self.thresholds[k],
                "hits": hits[k],
                "predicted": predicted[k],
            }
            for k, name in enumerate(self.classes)
        ]


def _curve(scores_N: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each different score, highest first, and how many images and labeled images reach it."""
    values, place = torch.unique(scores_N, return_inverse=True)
    counts = torch.bincount(place, minlength=len(values)).flip(0).cumsum(0)
    hits = torch.bincount(place[labels_N], minlength=len(values)).flip(0).cumsum(0)
    return values.flip(0).double(), counts, hits


def _average_precision(scores_N: Tensor, labels_N: Tensor) -> float | None:
    """The area under the curve of precision over recall, in percent; images of equal score count together."""
    _, counts, hits = _curve(scores_N, labels_N)
    if not int(hits[-1]):
        return None
    gains = hits.diff(prepend=hits.new_zeros(1))
    return 100.0 * float((gains.double() * hits / counts).sum() / hits[-1])


def _best_threshold(scores_N: Tensor, labels_N: Tensor) -> float:
    values, counts, hits = _curve(scores_N, labels_N)
    if not int(hits[-1]):
        return 0.5
    at = int((2.0 * hits / (counts + hits[-1])).argmax())
    # Halfway to the next lower score, so that rounding elsewhere does not change the answer.
    below = float(values[at + 1]) if at + 1 < len(values) else 0.0
    return (float(values[at]) + below) / 2


def _percent(part: int, whole: int) -> float | None:
    return 100.0 * part / whole if whole else None

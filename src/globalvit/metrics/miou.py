"""Mean intersection over union, mean and pixel accuracy, and the confusion matrix of a segmenter.

Legend: `H W` pixels · `K` classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from globalvit.metrics.labels import check_labels
from globalvit.metrics.metric import Metric

IGNORE = 255


class MeanIoU(Metric):
    """Counts of pixels over a whole set of images, as ADE20K is scored: the classes' counts first, then their ratios.

    Pixels labeled IGNORE (255) are left out. A class that is neither in the ground truth nor in the predictions has no
    ratio, and the means go over the others; a class without pixels in the ground truth has no accuracy.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.confusion_KK = torch.zeros(len(classes), len(classes), dtype=torch.int64)
        self.count = 0

    def update(self, predictions_HW: Tensor, labels_HW: Tensor) -> None:
        """Add one image: whole numbers of any dtype, on any device, predictions 0 … K−1.

        Raises:
            ValueError: the shapes differ, or a label is neither a class nor IGNORE.
        """
        if predictions_HW.shape != labels_HW.shape:
            raise ValueError(
                f"expected predictions of the labels' shape {tuple(labels_HW.shape)}, got {tuple(predictions_HW.shape)}"
            )
        counted = labels_HW != IGNORE
        labels, predictions = labels_HW[counted].long(), predictions_HW[counted].long()
        check_labels(labels, len(self.classes), IGNORE)
        # Rows are true classes, columns the predictions: the flattened pair is counted.
        pairs = torch.bincount(labels * len(self.classes) + predictions, minlength=self.confusion_KK.numel())
        self.confusion_KK += pairs.view_as(self.confusion_KK).cpu()
        self.count += 1

    def state(self) -> tuple[Tensor, int]:
        """Confusion counts and images."""
        return self.confusion_KK.clone(), self.count

    def merge(self, state: tuple[Tensor, int]) -> None:
        """Add another process's counts."""
        confusion_KK, count = state
        self.confusion_KK += confusion_KK
        self.count += count

    def compute(self) -> dict[str, float]:
        """`miou`, `macc` and `pacc` in percent, `count` the images.

        Raises:
            ValueError: no pixel was scored.
        """
        pixels = int(self.confusion_KK.sum())
        if pixels == 0:
            raise ValueError(
                "no pixel was scored; the validation split is empty, none of its files can be read, or all of its "
                f"labels are {IGNORE}"
            )
        rows = self._rows()
        return {
            "miou": _mean([row["iou"] for row in rows]),
            "macc": _mean([row["accuracy"] for row in rows]),
            "pacc": 100.0 * int(self.confusion_KK.diagonal().sum()) / pixels,
            "count": float(self.count),
        }

    def report(self) -> dict[str, Any]:
        """Rows `{label, name, pixels, iou, accuracy, precision}` (percent, None where nothing can be said), the matrix.

        `pixels` are those of the ground truth; `accuracy` is the part of them that was found, `precision` the part of
        the predicted ones that is right.
        """
        return {"per_class": self._rows(), "confusion_matrix": self.confusion_KK.tolist()}

    def _rows(self) -> list[dict[str, Any]]:
        hits = self.confusion_KK.diagonal().tolist()
        labeled, predicted = self.confusion_KK.sum(1).tolist(), self.confusion_KK.sum(0).tolist()
        return [
            {
                "label": label,
                "name": name,
                "pixels": labeled[label],
                "iou": _percent(hits[label], labeled[label] + predicted[label] - hits[label]),
                "accuracy": _percent(hits[label], labeled[label]),
                "precision": _percent(hits[label], predicted[label]),
            }
            for label, name in enumerate(self.classes)
        ]


def _percent(part: int, whole: int) -> float | None:
    return 100.0 * part / whole if whole else None


def _mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known)

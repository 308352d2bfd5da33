"""Mean intersection over union, mean and pixel accuracy, and the confusion matrix of a segmenter.

Legend: `H W` pixels · `K` classes.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from globalvit.metrics.confusion import Confusion, countable
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
        self._confusion = Confusion(len(classes), IGNORE)
        self.count = 0

    def update(self, predictions_HW: Tensor, labels_HW: Tensor) -> None:
        """Add one image: whole numbers of any dtype, on any device, predictions 0 … K−1.

        Raises:
            ValueError: the shapes differ, or a label is neither a class nor IGNORE. On a GPU, reading the
                counts raises the latter instead.
        """
        if predictions_HW.shape != labels_HW.shape:
            raise ValueError(
                f"expected predictions of the labels' shape {tuple(labels_HW.shape)}, got {tuple(predictions_HW.shape)}"
            )
        labels, predictions = countable(labels_HW).flatten().long(), countable(predictions_HW).flatten().long()
        if labels.device.type == "cpu":
            check_labels(labels, len(self.classes), IGNORE)
        self._confusion.add(labels, predictions)
        self.count += 1

    @property
    def confusion(self) -> Tensor:
        """Pixels by true class (rows) and by prediction (columns), on the device where they are counted."""
        return self._confusion.matrix

    def state(self) -> tuple[Tensor, int]:
        """Confusion counts and images.

        Raises:
            ValueError: a label was neither a class nor IGNORE.
        """
        return self._confusion.read(), self.count

    def merge(self, state: tuple[Tensor, int]) -> None:
        """Add another process's counts."""
        confusion_KK, count = state
        self.confusion.add_(confusion_KK.to(self.confusion.device))
        self.count += count

    def compute(self) -> dict[str, float]:
        """`miou`, `macc` and `pacc` in percent, `count` the images.

        Raises:
            ValueError: no pixel was scored.
        """
        confusion_KK = self._confusion.read()
        pixels = int(confusion_KK.sum())
        if pixels == 0:
            raise ValueError(
                "no pixel was scored; the validation split is empty, none of its files can be read, or all of its "
                f"labels are {IGNORE}"
            )
        rows = _rows(self.classes, confusion_KK)
        return {
            "miou": _mean([row["iou"] for row in rows]),
            "macc": _mean([row["accuracy"] for row in rows]),
            "pacc": 100.0 * int(confusion_KK.diagonal().sum()) / pixels,
            "count": float(self.count),
        }

    def report(self) -> dict[str, Any]:
        """Rows `{label, name, pixels, iou, accuracy, precision}` (percent, None where nothing can be said), the matrix.

        `pixels` are those of the ground truth; `accuracy` is the part of them that was found, `precision` the part of
        the predicted ones that is right.
        """
        confusion_KK = self._confusion.read()
        return {"per_class": _rows(self.classes, confusion_KK), "confusion_matrix": confusion_KK.tolist()}


def _rows(classes: Sequence[str], confusion_KK: Tensor) -> list[dict[str, Any]]:
    hits = confusion_KK.diagonal().tolist()
    labeled, predicted = confusion_KK.sum(1).tolist(), confusion_KK.sum(0).tolist()
    return [
        {
            "label": label,
            "name": name,
            "pixels": labeled[label],
            "iou": _percent(hits[label], labeled[label] + predicted[label] - hits[label]),
            "accuracy": _percent(hits[label], labeled[label]),
            "precision": _percent(hits[label], predicted[label]),
        }
        for label, name in enumerate(classes)
    ]


def _percent(part: int, whole: int) -> float | None:
    return 100.0 * part / whole if whole else None


def _mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known)

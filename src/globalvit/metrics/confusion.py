"""The confusion matrix that accuracy and mean IoU count into.

Legend: `N` pairs · `K` classes.
"""

import torch
from torch import Tensor

from globalvit.metrics.labels import check_labels


class Confusion:
    """Counts of (true class, predicted class). They stay on the device of the pairs, so that adding waits for nothing.

    Args:
        num_classes: K.
        ignore: label that is left out.
    """

    def __init__(self, num_classes: int, ignore: int | None = None) -> None:
        self.num_classes = num_classes
        self.ignore = ignore
        # The last cell takes the pairs that do not count.
        self.cells = torch.zeros(num_classes**2 + 1, dtype=torch.int64)
        self.extremes = torch.zeros(2, dtype=torch.int64)

    def add(self, labels_N: Tensor, predictions_N: Tensor) -> None:
        """Count pairs of int64, predictions 0 … K−1. `read` reports labels outside the classes."""
        if labels_N.numel() == 0:
            return
        self.cells, self.extremes = (kept.to(labels_N.device) for kept in (self.cells, self.extremes))
        labels = labels_N if self.ignore is None else labels_N.masked_fill(labels_N == self.ignore, 0)
        self.extremes = torch.stack([self.extremes[0].minimum(labels.amin()), self.extremes[1].maximum(labels.amax())])
        is_left_out = (labels_N < 0) | (labels_N >= self.num_classes) | (labels_N != labels)
        pairs = labels_N * self.num_classes + predictions_N
        pairs = pairs.masked_fill(is_left_out, self.num_classes**2)
        self.cells.index_add_(0, pairs, torch.ones_like(pairs))

    @property
    def matrix(self) -> Tensor:
        """A view of the counts where they are: rows are true classes, columns the predictions."""
        return self.cells[:-1].view(self.num_classes, self.num_classes)

    def read(self) -> Tensor:
        """Return a copy of the matrix (K, K) on the CPU.

        Raises:
            ValueError: a label was neither a class nor `ignore`.
        """
        check_labels(self.extremes, self.num_classes, self.ignore)
        return self.matrix.to("cpu", copy=True)


def countable(tensor: Tensor) -> Tensor:
    """The tensor where whole numbers and doubles can be summed: on its device, or on the CPU for Apple GPUs."""
    return tensor.cpu() if tensor.device.type == "mps" else tensor

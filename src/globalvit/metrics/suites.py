"""Accuracy of a classifier with ImageNet-1K's classes on sets that have some of them, or several labels per image.

Legend: `B` images · `K` classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from globalvit.metrics.accuracy import TOP, Accuracy


class SubsetAccuracy(Accuracy):
    """Accuracy among some of a model's outputs; the others do not count.

    Args:
        classes: names of the labels.
        outputs: the output that stands for each label.
    """

    def __init__(self, classes: Sequence[str], outputs: Sequence[int]) -> None:
        super().__init__(classes)
        self.outputs = torch.tensor(outputs)

    def update(self, logits_BK: Tensor, labels_B: Tensor) -> None:
        """See `Accuracy.update`; the logits are those of all outputs."""
        super().update(logits_BK[:, self.outputs.to(logits_BK.device)], labels_B)


class RealAccuracy(SubsetAccuracy):
    """Accuracy where several labels may be right for an image, as in ImageNet-ReaL.

    An image counts as right if any of its labels is predicted. In the confusion matrix it is an image of the label that
    was predicted if that is right, else of its first label. The loss is that of the summed probability of its labels.

    Args:
        classes, outputs: as in `SubsetAccuracy`.
        allowed: the labels that are right for each image, at least one.
    """

    def __init__(self, classes: Sequence[str], outputs: Sequence[int], allowed: Sequence[Sequence[int]]) -> None:
        super().__init__(classes, outputs)
        self.allowed = allowed

    def update(self, logits_BK: Tensor, labels_B: Tensor) -> None:
        """Add a batch: logits of all outputs, and as labels the positions of the images in `allowed`."""
        logits_BK = logits_BK[:, self.outputs.to(logits_BK.device)].float().cpu()
        is_right_BK = torch.zeros(logits_BK.shape, dtype=torch.bool)
        for row, image in enumerate(labels_B.tolist()):
            is_right_BK[row, list(self.allowed[image])] = True
        guesses_BT = logits_BK.topk(min(TOP, len(self.classes))).indices
        best_B, hits_BT = guesses_BT[:, 0], is_right_BK.gather(1, guesses_BT)
        log_odds_B = logits_BK.masked_fill(~is_right_BK, -torch.inf).logsumexp(1) - logits_BK.logsumexp(1)
        labels_B = torch.where(hits_BT[:, 0], best_B, is_right_BK.int().argmax(1))
        self._add(labels_B, best_B, hits_BT.any(1), -log_odds_B)

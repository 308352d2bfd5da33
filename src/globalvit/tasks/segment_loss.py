"""What a segmenter minimizes: cross-entropy of pixels, over all of them or the hard ones.

Legend: `B` images · `H W` pixels · `K` classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, log

import torch
import torch.nn.functional as F
from torch import Tensor

from globalvit.metrics.miou import IGNORE
from globalvit.tasks.reduce import over_processes, world

# A pixel is hard where its true class has less than this probability (arXiv 1604.03540's idea, for pixels).
HARD_UNDER = 0.7
# At least so many pixels of a batch count as hard, the hardest ones.
MIN_HARD = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentLoss:
    """What of the loss can be chosen.

    Attributes:
        aux_weight: factor of the auxiliary head's loss.
        ohem: take the head's loss over hard pixels only (online hard example mining); the auxiliary head's is over all.
        class_weights: factor of each class's pixels, None for 1 each; means are weighted means.

    Raises:
        ValueError: a weight is negative or not finite, or no class has one.
    """

    aux_weight: float = 0.4
    ohem: bool = False
    class_weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not (isfinite(self.aux_weight) and self.aux_weight >= 0):
            raise ValueError(f"aux_weight={self.aux_weight} must be 0 or more")
        weights = self.class_weights
        if weights is not None and not (all(isfinite(one) and one >= 0 for one in weights) and any(weights)):
            raise ValueError(f"class_weights={weights} must be 0 or more, one of them above 0")

    def weights(self, num_classes: int, device: torch.device) -> Tensor | None:
        """The factors of the classes, (K,) float32; None where all are 1.

        Raises:
            ValueError: there are more or fewer than classes.
        """
        if self.class_weights is None:
            return None
        if len(self.class_weights) != num_classes:
            raise ValueError(f"{len(self.class_weights)} class_weights came for {num_classes} classes; give one each")
        return torch.tensor(self.class_weights, dtype=torch.float32, device=device)


def pixel_loss(
    logits_BKHW: Tensor, labels_BHW: Tensor, weights_K: Tensor | None = None, *, ohem: bool = False
) -> Tensor:
    """Mean cross-entropy over the pixels of all processes that are not IGNORE; 0 where there are none.

    Args:
        logits_BKHW: of any float dtype; the loss is float32.
        labels_BHW: 0 … K−1 or IGNORE, of any whole-number dtype.
        weights_K: factors of the classes; the mean is then a weighted one.
        ohem: count hard pixels only.
    """
    labels = labels_BHW.long()
    losses_BHW = F.cross_entropy(logits_BKHW.float(), labels, ignore_index=IGNORE, reduction="none")
    counted_BHW = labels != IGNORE
    if ohem:
        counted_BHW &= _hard(losses_BHW.detach(), counted_BHW)
    factors_BHW = counted_BHW.float()
    if weights_K is not None:
        factors_BHW = factors_BHW * weights_K[labels.where(counted_BHW, 0)]
    everywhere = over_processes(factors_BHW.sum())
    # Without a pixel the sum is 0, and so must be the mean and its gradients.
    return (losses_BHW * factors_BHW).sum() * world() / everywhere.where(everywhere > 0, 1.0)


def _hard(losses_BHW: Tensor, counted_BHW: Tensor) -> Tensor:
    """Which pixels are hard: those under the probability, and the `MIN_HARD` hardest of the batch."""
    if losses_BHW.numel() <= MIN_HARD:
        return counted_BHW
    ranked = losses_BHW.where(counted_BHW, -torch.inf).flatten()
    last_kept = ranked.kthvalue(ranked.numel() - MIN_HARD + 1).values
    return losses_BHW >= last_kept.clamp(max=-log(HARD_UNDER))

"""Cross-entropy of a segmenter's pixels, over all of them or the hard ones.

Legend: `B` images · `H W` pixels · `K` classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, log

import torch
import torch.nn.functional as F
from torch import Tensor

from globalvit.metrics.miou import IGNORE
from globalvit.tasks.reduce import over_step, world

# A pixel is hard where its true class has less than this probability (arXiv 1604.03540's idea, for pixels).
HARD_UNDER = 0.7
# At least so many pixels of a step count as hard, the hardest ones.
MIN_HARD = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentLoss:
    """Options of the loss.

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
        """Return the class factors, (K,) float32; None if all are 1.

        Raises:
            ValueError: there are more or fewer than classes.
        """
        if self.class_weights is None:
            return None
        if len(self.class_weights) != num_classes:
            raise ValueError(
                f"class_weights: expected one for each of {num_classes} classes, got {len(self.class_weights)}"
            )
        return torch.tensor(self.class_weights, dtype=torch.float32, device=device)


def pixel_loss(
    logits_BKHW: Tensor, labels_BHW: Tensor, weights_K: Tensor | None = None, *, ohem: bool = False
) -> Tensor:
    """Return the mean cross-entropy over all pixels of a step that are not IGNORE; 0 if there are none.

    Args:
        logits_BKHW: of any float dtype; the loss is float32.
        labels_BHW: 0 … K−1 or IGNORE, of any whole-number dtype.
        weights_K: factors of the classes; the mean is then a weighted one.
        ohem: count hard pixels only: the hardest of the step.
    """
    losses_BHW = F.cross_entropy(logits_BKHW.float(), labels_BHW.long(), ignore_index=IGNORE, reduction="none")
    factors_BHW = _factors(labels_BHW, weights_K)
    if ohem:
        threshold, total = _hard(losses_BHW.detach(), factors_BHW, labels_BHW != IGNORE)
        factors_BHW = factors_BHW.where(losses_BHW.detach() >= threshold, 0.0)
    else:
        total = count_pixels(labels_BHW, weights_K)
    # Without a pixel the sum is 0, and so must be the mean and its gradients.
    return (losses_BHW * factors_BHW).sum() * world() / total.where(total > 0, 1.0)


def count_pixels(labels_BHW: Tensor, weights_K: Tensor | None = None) -> Tensor:
    """Return the pixels of a step that are not IGNORE, each times its class's factor: a float32 scalar."""
    return over_step(_factors(labels_BHW, weights_K).sum()).sum(0)


def _factors(labels_BHW: Tensor, weights_K: Tensor | None) -> Tensor:
    counted_BHW = labels_BHW != IGNORE
    factors_BHW = counted_BHW.float()
    return factors_BHW if weights_K is None else factors_BHW * weights_K[labels_BHW.long().where(counted_BHW, 0)]


def _hard(losses_BHW: Tensor, factors_BHW: Tensor, counted_BHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss from which a pixel is hard, and the sum of the hard ones' factors, over the whole step.

    Hard are the pixels under the probability, and at least the `MIN_HARD` hardest.
    """
    limit = -log(HARD_UNDER)
    under_limit = over_step(factors_BHW.where(counted_BHW & (losses_BHW >= limit), 0.0).sum()).sum(0)
    ranked = losses_BHW.where(counted_BHW, -torch.inf).flatten()
    hardest = ranked.topk(min(MIN_HARD, ranked.numel()))
    room = (0, MIN_HARD - len(hardest.values))
    own = torch.stack(
        [F.pad(hardest.values, room, value=-torch.inf), F.pad(factors_BHW.flatten()[hardest.indices], room)]
    )
    losses, factors = over_step(own).transpose(0, 1).flatten(1)
    hardest = losses.topk(MIN_HARD)
    last_kept = hardest.values[-1]
    total = torch.where(last_kept >= limit, under_limit, factors[hardest.indices].sum())
    return last_kept.clamp(max=limit), total

"""Losses and gradients that are not finite: noticed before the optimizer step, reported with step, rank and files."""

import logging
import math
from collections.abc import Mapping, Sequence

logger = logging.getLogger(__name__)

MOST_NAMES = 16
# fp16 steps left out in a row after which more halving of the loss scale is of no use.
MOST_OVERFLOWS = 30


def is_tolerable(loss: float, norm: float, overflows: int, *, has_scaler: bool) -> bool:
    """Whether the run may go on: everything is finite, or fp16 is still looking for its loss scale.

    Args:
        loss: mean over all processes.
        norm: of the gradient.
        overflows: fp16 steps left out in a row, this one included.
        has_scaler: whether losses are scaled, as in fp16.
    """
    if math.isfinite(loss) and math.isfinite(norm):
        return True
    return has_scaler and math.isfinite(loss) and overflows < MOST_OVERFLOWS


def explain(loss: float, norm: float, step: int, shares: Sequence[tuple[float, list[str]]]) -> FloatingPointError:
    """The error to raise; all the files are named in the log.

    Args:
        loss: mean over all processes.
        norm: of the gradient.
        step: number of the step, from 1.
        shares: loss and files of each process, in rank order.
    """
    what = f"gradient norm is {norm}" if math.isfinite(loss) else f"loss is {loss}"
    guilty = [rank for rank, (own, _) in enumerate(shares) if not math.isfinite(own)]
    # The gradient is shared: where only it is not finite, every rank's files are suspects.
    suspects = guilty or list(range(len(shares)))
    for rank in suspects:
        logger.error("step %d, rank %d: the batch held %s", step, rank, ", ".join(shares[rank][1]))
    rank, names = suspects[0], shares[suspects[0]][1]
    rest = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return FloatingPointError(
        f"{what} in step {step} on rank {', '.join(map(str, suspects))}; rank {rank}'s batch held "
        f"{', '.join(names[:MOST_NAMES])}{rest}. The parameters are still those of the step before; lower --lr, set "
        f"--clip-grad, use --precision fp32, or look at these files"
    )


def require_finite_loss(scores: Mapping[str, float], step: int) -> None:
    """Check what an evaluation measured.

    Raises:
        FloatingPointError: its loss is not finite, so its other numbers are worthless.
    """
    loss = scores.get("loss", 0.0)
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss of the evaluation after step {step} is {loss}, so its scores were not recorded; lower --lr, set "
            f"--clip-grad, or use --precision fp32"
        )

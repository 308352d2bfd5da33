"""Notes on data from which a classifier cannot learn well."""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

logger = logging.getLogger(__name__)

MOST_COUNTED, MOST_NAMED = 50_000, 5
# A loss that ends below this part of where it began has fallen; fewer images than LEAST_JUDGED say little.
FALLEN, LEAST_JUDGED = 0.7, 10


def warn_of_rare_classes(train: Any) -> None:
    """Log in one line which classes have a single training image."""
    counts = _counts(train)
    rare = [name for number, name in enumerate(train.classes) if counts[number] == 1]
    if rare:
        more = f", … and {len(rare) - MOST_NAMED} more" if len(rare) > MOST_NAMED else ""
        logger.warning(
            "expected two or more training images of every class, got one for %d of %d classes (%s%s); add images, or "
            "leave these classes out",
            *(len(rare), len(train.classes), ", ".join(rare[:MOST_NAMED]), more),
        )


def warn_of_chance(metrics: Sequence[Mapping[str, Any]], top1: float, val: Any, data_dir: str | None) -> None:
    """Log in one line that a run learned its training images, but nothing that holds for others.

    Args:
        metrics: records of the run.
        top1: best validation accuracy in percent.
        val: validation images.
        data_dir: of the run, for the message.
    """
    losses = [record["loss"] for record in metrics if record["kind"] == "train"]
    counts = _counts(val)
    images = counts.total()
    if images < LEAST_JUDGED or len(counts) < 2 or not losses or losses[-1] > FALLEN * losses[0]:
        return
    # Who always names the most frequent class scores this, give or take a standard deviation.
    chance = max(counts.values()) / images
    if top1 / 100 <= chance + math.sqrt(chance * (1 - chance) / images):
        logger.warning(
            "the training loss fell from %.3g to %.3g, but validation top1 is %.3g %%, no better than chance (%.3g "
            "%%); check that both splits have the same labels with globalvit data check %s, and add images, published "
            "weights or augmentation (--aa, --mixup)",
            *(losses[0], losses[-1], top1, 100 * chance, data_dir),
        )


def _counts(source: Any) -> Counter[int]:
    if len(source) > MOST_COUNTED:
        return Counter()
    if getattr(source, "is_multi_label", False):
        return Counter(label for index in range(len(source)) for label in source.labels(index))
    label = source.label
    return Counter(label(index) for index in range(len(source)))

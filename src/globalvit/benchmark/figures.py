"""From seconds to figures: medians, spreads, and ratios of neighboring repetitions."""

import statistics
from collections.abc import Sequence


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie, interpolated between neighbors."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def paired_ratio(theirs: Sequence[float], ours: Sequence[float]) -> float | None:
    """The median of theirs / ours over repetitions that ran one after the other; None where there are none.

    A clock rate that drifts slows both of a pair, and so leaves this ratio as it is.

    Raises:
        ValueError: the repetitions are not pairs.
    """
    pairs = list(zip(theirs, ours, strict=True))
    return statistics.median(a / b for a, b in pairs) if pairs else None


def images_per_second(batch_size: int, seconds: Sequence[float]) -> float:
    """Images a second at the median time of a run."""
    return batch_size / statistics.median(seconds)


def per_pixel(batch_size: int, size: tuple[int, int], seconds: Sequence[float]) -> float:
    """Seconds for each pixel of the images, at the median time of a run."""
    return statistics.median(seconds) / (batch_size * size[0] * size[1])

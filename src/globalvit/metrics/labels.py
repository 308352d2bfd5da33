"""The one check of labels that every head, loss and metric makes."""

from torch import Tensor


def check_labels(labels: Tensor, num_classes: int, ignore: int | None = None) -> None:
    """Refuse labels that are neither 0 … num_classes − 1 nor `ignore`.

    Raises:
        ValueError: there is one; the text gives the largest.
    """
    is_wrong = (labels < 0) | (labels >= num_classes)
    wrong = labels[is_wrong if ignore is None else is_wrong & (labels != ignore)]
    if wrong.numel():
        ignored = "," if ignore is None else f", or {ignore} for pixels to ignore,"
        remedy = "count labels from 0" if int(wrong.max()) == num_classes else "correct the labels or num_classes"
        raise ValueError(f"expected labels from 0 to {num_classes - 1}{ignored} got {int(wrong.max())}; {remedy}")

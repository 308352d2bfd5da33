"""A check of the labels that losses and metrics are given."""

from torch import Tensor


def check_classes(labels: Tensor, num_classes: int) -> None:
    """Refuse labels that are not 0 … num_classes − 1.

    Raises:
        ValueError: there is one; the text gives it.
    """
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if wrong.numel():
        counted = "; count labels from 0" if int(wrong.max()) == num_classes else ""
        raise ValueError(f"expected labels from 0 to {num_classes - 1}, got {int(wrong[0])}{counted}")

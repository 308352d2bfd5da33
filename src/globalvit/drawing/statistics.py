"""Type of a batch, and protocol of a transform whose normalization can be undone."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

Batch = Mapping[str, Any]


class Statistics(Protocol):
    """Mean and standard deviation of each channel."""

    def denormalize(self, images: Tensor) -> Tensor:
        """Return float (…, C, H, W) as uint8 values 0 … 255."""
        ...

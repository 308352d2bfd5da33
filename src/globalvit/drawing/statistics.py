"""What a sheet of samples is drawn from: a batch, and what normalized its images."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

Batch = Mapping[str, Any]


class Statistics(Protocol):
    """Mean and deviation of each channel."""

    def denormalize(self, images: Tensor) -> Tensor:
        """Return float (…, C, H, W) as uint8 values 0 … 255."""
        ...

"""What every metric offers: the same numbers on one process and on many."""

from abc import ABC, abstractmethod
from typing import Any


class Metric(ABC):
    """Sums over a data set. Each process feeds its share; states are merged in rank order before computing.

    States hold sums and counts, never means, so that a set which does not divide by the processes is scored exactly.

    Attributes:
        noted: filled by a task's `evaluate` with what it notes of each image, by its position in the data; None notes
            nothing. It is not part of the state.
    """

    noted: dict[int, Any] | None = None

    @abstractmethod
    def state(self) -> Any:
        """What this process has gathered, to be pickled and sent to the others."""

    @abstractmethod
    def merge(self, state: Any) -> None:
        """Add another process's `state` to this one's."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Scores by their names in `summary.json`: percent for accuracies, plain for a loss."""

    @abstractmethod
    def report(self) -> dict[str, Any]:
        """Details behind the scores: `per_class` (a list of rows) and `confusion_matrix` where there is one."""

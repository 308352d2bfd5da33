"""An account of the images that could not be read."""

import logging
from collections.abc import Iterable, Mapping
from typing import Self

logger = logging.getLogger(__name__)

# More unreadable images than both of these stop the run.
MOST_FILES = 10
MOST_SHARE = 0.01


class TooManyUnreadableError(ValueError):
    """So many images are unreadable that the run stops."""

    @classmethod
    def of(cls, total: int, reasons: Mapping[str, str]) -> Self:
        """The error for some of `total` images, name → reason."""
        last = list(reasons.values())[-1]
        return cls(
            f"{len(reasons)} of {total} images cannot be read, a run stops above {MOST_FILES} and {MOST_SHARE:.0%}; "
            f"`globalvit data check` lists them, the last was: {last}"
        )


class SkippedFiles:
    """Unreadable images of one set, by name; each is logged once.

    Args:
        total: images in the set.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.reasons: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, skipped: Iterable[tuple[str, str]]) -> None:
        """Count (name, reason) pairs, such as a batch's `skipped`.

        Raises:
            TooManyUnreadableError: more than 10 images and more than 1 % of all are unreadable.
        """
        for name, reason in skipped:
            if name not in self.reasons:
                self.reasons[name] = reason
                logger.warning("skipped: %s", reason)
        if len(self) > most_unreadable(self.total):
            raise TooManyUnreadableError.of(self.total, self.reasons)

    def merge(self, reasons: Mapping[str, str]) -> None:
        """Count what another process or an earlier part of the run found: its `reasons`; raises as `add` does."""
        self.add(reasons.items())


def most_unreadable(total: int) -> int:
    """How many unreadable images of `total` a run goes on with."""
    return max(MOST_FILES, int(total * MOST_SHARE))

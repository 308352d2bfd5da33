"""A progress bar on a terminal, and nothing elsewhere."""

import sys
from types import TracebackType
from typing import Self


class Progress:
    """Counts steps of `total` while it is entered; shown where stderr is a terminal and `is_shown` says so."""

    def __init__(self, total: int, description: str, *, is_shown: bool = True) -> None:
        self.bar = None
        if is_shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress as Bar

            self.bar = Bar(console=Console(stderr=True), transient=True)
            self.task = self.bar.add_task(description, total=total)

    def __enter__(self) -> Self:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def advance(self) -> None:
        """Count one step."""
        if self.bar:
            self.bar.advance(self.task)

"""What is shown while something runs: log lines and progress bars, on a terminal and in a notebook."""

import logging
import os
import sys
from html import escape
from importlib import import_module
from types import TracebackType
from typing import Any, Self

from globalvit.printable import printable


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return hasattr(shell, "kernel")


class _Handler(logging.StreamHandler):
    """Writes to whatever `sys.stderr` is now, so that a progress bar can keep log lines above itself.

    Notebooks show stderr as an error, so there the lines go to stdout.
    """

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stdout if in_notebook() else sys.stderr
        super().emit(record)


class _OneLine(logging.Formatter):
    """Keeps messages on one line, whatever the names in them contain."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name in logging
        return printable(super().formatMessage(record))


def start_logging() -> None:
    """Show the package's log: everything from rank 0, only errors from other ranks."""
    logger = logging.getLogger("globalvit")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, _Handler) for handler in logger.handlers):
        handler = _Handler()
        handler.setFormatter(_OneLine())
        handler.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)
        logger.addHandler(handler)


def start_logging_by_default() -> None:
    """Show the package's log, unless the program has configured logging itself."""
    logger = logging.getLogger("globalvit")
    if not logger.hasHandlers() and logger.level == logging.NOTSET:
        start_logging()


class NotebookBar:
    """A progress bar below a notebook's cell, with a line of text."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.handle: Any = import_module("IPython.display").display(self._content(0, ""), raw=True, display_id=True)

    def update(self, done: int, text: str) -> None:
        """Move the bar to `done` of `total`."""
        self.handle.update(self._content(done, text), raw=True)

    def _content(self, done: int, text: str) -> dict[str, str]:
        bar = f'<progress value="{done}" max="{max(self.total, 1)}" style="width:30em"></progress>'
        words = f"{done}/{self.total} {printable(text)}"
        return {"text/plain": words, "text/html": f"{bar} <code>{escape(words)}</code>"}


class Progress:
    """Counts steps of `total` while it is entered; shown on a terminal and in a notebook if `is_shown` says so."""

    def __init__(self, total: int, description: str, *, is_shown: bool = True) -> None:
        self.description, self.done = description, 0
        self.bar = self.notebook = None
        if is_shown and in_notebook():
            self.notebook = NotebookBar(total)
        elif is_shown and sys.stderr.isatty():
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
        self.done += 1
        if self.bar:
            self.bar.advance(self.task)
        if self.notebook:
            self.notebook.update(self.done, self.description)

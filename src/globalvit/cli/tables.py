"""Tables on standard output."""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from globalvit.printable import printable

# Width of a table that is piped to a file or another program, so that nothing is cut.
UNCUT = 1000
PLOTS = (".png", ".pdf", ".svg")


def show(rows: Sequence[Mapping[str, str]], title: str | None = None) -> None:
    """Print rows with equal keys as a table; columns of numbers are right-aligned."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else UNCUT)
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for column in rows[0] if rows else ():
        is_number = all(re.fullmatch(r"[-\d., ]*|–", row[column]) for row in rows)
        table.add_column(column, justify="right" if is_number else "left")
    for row in rows:
        # `Text` keeps brackets in file names from being parsed as markup.
        table.add_row(*(Text(printable(value)) for value in row.values()))
    console.print(table)


def write_line(text: str) -> None:
    """Print one line."""
    sys.stdout.write(printable(text) + "\n")


def number(value: float | None, digits: int) -> str:
    """Format a number for a table; None becomes a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def check_plot(path: Path | None) -> None:
    """Check the file extension of a plot before anything is computed.

    Raises:
        ValueError: the extension is not supported.
    """
    if path is not None and path.suffix.lower() not in PLOTS:
        raise ValueError(f"--plot {path} must end in {', '.join(PLOTS)}")

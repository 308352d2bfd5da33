"""Tables on standard output and the files that hold the same rows."""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from globalvit.printable import printable

# Columns of a table that goes to a file or another program: nothing is cut there.
UNCUT = 1000
PLOTS = (".png", ".pdf", ".svg")


def show(rows: Sequence[Mapping[str, str]], title: str | None = None) -> None:
    """Print rows of the same keys as a table; columns of numbers stand to the right."""
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
        # As `Text`, brackets in a file's name are not read as markup.
        table.add_row(*(Text(printable(value)) for value in row.values()))
    console.print(table)


def write_line(text: str) -> None:
    """Print one line."""
    sys.stdout.write(printable(text) + "\n")


def number(value: float | None, digits: int) -> str:
    """A number for a table, with a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def check_plot(path: Path | None) -> None:
    """Refuse a name that no plot is written under, before anything is computed for it.

    Raises:
        ValueError: it has another ending.
    """
    if path is not None and path.suffix.lower() not in PLOTS:
        raise ValueError(f"--plot {path} must end in {', '.join(PLOTS)}")

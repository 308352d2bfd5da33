"""Tables on standard output and the files that hold the same rows."""

import csv
import io
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from globalvit.atomic import write_text
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


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically; numbers that are not finite become null, which JSON has in their place."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write rows as CSV below their header, atomically; bytes of names that are not UTF-8 are escaped."""
    write_text(path, "".join(_csv_line(row) for row in (header, *rows)))


def _csv_line(row: Iterable[Any]) -> str:
    """One line of CSV; the writer quotes cells with a line break of any kind only if lines end in both characters."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(row)
    return line.getvalue().removesuffix("\r\n") + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value

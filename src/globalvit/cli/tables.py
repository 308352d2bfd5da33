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

from globalvit.atomic import write_bytes

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
    """Print a line, or several that are parted by line feeds."""
    sys.stdout.write("\n".join(map(printable, text.split("\n"))) + "\n")


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


def printable(text: str) -> str:
    """Escape what a terminal would obey or cannot show: control characters, and bytes of names that are not UTF-8."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "backslashreplace").decode()
        for letter in text
    )


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically; numbers that are not finite become null, which JSON has in their place."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # Bytes of a file's name that are not UTF-8 become \udcXX, which JSON readers give back as they were.
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write rows as CSV below their header, atomically; bytes of names that are not UTF-8 are escaped."""
    text = io.StringIO()
    plain = csv.writer(text, lineterminator="\n")
    # Before Python 3.13 a lone carriage return is not quoted, and splits the row when it is read.
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in [header, *map(list, rows)]:
        writer = quoted if any("\r" in cell for cell in row if isinstance(cell, str)) else plain
        writer.writerow(row)
    write_bytes(path, text.getvalue().encode("utf-8", "backslashreplace"))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value

"""Writers of results: JSON and CSV."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from globalvit.atomic import write_text


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically; non-finite numbers become null, since JSON cannot hold them."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a header and rows as CSV, atomically; bytes of names that are not UTF-8 are escaped."""
    write_text(path, "".join(_csv_line(row) for row in (header, *rows)))


def _csv_line(row: Iterable[Any]) -> str:
    """Return one line of CSV; the writer quotes cells with any kind of line break only if lines end in CR LF."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(row)
    return line.getvalue().removesuffix("\r\n") + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value

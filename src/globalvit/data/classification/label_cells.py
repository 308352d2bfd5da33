"""Cells of label tables: one label, several in one cell or list, or a column of 0 and 1 per class."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

MultiLabel = bool | Literal["auto"]
SEPARATORS = "|;,"
FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
REMEDY = "use --multi-label true or --multi-label false"


class Many(str):
    """A cell of a column whose name says that it holds any number of labels."""

    __slots__ = ()


class Row(NamedTuple):
    """One line of a table: where it is written, the image's name as written, its label cell, and its split or ''."""

    where: str
    image: str
    label: Any
    split: str


def as_flag(cell: Any) -> bool | None:
    """Read 0 or 1; None for anything else."""
    return FLAGS.get(str(cell).strip().lower())


def is_multi(rows: Sequence[Row], path: Path) -> bool:
    """Decide whether the images of a table have any number of labels.

    Raises:
        ValueError: the table may be read either way.
    """
    if any(isinstance(row.label, list | Many) for row in rows):
        return True
    columns = [row for row in rows if isinstance(row.label, dict)]
    if columns:
        if all(sum(map(bool, map(as_flag, row.label.values()))) == 1 for row in columns):
            raise ValueError(
                f"{path}: each row has 1 in exactly one column of 0 and 1, so it may be a single-label or a "
                f"multi-label table; {REMEDY}"
            )
        return True
    cells = sorted({row.label for row in rows if isinstance(row.label, str)})
    separator = separator_of(rows)
    # Names of classes may have commas, such as those of ImageNet.
    if separator in (None, ","):
        return False
    # A part that also occurs in other cells is a separate label, not part of a name.
    counts = Counter(part for cell in cells for part in _parts(cell, separator))
    joined = [cell for cell in cells if separator in cell]
    shared = [cell for cell in joined if all(counts[part] > 1 for part in _parts(cell, separator))]
    if len(shared) == len(joined):
        return True
    raise ValueError(f"{path}: {joined[0]!r} may be one label or several, separated by {separator!r}; {REMEDY}")


def one_label(rows: Sequence[Row]) -> list[list[str]]:
    """Return the only label of each row.

    Raises:
        ValueError: a row has none, or several.
    """
    return [[_one(row)] for row in rows]


def _one(row: Row) -> str:
    if isinstance(row.label, dict):
        labels = _hot(row)
        if len(labels) != 1:
            raise ValueError(f"{row.where}: expected 1 in exactly one column, got {len(labels)}; {REMEDY}")
        return labels[0]
    label = row.label
    if not isinstance(label, str | int) or isinstance(label, bool) or not str(label).strip():
        raise ValueError(f"{row.where}: expected one label, got {label!r}")
    return str(label).strip()


def all_labels(rows: Sequence[Row], separator: str | None) -> list[list[str]]:
    """Return the labels of each row, which may be none.

    Args:
        rows: of one split.
        separator: what is between the labels of a cell, in all splits; see `separator_of`.

    Raises:
        ValueError: a cell does not hold labels.
    """
    return [_all(row, separator) for row in rows]


def _all(row: Row, separator: str | None) -> list[str]:
    if isinstance(row.label, dict):
        return _hot(row)
    cells = [] if row.label is None else row.label if isinstance(row.label, list) else [row.label]
    for cell in cells:
        if not isinstance(cell, str | int) or isinstance(cell, bool):
            raise ValueError(f"{row.where}: expected labels, got {row.label!r}")
    if isinstance(row.label, str):
        return _parts(row.label, separator)
    return [str(cell).strip() for cell in cells if str(cell).strip()]


def _hot(row: Row) -> list[str]:
    for name, cell in row.label.items():
        if as_flag(cell) is None:
            raise ValueError(f"{row.where}: expected 0 or 1 in the column {name!r}, got {cell!r}")
    return [name for name, cell in row.label.items() if as_flag(cell)]


def separator_of(rows: Sequence[Row]) -> str | None:
    """Return what is between the labels of a cell; None where no cell has several."""
    cells = [row.label for row in rows if isinstance(row.label, str)]
    return next((one for one in SEPARATORS if any(one in cell for cell in cells)), None)


def _parts(cell: str, separator: str | None) -> list[str]:
    parts = cell.split(separator) if separator else [cell]
    return [part.strip() for part in parts if part.strip()]

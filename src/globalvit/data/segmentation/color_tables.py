"""Color tables as other tools write them, a class and its color per line.

`class_dict.csv`, as CamVid's comes: name,r,g,b. `labelmap.txt`, as CVAT writes it: name:r,g,b:parts:actions.
`label_colors.txt`, as CamVid had it first: r g b name.
"""

import csv
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

Color = tuple[int, int, int]
# Classes of these names are for pixels to ignore.
VOID = ("void", "unlabeled", "unlabelled", "ignore", "ignored")
_SPACED = re.compile(r"(\d+)\s+(\d+)\s+(\d+)\s+(\S.*)")


class Row(NamedTuple):
    """A class of a color table, and its color."""

    name: str
    color: Color

    @property
    def is_void(self) -> bool:
        """Whether the class is for pixels to ignore."""
        return self.name.casefold() in VOID


def read_rows(text: str, file: str) -> list[Row]:
    """Read a color table.

    Args:
        text: of the file.
        file: its name, one of `READERS`, which tells the form.

    Raises:
        ValueError: a line has another form; the text names the line.
    """
    rows: list[Row] = []
    for number, (name, values) in READERS[file](text):
        color = [int(value) for value in values if value.strip().isdecimal()]
        if not name or len(values) != len(color) or len(color) != 3 or max(color) > 255:
            line = text.splitlines()[number - 1]
            raise ValueError(f"line {number} is {line[:80]!r}; expected {FORMS[file]} with three numbers 0 … 255")
        rows.append(Row(name, (color[0], color[1], color[2])))
    return rows


def _from_csv(text: str) -> Iterator[tuple[int, tuple[str, list[str]]]]:
    reader = csv.reader(text.splitlines(), skipinitialspace=True)
    for cells in reader:
        row = [cell.strip() for cell in cells]
        is_head = reader.line_num == 1 and [cell.casefold() for cell in row[1:4]] in (["r", "g", "b"], _WORDS)
        if any(row) and not is_head:
            yield reader.line_num, (row[0], row[1:4])


def _from_cvat(text: str) -> Iterator[tuple[int, tuple[str, list[str]]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            name, _, rest = line.partition(":")
            yield number, (name.strip(), rest.split(":")[0].split(","))


def _from_spaced(text: str) -> Iterator[tuple[int, tuple[str, list[str]]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            found = _SPACED.fullmatch(line.strip())
            yield number, (found[4], [found[1], found[2], found[3]]) if found else ("", [])


_WORDS = ["red", "green", "blue"]
READERS: dict[str, Callable[[str], Iterator[tuple[int, tuple[str, list[str]]]]]] = {
    "class_dict.csv": _from_csv,
    "labelmap.txt": _from_cvat,
    "label_colors.txt": _from_spaced,
}
FORMS = {"class_dict.csv": "name,r,g,b", "labelmap.txt": "name:r,g,b::", "label_colors.txt": "r g b name"}

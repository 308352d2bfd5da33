"""Names and colors of the classes that label maps speak of, and the files that hold them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from globalvit.data.common.folders import listed
from globalvit.data.segmentation.color_tables import READERS, Color, Row, read_rows
from globalvit.data.segmentation.label_images import MOST_CLASSES, LabelReader, color_text
from globalvit.drawing.palette import default_palette

# Looked for in the folder of a data set, in this order; the last one comes with ADE20K.
FILES = ("classes.json", "classes.txt", *READERS, "objectInfo150.txt")
ADE20K = "ade20k"
_FORMS = '["sky", "road"] or [{"name": "sky", "color": [70, 130, 180]}]'
# A class that is for pixels to ignore: the number that stands for it in label maps, and its color.
Void = tuple[int, Color]


@dataclass(frozen=True, slots=True)
class ClassTable:
    """The classes 0 … K−1: their names, and their colors where they have some.

    Attributes:
        names: of the classes.
        colors: theirs; None where they have none.
        void: classes of a color table that are for pixels to ignore and not among these, in the table's order.

    Raises:
        ValueError: no classes, too many, or one name or color twice.
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...] | None = None
    void: tuple[Void, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= MOST_CLASSES:
            raise ValueError(f"{len(self.names)} classes; expected 1 to {MOST_CLASSES}")
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise ValueError(f"several classes have the same name: {listed(twice)}; tell them apart")
        colors = [*(self.colors or ()), *(color for _, color in self.void)]
        same = sorted({color_text(color) for color in colors if colors.count(color) > 1})
        if same:
            raise ValueError(f"several classes have the same color: {listed(same)}; give each class its own")


def ade20k_classes() -> tuple[str, ...]:
    """The 150 classes of ADE20K's scene parsing benchmark, in its order, such as `wall`."""
    text = (files("globalvit.data.segmentation") / "ade20k_classes.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def find_class_file(data_dir: Path) -> Path | None:
    """The class file in the folder of a data set."""
    return next((data_dir / name for name in FILES if (data_dir / name).is_file()), None)


def read_class_file(path: Path) -> ClassTable:
    """Read a class file.

    Args:
        path: a JSON file with a list of names, or of objects with `name` and `color`; a text file with one name per
            line; a color table that `color_tables` reads; or `objectInfo150.txt` as ADE20K has it.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is none of these; the text names the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"class file {path} does not exist; give a JSON or text file of names, or {ADE20K}")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            return _from_json(text)
        if path.suffix.lower() == ".csv" or path.name in READERS:
            return _from_rows(read_rows(text, path.name if path.name in READERS else next(iter(READERS))))
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if lines and lines[0].startswith("Idx"):
            # The last column of ADE20K's table holds synonyms.
            lines = [line.split("\t")[-1].split(",")[0] for line in lines[1:]]
        return ClassTable(tuple(lines))
    except UnicodeDecodeError as error:
        text = f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        raise ValueError(text) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def resolve_classes(
    data_dir: Path,
    *,
    classes: Sequence[str] | None = None,
    num_classes: int | None = None,
    class_file: str | None = None,
    packed: ClassTable | None = None,
) -> ClassTable:
    """The classes of a data set, from a file or from what the caller knows.

    Args:
        data_dir: the folder in which a class file is looked for.
        classes: the names expected, in the order of their labels; stand for a class file where there is none.
        num_classes: how many are expected; alone, the classes are called by their numbers.
        class_file: a class file elsewhere, or `ade20k`.
        packed: the classes in a database, which stand for the file in the folder.

    Raises:
        FileNotFoundError: `class_file` is not there.
        ValueError: the classes are not known, or not those expected.
    """
    found = packed if packed and not class_file else _given(data_dir, class_file)
    if found is None:
        names = classes or _numbers(num_classes)
        if names is None:
            raise ValueError(
                f"the classes of {data_dir} are not known; add classes.json, as in {_FORMS}, or give num_classes"
            )
        found = ClassTable(tuple(names))
    expected = len(classes) if classes is not None else num_classes
    if expected not in (None, len(found.names)) or num_classes not in (None, len(found.names)):
        wanted = num_classes if expected == len(found.names) else expected
        raise ValueError(f"{data_dir} has {len(found.names)} classes, and {wanted} are expected; they must agree")
    if classes is not None and tuple(classes) != found.names:
        place = next(place for place, name in enumerate(classes) if name != found.names[place])
        raise ValueError(
            f"the classes of {data_dir} are not those expected: class {place} is {found.names[place]!r} and not "
            f"{classes[place]!r}; label maps hold numbers, so names and their order must agree"
        )
    return found


def _given(data_dir: Path, class_file: str | None) -> ClassTable | None:
    if class_file == ADE20K:
        return ClassTable(ade20k_classes())
    path = Path(class_file) if class_file else find_class_file(data_dir)
    return read_class_file(path) if path else None


def _numbers(num_classes: int | None) -> tuple[str, ...] | None:
    return None if num_classes is None else tuple(map(str, range(num_classes)))


def _from_rows(rows: Sequence[Row]) -> ClassTable:
    kept = [row for row in rows if not row.is_void]
    void = tuple((number, row.color) for number, row in enumerate(rows) if row.is_void)
    return ClassTable(tuple(row.name for row in kept), tuple(row.color for row in kept), void)


def _from_json(text: str) -> ClassTable:
    entries: Any = json.loads(text)
    if isinstance(entries, dict) and entries:
        # {"sky": [70, 130, 180]}
        pairs = [{"name": name, "color": color} for name, color in entries.items()]
        return _from_rows([Row(*row) for row in zip(entries, _colors(pairs) or (), strict=True)])
    if isinstance(entries, list) and all(isinstance(entry, str) for entry in entries):
        return ClassTable(tuple(entries))
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "name" in entry for entry in entries):
        raise ValueError(f"expected {_FORMS}")
    return ClassTable(tuple(str(entry["name"]) for entry in entries), _colors(entries))


def _colors(entries: Sequence[dict[str, Any]]) -> tuple[Color, ...] | None:
    """The colors, or None where no class has one."""
    if not any("color" in entry for entry in entries):
        return None
    colors: list[Color] = []
    for entry in entries:
        values = entry.get("color")
        if not isinstance(values, list) or len(values) != 3 or not all(map(_is_byte, values)):
            raise ValueError(f"class {entry['name']!r} has the color {values}; expected three numbers 0 … 255")
        colors.append((values[0], values[1], values[2]))
    return tuple(colors)


def _is_byte(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value <= 255


def reader_of(table: ClassTable, *, reduce_zero_label: bool = False, ignore: int | None = None) -> LabelReader:
    """What reads the label maps of these classes."""
    return LabelReader(
        total=len(table.names),
        reduce_zero_label=reduce_zero_label,
        colors=table.colors,
        void=table.void,
        ignore=ignore,
    )


def palette_of(table: ClassTable) -> np.ndarray:
    """The classes' own colors, or the default ones: uint8 (K, 3)."""
    return default_palette(len(table.names)) if table.colors is None else np.array(table.colors, np.uint8)

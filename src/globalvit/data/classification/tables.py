"""Labels of images in a table: CSV, JSON or JSON lines, with one row per image.

    DATA_DIR/labels.csv with the columns image, label and perhaps split   DATA_DIR/{train,val}.csv
    DATA_DIR/{train,val}/labels.csv

Without a split every image is for training. Images are found below `DATA_DIR`, and nothing outside it is read.
"""

import csv
import io
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from globalvit.data.classification.formats import match_classes, order_folders
from globalvit.data.classification.label_cells import (
    Many,
    MultiLabel,
    Row,
    all_labels,
    as_flag,
    is_multi,
    one_label,
    separator_of,
)
from globalvit.data.common.folders import leaves, listed, split_folders
from globalvit.data.common.splits import role_of
from globalvit.data.common.walk import is_image, search

logger = logging.getLogger(__name__)

STEMS = ("labels", "metadata")
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl")
DELIMITERS = ",;\t"
# What the columns may be called.
IMAGE = ("image", "file_name", "filename", "file", "path", "image_path", "img", "image_id", "id")
LABEL = ("label", "class", "class_name", "category", "target")
# Columns and keys that hold any number of labels.
MANY = ("labels", "classes", "tags")
SPLIT = ("split", "subset", "set")
# Folders below that of the table, or of the data, in which images are looked for.
FOLDERS = ("", "images")
HEAD_BYTES = 65536


class Listed(NamedTuple):
    """Images of one split: names below the data folder, labels and classes; in a multi-label set, sets of labels."""

    names: list[str]
    labels: list[Any]
    classes: tuple[str, ...]
    is_multi_label: bool = False


def table_files(data_dir: Path) -> dict[str, Path]:
    """Return the table of each split; '' is the split of one that may hold several."""
    names = split_folders(data_dir)
    found = {path.stem: path for path in _tables_in(data_dir) if role_of(path.stem)}
    for name in filter(role_of, names):
        for path in _tables_in(data_dir / name)[:1]:
            if path.stem in STEMS:
                found.setdefault(name, path)
    if found:
        return found
    whole = [path for path in _tables_in(data_dir) if path.stem in STEMS]
    return {"": whole[0]} if whole else {}


def _tables_in(folder: Path) -> list[Path]:
    """The tables of images and labels that lie in a folder: by name, and by what they begin with."""
    paths = (
        folder / f"{stem}{suffix}"
        for stem in (*STEMS, *(name for name in _stems(folder) if role_of(name)))
        for suffix in SUFFIXES
    )
    return [path for path in dict.fromkeys(paths) if path.is_file() and _is_table(path)]


def _stems(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(Path(entry.name).stem for entry in entries if entry.name.endswith(SUFFIXES))


def _is_table(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES).decode("utf-8-sig", "replace")
    if path.suffix in (".json", ".jsonl"):
        # COCO's lists and lists of classes name no image with its label.
        keys = [f'"{name}"' for name in (*LABEL, *MANY)]
        return path.stem == "labels" or (any(key in head for key in keys) and '"annotations"' not in head)
    return _columns(list(csv.reader(head.splitlines()[:2], delimiter=_delimiter(head)))) is not None


def _delimiter(text: str) -> str:
    first = text.partition("\n")[0]
    return max(DELIMITERS, key=first.count)


def _columns(rows: Sequence[Sequence[str]]) -> tuple[int, list[int], int | None, bool] | None:
    """Places of image, labels and split, and whether the first row is a header; None if it is not such a table.

    Several places of labels are columns of 0 and 1, one per class.
    """
    if not rows:
        return None
    plain = [cell.strip().casefold() for cell in rows[0]]
    image, label, split = (
        next((plain.index(name) for name in names if name in plain), None) for names in (IMAGE, (*LABEL, *MANY), SPLIT)
    )
    if image is not None and label is not None:
        return image, [label], split, True
    others = [place for place in range(len(plain)) if place not in (image, split)]
    is_hot = len(rows) > 1 and all(as_flag(rows[1][place]) is not None for place in others if place < len(rows[1]))
    if image is not None and len(others) > 1 and is_hot:
        return image, others, split, True
    if len(plain) == 2 and is_image(plain[0]):
        return 0, [1], None, False
    return None


def read_rows(path: Path) -> Iterator[Row]:
    """Read a table.

    Raises:
        ValueError: it is not one, or a row has no image; the text names file and line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error.reason} at byte {error.start}; save it as UTF-8") from None
    for where, image, label, split in _json_rows(path, text) if path.suffix[:5] == ".json" else _csv_rows(path, text):
        if not isinstance(image, str) or not image.strip() or "\0" in image:
            raise ValueError(f"{where}: expected the name of an image, got {image!r}")
        if split and role_of(str(split)) is None:
            raise ValueError(f"{where}: expected train, val or test as split, got {split!r}")
        yield Row(where, image.strip(), label, str(split or ""))


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, Any, Any, Any]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else _delimiter(text))
    try:
        # With the line that each row ends on: texts in quotes may have several lines.
        rows = [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: this is not CSV: {error}") from None
    columns = _columns([cells for _, cells in rows[:2]])
    if columns is None:
        raise ValueError(f"{path}:1: expected the columns image and label, got {listed(rows[0][1] if rows else [])}")
    image, labels, split, is_header = columns
    last = max(image, *labels, split or 0)
    header = rows[0][1]
    is_plural = is_header and header[labels[0]].strip().casefold() in MANY
    for line, cells in rows[is_header:]:
        if len(cells) <= last:
            raise ValueError(f"{path}:{line}: expected {last + 1} columns or more, got {len(cells)}")
        label: Any = cells[labels[0]]
        if len(labels) > 1:
            label = {header[place].strip(): cells[place] for place in labels}
        elif is_plural:
            label = Many(label)
        yield f"{path}:{line}", cells[image], label, "" if split is None else cells[split].strip()


def _json_rows(path: Path, text: str) -> Iterator[tuple[str, Any, Any, Any]]:
    try:
        if path.suffix == ".jsonl":
            items: Any = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: this is not JSON: {str(error)[:200]}") from None
    if isinstance(items, dict):
        yield from ((f"{path}: {image!r}", image, label, "") for image, label in items.items())
        return
    if not isinstance(items, list):
        raise ValueError(f'{path}: expected a list of {{"image": …, "label": …}}, or an object of image and label')
    for number, item in enumerate(items, 1):
        where = f"{path}: row {number}"
        if not isinstance(item, Mapping):
            raise ValueError(f'{where}: expected an object {{"image": …, "label": …}}, got {str(item)[:80]!r}')
        image, label, split = (
            next((item[name] for name in names if name in item), None) for names in (IMAGE, (*LABEL, *MANY), SPLIT)
        )
        if isinstance(label, str) and not any(name in item for name in LABEL):
            label = Many(label)
        if label is None:
            label = {key: value for key, value in item.items() if key not in (*IMAGE, *LABEL, *MANY, *SPLIT)} or None
        yield where, image, label, split


def splits_of(data_dir: Path) -> list[str]:
    """Return the names of the splits that the tables of a folder state; images without a split are `train`.

    Raises:
        ValueError: the only table cannot be used, or is empty.
    """
    files = table_files(data_dir)
    if "" not in files:
        return list(files)
    splits = list(dict.fromkeys(row.split or "train" for row in read_rows(files[""])))
    if not splits:
        raise ValueError(f"{files['']} lists no images; expected rows of an image and its label")
    return splits


def read_split(data_dir: Path, split: str, classes: Sequence[str] | None, multi_label: MultiLabel = False) -> Listed:
    """Read the images of a split, ordered by label and name as in class folders; by name in a multi-label set.

    Args:
        data_dir: the folder of the tables.
        split: its name.
        classes: the classes expected, in the order of their labels; None takes those of the rows.
        multi_label: whether images may have any number of labels; `auto` decides by the tables of all splits.

    Raises:
        FileNotFoundError: none of the images is found.
        ValueError: a row cannot be used, a class is not one of `classes`, an image has two labels where one is
            expected, or `auto` cannot decide.
    """
    files = table_files(data_dir)
    path = files.get(split) or files[""]
    whole = list(read_rows(path))
    rows = [row for row in whole if "" not in files or (row.split or "train") == split]
    if not rows:
        raise ValueError(f"{path} lists no images of the split {split!r}")
    # What a cell says depends on all splits.
    every = [*whole, *_rows_of_others(files.values(), path)] if multi_label else whole
    is_multi_label = is_multi(every, path) if multi_label == "auto" else multi_label
    labels_of = all_labels(rows, separator_of(every)) if is_multi_label else one_label(rows)
    found = search(data_dir)
    found.warn()
    place_of = _Places(data_dir, path, split, found.images)
    places = [place_of(row) for row in rows]
    missing = [row for row, (_, exists) in zip(rows, places, strict=True) if not exists]
    first: dict[str, Row] = {}
    labels: dict[str, set[str]] = {}
    for row, (name, _), own in zip(rows, places, labels_of, strict=True):
        if not is_multi_label and labels.get(name, {*own}) != {*own}:
            raise ValueError(
                f"{row.where}: {row.image!r} has the label {own[0]!r}, and {labels[name].pop()!r} at "
                f"{first[name].where}; expected one label per image, or give --multi-label true"
            )
        first.setdefault(name, row)
        labels.setdefault(name, set()).update(own)
    if len(missing) == len(rows):
        raise FileNotFoundError(
            f"none of the {len(rows)} images of {path} is found below {data_dir}, such as {rows[0].image!r}"
        )
    if missing:
        logger.warning("%s: %d images do not exist, the first: %r", path, len(missing), missing[0].image)
    if len(labels) < len(rows) and not is_multi_label:
        logger.warning("%s: %d rows repeat an image and are left out", path, len(rows) - len(labels))
    names = _names(rows, labels, is_multi_label=is_multi_label)
    present = order_folders(names, path)
    label_of = match_classes(present, classes or present, str(path))
    known = tuple(classes or present)
    if is_multi_label:
        sets = {name: {label_of[label] for label in own} for name, own in sorted(labels.items())}
        return Listed(list(sets), list(sets.values()), known, is_multi_label=True)
    ordered = sorted((label_of[label], name) for name, own in labels.items() for label in own)
    return Listed([name for _, name in ordered], [label for label, _ in ordered], known)


def _rows_of_others(files: Iterable[Path], path: Path) -> list[Row]:
    """The rows of the other tables; one that cannot be read is reported where its split is opened."""
    rows: list[Row] = []
    for file in files:
        if file != path:
            with suppress(ValueError, OSError):
                rows += read_rows(file)
    return rows


def _names(rows: Sequence[Row], labels: Mapping[str, set[str]], *, is_multi_label: bool) -> list[str]:
    """Names of the classes of a split, also of columns of 0 and 1 without a 1."""
    columns = rows[0].label if is_multi_label and isinstance(rows[0].label, dict) else ()
    names = sorted({label for own in labels.values() for label in own} | {*columns})
    if not names:
        raise ValueError(f"{rows[0].where}: expected labels, got none in {len(rows)} rows of this split")
    return names


class _Places:
    """Finds the images that a table names, below the data folder."""

    def __init__(self, data_dir: Path, path: Path, split: str, images: Sequence[str]) -> None:
        self.data_dir = data_dir
        self.images = frozenset(images)
        # Names without an ending, such as ids.
        self.stems = {os.path.splitext(name)[0]: name for name in images}  # noqa: PTH122 (a million)
        below = path.parent.relative_to(data_dir).as_posix()
        bases = dict.fromkeys(["" if below == "." else below, "", split])
        tails = [f"{base}/{folder}".strip("/") for base in bases for folder in FOLDERS]
        self.folders = list(dict.fromkeys([*tails, f"images/{split}"]))

    def __call__(self, row: Row) -> tuple[str, bool]:
        """Return the name of an image below the data folder, and whether there is such an image.

        Raises:
            ValueError: it leads out of the data folder.
        """
        plain = row.image.replace("\\", "/")
        joined = (f"{folder}/{plain}" if folder else plain for folder in self.folders)
        names = [os.path.normpath(name).replace(os.sep, "/") for name in joined]
        if leaves(self.data_dir, self.data_dir, plain) or plain.startswith("/"):
            raise ValueError(f"{row.where}: {row.image!r} leads out of {self.data_dir}; expected a path below it")
        for name in names:
            if name in self.images or name in self.stems:
                return name if name in self.images else self.stems[name], True
        return names[0], False

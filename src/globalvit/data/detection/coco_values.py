"""Reads the values in COCO's JSON: numbers, ids, flags and file names as programs write them, or says what is wrong.

Decided here: a number written as text, such as "12", is that number everywhere; true and false are not numbers. What
cannot be read is an error that names the row by its id.
"""

import math
import os
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

Row = Mapping[str, Any]

# Beyond it other programs round whole numbers of JSON.
LARGEST_ID = 2**53
LARGEST_SIDE = 2**31 - 1
# What a name in a folder may have on common file systems.
MOST_BYTES = 255
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
_CROWD = {0: False, 1: True, "0": False, "1": True, "false": False, "true": True}
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxstring, _SHORT.maxother = 3, 6, 6, 80, 80


class LabelsError(ValueError):
    """Labels that cannot be used; `path` is the file they are in."""

    def __init__(self, path: object, text: str) -> None:
        super().__init__(text)
        self.path = str(path)


class BrokenError(Exception):
    """What is wrong with a file, without its name."""


@dataclass(frozen=True, slots=True)
class Owners:
    """What errors call each annotation: its id and, where the file has it, its image; or where it is written.

    Attributes:
        ids: of the annotations, (A,).
        where: position of each one's image, (A,), −1 where the file does not list it.
        image_ids: of the images, (I,).
        names: the images' files.
        places: file and line of each annotation, in formats without ids.
    """

    ids: np.ndarray
    where: np.ndarray
    image_ids: np.ndarray
    names: Sequence[str]
    places: Sequence[str] | None = None

    def __getitem__(self, at: int) -> str:
        if self.places is not None:
            return self.places[at]
        place = self.where[at]
        image = f" (image {self.image_ids[place]}, {shown(self.names[place])})" if place >= 0 else ""
        return f"annotation {self.ids[at]}{image}"

    def chosen(self, positions: np.ndarray) -> Self:
        """Return the names of some of the annotations."""
        places = self.places and [self.places[at] for at in positions.tolist()]
        return replace(self, ids=self.ids[positions], where=self.where[positions], places=places)


def shown(value: Any) -> str:
    """Return a value as an error shows it: on one line, and short however large it is."""
    return _SHORT.repr(value)


def number(value: Any) -> float | None:
    """Return a finite number, also one written as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        read = float(value)
    except (ValueError, OverflowError):
        return None
    return read if math.isfinite(read) else None


def whole(value: Any) -> int | None:
    """Return a whole number of at most 2⁵³, also one written as 3.0 or "3"; None for anything else."""
    if type(value) is int:
        return value if abs(value) <= LARGEST_ID else None
    read = number(value)
    return int(read) if read is not None and read.is_integer() and abs(read) <= LARGEST_ID else None


def rows(content: Row, part: str, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Return the objects of one of the lists.

    Raises:
        BrokenError: one of them is not an object, or has not all keys.
    """
    for place, row in enumerate(content[part]):
        if not isinstance(row, dict):
            raise BrokenError(f"{part}[{place}] is {shown(row)}; expected an object with {', '.join(keys)}")
        missing = [key for key in keys if row.get(key) is None]
        if missing:
            known = f" (id {shown(row['id'])})" if row.get("id") is not None else ""
            raise BrokenError(
                f"{part}[{place}]{known} has no {' and no '.join(missing)}; every one needs {', '.join(keys)}"
            )
    return content[part]


def ids(items: Sequence[Row], kind: str) -> np.ndarray:
    """Return the rows' own ids, int64.

    Raises:
        BrokenError: one is not a whole number, or appears twice.
    """
    read = [whole(row["id"]) for row in items]
    seen: set[int] = set()
    for row, one in zip(items, read, strict=True):
        if one is None:
            raise BrokenError(f"{kind} id {shown(row['id'])} is not a whole number of at most 2⁵³; number the {kind}s")
        if one in seen:
            raise BrokenError(f"{kind} id {one} appears twice; give each {kind} an id of its own")
        seen.add(one)
    return np.array(read, np.int64)


def file_names(images: Sequence[Row], image_ids: np.ndarray) -> list[str]:
    """Return the images' file names; whether they lead out of the data folder is for those to check who know it.

    Raises:
        BrokenError: one is empty, an address, or cannot be the name of a file.
    """
    for row, number_ in zip(images, image_ids.tolist(), strict=True):
        fault = _name_fault(row["file_name"])
        if fault:
            raise BrokenError(
                f"image {number_} has file_name {shown(row['file_name'])}, {fault}; expected a path below the folder "
                "of the images, such as train/0001.jpg"
            )
    return [row["file_name"] for row in images]


def _name_fault(name: Any) -> str:
    if not isinstance(name, str):
        return "which is not a text"
    if not name.strip():
        return "which is empty"
    if _ADDRESS.match(name) and not re.match(r"[a-z]:", name, re.IGNORECASE):
        return "which is an address"
    try:
        longest = max(map(len, re.split(rb"[/\\]", os.fsencode(name))))
    except UnicodeEncodeError:
        return "which has a character that no file name has"
    if "\0" in name or longest > MOST_BYTES:
        return "which cannot be the name of a file"
    return ""


def sizes(images: Sequence[Row], image_ids: np.ndarray) -> np.ndarray:
    """Return heights and widths, int32 (I, 2).

    Raises:
        BrokenError: one is not a whole number of pixels.
    """
    read = [(whole(row["height"]), whole(row["width"])) for row in images]
    for row, sides, image in zip(images, read, image_ids.tolist(), strict=True):
        if not all(side is not None and 0 < side <= LARGEST_SIDE for side in sides):
            raise BrokenError(
                f"image {image} ({shown(row['file_name'])}) has height {shown(row['height'])} and width "
                f"{shown(row['width'])}; expected whole numbers of pixels above 0"
            )
    return np.array(read, np.int32).reshape(-1, 2)


def positions(annotations: Sequence[Row], key: str, known: np.ndarray) -> np.ndarray:
    """Return where the id under `key` of each annotation appears in `known`; −1 where it does not: int64 (A,)."""
    place = {number_: position for position, number_ in enumerate(known.tolist())}
    read = [whole(row[key]) for row in annotations]
    return np.array([-1 if one is None else place.get(one, -1) for one in read], np.int64)


def boxes(annotations: Sequence[Row], owners: Owners) -> np.ndarray:
    """Return `bbox` (x, y, width, height), float64 (A, 4).

    Args:
        annotations: the rows.
        owners: what errors call each of them.

    Raises:
        BrokenError: one is not four finite numbers.
    """
    try:
        read = np.array([row["bbox"] for row in annotations], np.float64)
    except (TypeError, ValueError, OverflowError):
        read = np.full((0,), np.nan)
    if not annotations:
        return np.empty((0, 4))
    # NaN is not less than anything; NumPy takes true and false for 1 and 0.
    is_plain = read.shape == (len(annotations), 4) and (np.abs(read) <= LARGEST_SIDE).all()
    if is_plain and not any(isinstance(value, bool) for row in annotations for value in row["bbox"]):
        return read
    for at, row in enumerate(annotations):
        box = row["bbox"]
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_coordinate, box))):
            raise BrokenError(
                f"{owners[at]} has bbox {shown(box)}; expected four numbers [x, y, width, height] in pixels"
            )
    return np.array([[number(value) for value in row["bbox"]] for row in annotations], np.float64)


def _is_coordinate(value: Any) -> bool:
    read = number(value)
    return read is not None and abs(read) <= LARGEST_SIDE


def crowds(annotations: Sequence[Row], owners: Owners) -> np.ndarray:
    """Return `iscrowd`, bool (A,): 0, 1, true, false, also as text; a missing one is false.

    Raises:
        BrokenError: one is anything else.
    """
    read = np.zeros(len(annotations), bool)
    for place, row in enumerate(annotations):
        stated = row.get("iscrowd")
        if stated is None or stated == 0:
            continue
        key = stated.strip().lower() if isinstance(stated, str) else stated
        if not isinstance(key, str | int | float) or key not in _CROWD:
            raise BrokenError(f"{owners[place]} has iscrowd {shown(stated)}; expected 0 or 1")
        read[place] = _CROWD[key]
    return read


def areas(annotations: Sequence[Row], owners: Owners) -> np.ndarray:
    """Return `area`, float64 (A,), NaN where the file states none.

    Raises:
        BrokenError: one is not a number of pixels.
    """
    read = np.full(len(annotations), np.nan)
    for place, row in enumerate(annotations):
        stated = row.get("area")
        if stated is None:
            continue
        area = number(stated)
        if area is None or not 0 <= area <= LARGEST_SIDE**2:
            raise BrokenError(
                f"{owners[place]} has area {shown(stated)}; expected a number of pixels, 0 or more; leave it out to "
                "take the box's"
            )
        read[place] = area
    return read

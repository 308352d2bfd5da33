"""YOLO labels, as Ultralytics' tools and Roboflow write them: one text file per image, classes in `data.yaml`.

    DATA_DIR/data.yaml   DATA_DIR/images/{train,val}   DATA_DIR/labels/{train,val}
    DATA_DIR/data.yaml   DATA_DIR/{train,val}/images   DATA_DIR/{train,val}/labels

A line is `class x_center y_center width height` of a box, or `class x y x y x y …` of an outline, in parts of the
upright image. An image without a label file shows no objects.
"""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from globalvit.data.common.folders import is_below, listed, placed, split_folders
from globalvit.data.common.images import OversizedImage, UnreadableImage, look
from globalvit.data.common.orientation import UPRIGHT, Size
from globalvit.data.common.splits import role_of
from globalvit.data.common.walk import is_image, search
from globalvit.data.detection.coco_json import Labels, read_labels
from globalvit.data.detection.coco_plausible import Words
from globalvit.data.detection.coco_values import number, shown, whole
from globalvit.data.detection.formats import Annotated

logger = logging.getLogger(__name__)

NAMES_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
# Label Studio writes the classes' names, one per line, into this.
CLASSES_FILE = "classes.txt"
IMAGES, LABELS = "images", "labels"
WORDS = Words("class x_center y_center width height, each 0 … 1", "crowd", "")
# Values are written with a few digits, so that the largest may come out a little above 1.
TOLERANCE = 1e-4
# Parts of an image become pixels that are exact to this many digits: text has no more, and whole pixels stay whole.
DIGITS = 6
READERS, CHUNK = 8, 500
MOST_LOOKED_AT = 1000
UNKNOWN = (1, 1)
EMPTY = ("", "~", "null", "None")


class YoloFormat:
    """Boxes and outlines in text files, with their classes in `data.yaml`."""

    name = "yolo"

    def matches(self, folder: Path) -> bool:
        """Whether a folder has a `data.yaml` with classes, or text files in folders `labels`."""
        return _names_file(folder) is not None or any(_holds_labels(folder / name) for name in _label_folders(folder))

    def describe(self, folder: Path) -> str:
        """What names the classes."""
        path = _names_file(folder)
        return f"YOLO labels, {path.name}" if path else "YOLO labels"

    def splits(self, folder: Path) -> Sequence[str]:
        """Names of the splits in `data.yaml`, or of the folders."""
        return list(_read_set(folder).splits)

    def open(
        self,
        folder: Path,
        split: str,
        classes: Sequence[str] | None = None,  # noqa: ARG002 - data.yaml has its own list of classes
        *,
        crowd_as_instances: bool = False,
    ) -> Annotated:
        """Read the labels of one split."""
        data = _read_set(folder)
        labels = _read_split(data, split)
        table = read_labels(data.path, labels, WORDS, crowd_as_instances=crowd_as_instances)
        return Annotated(replace(table, is_upright=True), lambda: folder, labels)


@dataclass(frozen=True)
class _Set:
    """What `data.yaml` says.

    Attributes:
        folder: of the data set.
        path: of the file, or the folder where there is none.
        names: of the classes.
        splits: where the images of each split are: folders or list files.
    """

    folder: Path
    path: Path
    names: tuple[str, ...]
    splits: dict[str, list[Path]]


@dataclass
class _Read:
    """One image's labels.

    Attributes:
        size: height and width of the upright image; None where it cannot be read.
        rows: line number, label, box (x, y, width, height) in pixels, and outline or None.
        source: the label file; empty where there is none.
        faults: what is wrong with its lines.
        trouble: why the image cannot be read.
    """

    size: Size | None
    rows: list[tuple[int, int, list[float], list[float] | None]] = field(default_factory=list)
    source: str = ""
    faults: list[str] = field(default_factory=list)
    trouble: str = ""


def _names_file(folder: Path) -> Path | None:
    """The YAML file that names classes."""
    found = [folder / name for name in NAMES_FILES if (folder / name).is_file()]
    found = found or [path for path in sorted(folder.glob("*.y*ml")) if path.is_file() and path.name[0] != "."]
    return next((path for path in found if _names_classes(path)), None)


def _names_classes(path: Path) -> bool:
    with path.open("rb") as file:
        return re.search(rb"^\s*[\"']?names[\"']?\s*:", file.read(2**20), re.MULTILINE) is not None


def _label_folders(folder: Path) -> list[str]:
    """Folders `labels`, of the whole set and of each split, below a folder."""
    names = split_folders(folder)
    inner = split_folders(folder / LABELS) if LABELS in names else []
    return [
        *([LABELS] if LABELS in names else []),
        *(f"{LABELS}/{name}" for name in inner if role_of(name)),
        *(f"{name}/{LABELS}" for name in names if role_of(name) and (folder / name / LABELS).is_dir()),
    ]


def _holds_labels(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        names = (entry.name for _, entry in zip(range(MOST_LOOKED_AT), entries, strict=False))
        return any(name.endswith(".txt") and name != CLASSES_FILE for name in names)


def _read_set(folder: Path) -> _Set:
    """Read `data.yaml`, or find the same in the folders.

    Raises:
        ValueError: it is not YAML, or does not name the classes or the splits.
    """
    path = _names_file(folder)
    if path is None:
        classes = next((one for one in (folder / CLASSES_FILE, folder / LABELS / CLASSES_FILE) if one.is_file()), None)
        if classes is None:
            raise ValueError(
                f"{folder} holds YOLO labels, and no file names their classes; expected {folder}/data.yaml with a line "
                "such as names: [cat, dog]"
            )
        lines = classes.read_text(encoding="utf-8-sig").splitlines()
        return _Set(
            folder, folder, _checked(dict(enumerate(line for line in lines if line.strip())), classes), _usual(folder)
        )
    try:
        # Every value stays a text: YAML would read a class called `no` as false.
        content = yaml.load(path.read_text(encoding="utf-8-sig"), yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {shown(content)}; expected names, train and val")
    content = {key: value for key, value in content.items() if value not in EMPTY}
    if "kpt_shape" in content:
        raise ValueError(f"{path} has kpt_shape, so its labels hold keypoints; expected labels of boxes or outlines")
    names = _class_names(content, path)
    stated = {key: value for key, value in content.items() if isinstance(key, str) and role_of(key)}
    splits = {key: _places(folder, path, content.get("path"), key, value) for key, value in stated.items()}
    splits = {key: places for key, places in splits.items() if places}
    return _Set(folder, path, names, splits or _usual(folder))


def _class_names(content: dict[str, Any], path: Path) -> tuple[str, ...]:
    names, total = content.get("names"), content.get("nc")
    if isinstance(names, list):
        numbered: dict[Any, Any] = dict(enumerate(names))
    elif isinstance(names, dict):
        numbered = {whole(key): name for key, name in names.items()}
    else:
        raise ValueError(
            f"{path}: names is {shown(names)}; expected a list of classes, or a mapping 0: name, 1: name …"
        )
    if total is not None and whole(total) != len(numbered):
        raise ValueError(f"{path}: nc is {total}, and names has {len(numbered)} classes; expected the same number")
    return _checked(numbered, path)


def _checked(numbered: dict[Any, Any], path: Path) -> tuple[str, ...]:
    """Names in the order of their numbers, 0 … K−1, each once."""
    if not numbered or set(numbered) != set(range(len(numbered))):
        raise ValueError(
            f"{path}: names has the numbers {shown(sorted(map(str, numbered)))}; expected 0, 1, 2 … in order"
        )
    names = tuple(str(numbered[label]).strip() for label in range(len(numbered)))
    for label, name in enumerate(names):
        if not name or names.index(name) < label:
            raise ValueError(f"{path}: class {label} has the name {name!r}; expected names, each once")
    return names


def _places(folder: Path, path: Path, base: Any, key: str, value: Any) -> list[Path]:
    """The folders or list files that hold the images of a split; none for a test set that is not there.

    `path` names the data set's own folder, often on another machine, and Roboflow writes `../train/images`: what is
    stated counts below the folder of `data.yaml`.
    """
    found: list[Path] = []
    for one in value if isinstance(value, list) else [value]:
        plain = str(one).replace("\\", "/")
        within = plain.removeprefix("../")
        tried = [folder / str(base).replace("\\", "/") / plain] if base else []
        tried += [folder / plain, folder / within]
        place = next((at for at in tried if is_below(folder, at) and at.exists()), None)
        if place is not None:
            found.append(place)
        elif role_of(key) != "test":
            raise FileNotFoundError(
                f"{path}: {key} is {shown(one)}, which is not a folder or a list of images below {folder}; expected "
                f"such as images/{key}"
            )
    return found


def _usual(folder: Path) -> dict[str, list[Path]]:
    """The folders of images by split: images/train, or train/images, or images for a set without splits."""
    names = split_folders(folder)
    inner = split_folders(folder / IMAGES) if IMAGES in names else []
    splits = {name: [folder / IMAGES / name] for name in inner if role_of(name)}
    splits |= {name: [folder / name / IMAGES] for name in names if role_of(name) and (folder / name / IMAGES).is_dir()}
    if splits:
        return splits
    return {"train": [folder / IMAGES]} if IMAGES in names else {}


def _read_split(data: _Set, split: str) -> Labels:
    """Read the label file of every image of a split.

    Raises:
        ValueError: no images, or a line that cannot be used; the text names file and line.
    """
    names = [name for place in data.splits[split] for name in _image_names(data, place)]
    if not names:
        raise ValueError(f"no images in {listed([str(place) for place in data.splits[split]])}, the split {split!r}")
    labels = Labels(data.names)
    faults: list[str] = []
    without, unreadable = 0, []
    for name, read in zip(names, _read_all(data, names), strict=True):
        faults += read.faults
        without += not read.source
        if read.size is None:
            unreadable.append(read.trouble)
        labels.add_image(name, read.size or UNKNOWN, read.source)
        for line, label, box, outline in read.rows if read.size else ():
            row: dict[str, Any] = {"category_id": label, "bbox": box}
            if outline:
                row |= {"segmentation": [outline], "area": _area(outline)}
            labels.add_object(f"{read.source}:{line}", row)
    if faults:
        more = f" (and {len(faults) - 1} more lines like it)" if len(faults) > 1 else ""
        raise ValueError(f"{faults[0]}{more}")
    if without == len(names):
        raise ValueError(
            f"none of the {len(names)} images of the split {split!r} has a label file; expected one such as "
            f"{_label_file(data.folder / names[0])}"
        )
    if without:
        logger.info("%s: %d of %d images have no label file and show no objects", split, without, len(names))
    if unreadable:
        logger.warning("%s: %d images cannot be read, the first: %s", split, len(unreadable), unreadable[0])
    return labels


def _image_names(data: _Set, place: Path) -> Iterator[str]:
    """Names of images below the data set's folder, in a folder or in a list file."""
    below = os.path.relpath(place, data.folder).replace(os.sep, "/")
    if place.is_dir():
        inside = search(place)
        inside.warn()
        yield from (name if below == "." else f"{below}/{name}" for name in inside.images)
        return
    for at, line in enumerate(place.read_text(encoding="utf-8-sig").splitlines(), 1):
        name = line.strip().replace("\\", "/")
        if not name:
            continue
        tried = [(place.parent / name), data.folder / name]
        allowed = [path for path in tried if is_below(data.folder, path)]
        found = next((path for path in allowed if path.is_file()), None)
        if found is None or not is_image(found.name):
            why = "leads out of" if not allowed else "is not an image below"
            raise ValueError(f"{place}:{at}: {shown(name)} {why} {data.folder}; expected such as ./images/1.jpg")
        yield os.path.relpath(found, data.folder).replace(os.sep, "/")


def _label_file(image: Path) -> Path:
    """The label file of an image: in `labels` in place of the last folder `images`, or beside the image."""
    parts = list(image.parts)
    for at in range(len(parts) - 2, -1, -1):
        if parts[at].casefold() == IMAGES:
            parts[at] = LABELS if parts[at] == IMAGES else LABELS.capitalize()
            break
    return Path(*parts).with_suffix(".txt")


def _read_all(data: _Set, names: Sequence[str]) -> Iterator[_Read]:
    with ThreadPoolExecutor(READERS) as pool:
        chunks = [names[start : start + CHUNK] for start in range(0, len(names), CHUNK)]
        for read in pool.map(lambda chunk: [_read_one(data, name) for name in chunk], chunks):
            yield from read


def _read_one(data: _Set, name: str) -> _Read:
    image = placed(data.folder, name)
    try:
        orientation, stored = look(image, str(image))
        read = _Read(UPRIGHT[orientation].size(stored))
    except (UnreadableImage, OversizedImage, OSError) as error:
        read = _Read(None, trouble=str(error))
    path = _label_file(data.folder / name)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return read
    except UnicodeDecodeError:
        return _Read(read.size, source=str(path), faults=[f"{path} is not a text file; expected lines of numbers"])
    read.source = str(path)
    for line, columns in enumerate(map(str.split, text.splitlines()), 1):
        if columns:
            _read_line(read, columns, line, data)
    return read


def _read_line(read: _Read, columns: list[str], line: int, data: _Set) -> None:
    where = f"{read.source}:{line}"
    total = len(columns)
    if total != 5 and (total < 7 or total % 2 == 0):
        hint = "; the last may be a score, as of predictions" if total == 6 else ""
        read.faults.append(
            f"{where}: expected 5 columns, class x_center y_center width height, or a class and 3 or more points x y, "
            f"got {total}{hint}"
        )
        return
    odd = next((column for column in columns if number(column) is None), None)
    if odd is not None:
        read.faults.append(f"{where}: expected numbers, got {shown(odd)}")
        return
    label, parts = float(columns[0]), np.array([float(column) for column in columns[1:]])
    if not label.is_integer() or not 0 <= label < len(data.names):
        read.faults.append(
            f"{where}: expected a class from 0 to {len(data.names) - 1}, as {data.path} names them, got {columns[0]}"
        )
        return
    beyond = parts[~((parts >= 0) & (parts <= 1 + TOLERANCE))]
    if len(beyond):
        pixels = ": these may be pixels" if (parts > 2).any() else ""
        read.faults.append(f"{where}: expected parts of the image, 0 … 1, got {beyond[0]:g}{pixels}")
        return
    height, width = read.size or UNKNOWN
    if len(parts) == 4:
        x, y, wide, high = parts * [width, height, width, height]
        box, outline = [x - wide / 2, y - high / 2, wide, high], None
    else:
        points = parts.reshape(-1, 2) * [width, height]
        (left, top), (right, bottom) = points.min(0), points.max(0)
        box, outline = [left, top, right - left, bottom - top], np.round(points, DIGITS).ravel().tolist()
    read.rows.append((line, int(label), np.round(box, DIGITS).tolist(), outline))


def _area(outline: Sequence[float]) -> float:
    """The area that a polygon encloses."""
    x, y = np.array(outline[0::2]), np.array(outline[1::2])
    return float(np.round(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2, DIGITS))

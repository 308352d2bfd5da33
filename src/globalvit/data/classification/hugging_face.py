"""Labeled images of the library `datasets`: folders that `save_to_disk` wrote, and `hf:NAME` of the Hub."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from globalvit.data.classification.formats import match_classes
from globalvit.data.common.images import UnreadableImage
from globalvit.data.storage.lmdb_decode import decode

HUB, IMAGE, LABEL = "hf:", "image", "label"
FILES = ("dataset_dict.json", "dataset_info.json")


def is_hub(data_dir: object) -> bool:
    """Whether a data folder is the name of a data set on the Hub."""
    return str(data_dir).startswith(HUB)


class HuggingFaceImages:
    """The rows of one split, whose images stay encoded, as a `Source`; `where` is what messages call the split."""

    def __init__(self, where: str, rows: Any, classes: Sequence[str], labels: np.ndarray) -> None:
        self.where, self.classes = where, tuple(classes)
        self._rows, self._labels = rows, labels

    def __len__(self) -> int:
        return len(self._labels)

    def label(self, index: int) -> int:
        """The label of image `index`."""
        return int(self._labels[index])

    def name(self, index: int) -> str:
        """The data set, the split and the number of the row."""
        return f"{self.where}, row {index}"

    def reader(self, index: int) -> Callable[[], bytes]:
        """What reads the encoded image; it raises `UnreadableImage` where the row has none, or OSError."""
        return partial(_encoded, self._rows, index, self.name(index))

    def read(self, index: int) -> Image.Image:
        """Image `index` as RGB; raises what the reader and `read_image` raise."""
        return decode(self.reader(index)(), self.name(index))


class HuggingFaceFormat:
    """A folder that `save_to_disk` wrote, or a data set on the Hub."""

    name = "huggingface"

    def matches(self, folder: Path) -> bool:
        """Whether `save_to_disk` wrote a folder."""
        return any((folder / name).is_file() for name in FILES)

    def describe(self, folder: Path) -> str:
        """What it is."""
        return f"a data set of the library datasets, {folder.name}"

    def splits(self, folder: Path) -> Sequence[str]:
        """Names of its splits; raises what `open` raises."""
        return list(_load(folder))

    def open(self, folder: Path, split: str, classes: Sequence[str] | None = None, **_: Any) -> HuggingFaceImages:
        """Open one split; raises ImportError without `datasets`, and ValueError for columns that cannot be used."""
        rows, where = _load(folder)[split].with_format(None), f"{folder}, split {split!r}"
        kinds = {name: type(feature).__name__ for name, feature in rows.features.items()}
        if kinds.get(IMAGE) != "Image" or LABEL not in kinds:
            there = ", ".join(f"{name!r} ({kind})" for name, kind in kinds.items())
            raise ValueError(
                f"{where} has the columns {there}; expected {IMAGE!r} (Image) and {LABEL!r}: use rename_column or "
                "cast_column, then save_to_disk"
            )
        own, labels = _labels(rows, where)
        label_of = match_classes(own, classes or own, where)
        numbers = np.array([label_of[name] for name in own], np.int32)[labels]
        encoded = rows.cast_column(IMAGE, type(rows.features[IMAGE])(decode=False))
        return HuggingFaceImages(where, encoded, classes or own, numbers)


def _load(folder: Path) -> Mapping[str, Any]:
    """The splits of a data set; one that was saved without splits is the training split."""
    try:
        library = import_module("datasets")
    except ImportError as error:
        raise ImportError(f"{folder} needs the package datasets ({error}); run: pip install datasets") from error
    try:
        name = str(folder)
        found = library.load_dataset(name.removeprefix(HUB)) if is_hub(name) else library.load_from_disk(name)
    except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        raise ValueError(f"{folder} cannot be loaded by datasets: {' '.join(str(error).split())}") from error
    return found if isinstance(found, Mapping) else {str(found.split or "train"): found}


def _encoded(rows: Any, index: int, name: str) -> bytes:
    image = rows[index][IMAGE] or {}
    if not (image.get("bytes") or image.get("path")):
        raise UnreadableImage(f"{name} has no image")
    return image.get("bytes") or Path(image["path"]).read_bytes()


def _labels(rows: Any, where: str) -> tuple[tuple[str, ...], np.ndarray]:
    """The names of the classes, and the number of each row's class among them."""
    values: list[Any] = rows[LABEL][:]
    names = getattr(rows.features[LABEL], "names", None)
    kind = int if names or type(next(iter(values), "")) is int else str
    wrong = [at for at, one in enumerate(values) if type(one) is not kind or (names and one not in range(len(names)))]
    if wrong or not values:
        first = f", the first is row {wrong[0]} with {values[wrong[0]]!r}" if wrong else ""
        raise ValueError(
            f"{where}: {len(wrong)} of {len(values)} rows have no class in the column {LABEL!r}{first}; expected "
            "ClassLabel, whole numbers or text for every row"
        )
    found, numbers = np.unique(values, return_inverse=True)
    return (tuple(names), np.array(values)) if names else (tuple(map(str, found.tolist())), numbers)

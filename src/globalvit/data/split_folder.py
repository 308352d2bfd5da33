"""Split a data set into train and val folders; files are copied or linked, never moved or changed."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from globalvit import atomic
from globalvit.data.classification.formats import scan_classes
from globalvit.data.common.folders import listed
from globalvit.data.common.holdout import hold_out
from globalvit.data.common.splits import role_of
from globalvit.data.common.walk import visible_folders
from globalvit.data.detection.coco import ANNOTATIONS, annotation_files
from globalvit.data.detection.coco_json import read_coco
from globalvit.data.detection.registry import holds_objects
from globalvit.data.segmentation.class_table import FILES as CLASS_FILES
from globalvit.data.segmentation.class_table import ClassTable, find_class_file, read_class_file, reader_of
from globalvit.data.segmentation.dataset import Folders, MaskListing, flat_folders
from globalvit.data.segmentation.label_images import MOST_CLASSES
from globalvit.data.segmentation.survey import BINARY, look_over

logger = logging.getLogger(__name__)
Way = Literal["copy", "link"]
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Plan:
    """Plan of a split.

    Attributes:
        files: source and target of each file; targets are relative to the new folder.
        counts: number of images by split.
        texts: contents of files to write, by path relative to the new folder.
    """

    files: list[tuple[Path, str]]
    counts: dict[str, int]
    texts: dict[str, str]


class _Samples:
    """Images to choose from, in the form that `hold_out` expects."""

    def __init__(self, root: Path, names: Sequence[str], classes: Sequence[str]) -> None:
        self.root, self.classes, self._names = root, classes, names

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """Return the path of image `index`."""
        return str(self.root / self._names[index])


class _Labeled(_Samples):
    """Images with one class per image."""

    def __init__(self, root: Path, names: Sequence[str], classes: Sequence[str], labels: Sequence[int]) -> None:
        super().__init__(root, names, classes)
        self._labels = labels

    def label(self, index: int) -> int:
        """Return the label of image `index`."""
        return self._labels[index]


class _Maps(_Samples):
    """Images with label maps, which hold class colors or class indices."""

    def __init__(self, source: Path, folders: Folders, listing: MaskListing) -> None:
        path = find_class_file(source)
        table = read_class_file(path) if path else None
        if table is None or table.colors is None:
            table = ClassTable(tuple(map(str, range(MOST_CLASSES))))
        super().__init__(folders.images, listing.images, table.names)
        self._paths = [folders.labels / name for name in listing.labels]
        reader = reader_of(table)
        values = look_over(reader, len(self._paths), lambda index: self._paths[index].read_bytes())
        if not values and table.colors is None:
            logger.warning(
                "%s: the label maps contain colors that no class file lists, so val is chosen regardless of classes; "
                "add classes.json with colors",
                folders.labels,
            )
        # In files with only 0 and 255, 255 counts as a class here; training decides what it means.
        self._reader = replace(reader, is_binary=set().union(*values) == BINARY)

    def labels(self, index: int) -> list[int]:
        """Return the labels in the label map of image `index`."""
        return self._reader.labels(self._paths[index].read_bytes(), str(self._paths[index]))


class _Objects(_Samples):
    """Images with any number of objects."""

    def __init__(self, root: Path, names: Sequence[str], classes: Sequence[str], labels: Sequence[list[int]]) -> None:
        super().__init__(root, names, classes)
        self._labels = labels

    def labels(self, index: int) -> list[int]:
        """Return the labels of the objects in image `index`."""
        return self._labels[index]


def split_folder(
    source: Path,
    target: Path,
    *,
    fraction: float,
    seed: int,
    way: Way = "copy",
    nested: bool = False,
    on_start: Callable[[int], None] = lambda _: None,
    on_file: Callable[[], None] = lambda: None,
) -> Plan:
    """Split a data set into train and val in a new folder.

    Args:
        source: class folders; or images/ and masks/; or images and one COCO annotation file.
        target: a new or empty folder outside `source`.
        fraction: fraction of the images for val, between 0 and 1.
        seed: random seed of the split.
        way: `copy` files, or make hard links, which use no space but share later changes.
        nested: as in `ImageFolder`.
        on_start: called with the number of files before the first is written.
        on_file: called after each file.

    Raises:
        FileNotFoundError, NotADirectoryError: the folder does not exist.
        ValueError: the folder already has splits, or has too few images; or `target` is invalid.
        OSError: a file cannot be copied or linked; the message gives the remedy for links across disks.
    """
    _check(source, target)
    plan = plan_split(source, fraction, seed, nested=nested)
    on_start(len(plan.files))
    for path, name in plan.files:
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        _put(path, place, way)
        on_file()
    for name, text in plan.texts.items():
        atomic.write_text(target / name, text)
    return plan


def plan_split(source: Path, fraction: float, seed: int, *, nested: bool = False) -> Plan:
    """Plan the split; raises the same errors as `split_folder`."""
    splits = [name for name in visible_folders(source) if role_of(name) == "train"]
    if splits:
        raise ValueError(f"{source} already has a split {splits[0]!r}; to hold out images, train with --val-fraction")
    coco, masks = _coco_file(source), flat_folders(source)
    if coco is not None:
        return _plan_coco(source, coco, fraction, seed)
    if masks is not None:
        return _plan_masks(source, masks, fraction, seed)
    if holds_objects(source):
        raise ValueError(
            f"expected COCO annotations in {source}, got object labels in another format; to hold out images, train "
            "with --val-fraction"
        )
    return _plan_classes(source, fraction, seed, nested=nested)


def _plan_classes(source: Path, fraction: float, seed: int, *, nested: bool) -> Plan:
    found = {name: inside for name, inside in scan_classes(source, nested=nested).items() if inside.images}
    names = [name for inside in found.values() for name in inside.images]
    labels = [label for label, inside in enumerate(found.values()) for _ in inside.images]
    if not names:
        raise ValueError(f"no images in the class folders of {source}; expected {source}/CLASS/IMAGE.jpg")
    split_of = _choose(_Labeled(source, names, list(found), labels), fraction, seed)
    files = [(source / name, f"{split}/{name}") for name, split in zip(names, split_of, strict=True)]
    return Plan(files, _counts(split_of), {})


def _plan_masks(source: Path, folders: Folders, fraction: float, seed: int) -> Plan:
    listing = MaskListing(folders)
    listing.check()
    split_of = _choose(_Maps(source, folders, listing), fraction, seed)
    files: list[tuple[Path, str]] = []
    for image, label, split in zip(listing.images, listing.labels, split_of, strict=True):
        files.append((folders.images / image, f"images/{split}/{image}"))
        files.append((folders.labels / label, f"annotations/{split}/{label}"))
    files += [(source / name, name) for name in CLASS_FILES if (source / name).is_file()]
    return Plan(files, _counts(split_of), {})


def _plan_coco(source: Path, path: Path, fraction: float, seed: int) -> Plan:
    table = read_coco(path)
    names = [table.names[index] for index in range(len(table.names))]
    outside = [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]
    if outside:
        raise ValueError(f"{path}: expected file_name to be a path below the image folder, got {outside[0]!r}")
    root = _image_root(source, path, names)
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{len(missing)} images of {path} are not in {root}: {listed(missing)}")
    labels = [part.tolist() for part in np.split(table.labels, table.first[1:-1])]
    split_of = _choose(_Objects(root, names, table.classes, labels), fraction, seed)
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    split_by_id = {image["id"]: split for image, split in zip(content["images"], split_of, strict=True)}
    texts: dict[str, str] = {}
    for split in SPLITS:
        part = {
            **content,
            "images": [image for image in content["images"] if split_by_id[image["id"]] == split],
            "annotations": [one for one in content["annotations"] if split_by_id.get(one["image_id"]) == split],
        }
        texts[f"{ANNOTATIONS}/instances_{split}.json"] = json.dumps(part, ensure_ascii=False)
    files = [(root / name, f"{split}/{name}") for name, split in zip(names, split_of, strict=True)]
    return Plan(files, _counts(split_of), texts)


def _coco_file(source: Path) -> Path | None:
    """Return the only COCO annotation file of a folder, directly in it or in annotations/."""
    found = list(annotation_files(source).values())
    if not found:
        found = [*source.glob("*.coco.json"), *source.glob("instances*.json"), *source.glob("annotations*.json")]
        found += [*(source / ANNOTATIONS).glob("*.json")]
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(source)) for path in found[:3])
        raise ValueError(f"expected one annotation file in {source}, got {len(found)} ({names}); keep the one to split")
    return found[0] if found else None


def _image_root(source: Path, path: Path, names: Sequence[str]) -> Path:
    for root in (source / "images", source, path.parent):
        if names and (root / names[0]).is_file():
            return root
    raise FileNotFoundError(
        f"the images of {path}, such as {names[:1]}, are neither in {source}/images nor in {source}"
    )


def _choose(samples: _Samples, fraction: float, seed: int) -> list[str]:
    held = set(hold_out(samples, fraction, seed))
    return [SPLITS[index in held] for index in range(len(samples))]


def _counts(split_of: Sequence[str]) -> dict[str, int]:
    return {split: split_of.count(split) for split in SPLITS}


def _check(source: Path, target: Path) -> None:
    if not source.exists():
        raise FileNotFoundError(f"data folder {source} does not exist; give a folder of images to split")
    if not source.is_dir():
        raise NotADirectoryError(f"{source} is a file; give the folder of images to split")
    if target.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{target} is inside {source}, which must not change; give a folder outside it")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} already exists and is not an empty folder; give a new one")


def _put(path: Path, place: Path, way: Way) -> None:
    if way == "copy":
        shutil.copyfile(path, place)
        return
    try:
        os.link(path.resolve(), place)
    except OSError as error:
        raise OSError(f"{place} cannot be linked to {path}: {error.strerror}; use --way copy") from error

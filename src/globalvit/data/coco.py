"""Object detection and instance segmentation data in COCO's form: JSON and folders of images.

Decided here: labels 0 … K−1 are the categories in the order of their ids, which come back in results; boxes are clipped
to the image in training and stay as they are where detections are scored with them, as COCO's own evaluation has it;
images are upright, and boxes and masks drawn on stored pixels that EXIF turns are turned with them (`data.frames`).

Legend: `N` objects of an image.
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from PIL import Image

from globalvit.data.coco_folder import ANNOTATIONS, BESIDE, annotation_files
from globalvit.data.coco_json import CocoTable, match_categories, missing_categories, other_ids, read_coco
from globalvit.data.coco_plausible import CROWD_REMEDY
from globalvit.data.frames import Frame, Sight, rule_of, shown_frame, sight_of, turn_of, votes_of
from globalvit.data.image_folder import listed, split_folders
from globalvit.data.images import OversizedImage, UnreadableImage, look, read_oriented
from globalvit.data.instances import Instances
from globalvit.data.orientation import AS_STORED, UPRIGHT, Size, Turn
from globalvit.data.packed_masks import Polygons
from globalvit.data.shapes import BUILT_IN, DetectShapes
from globalvit.data.splits import NoSplitError, choose_split, names_of
from globalvit.data.truth import DetectSource, Truth, truth_of

logger = logging.getLogger(__name__)

IMAGES = "images"
YEARS = ("2017", "")
# So many images, from the first to the last of the file, are looked for in a folder before another is tried.
MOST_TRIED = 20
DRIVE = re.compile(r"[A-Za-z]:/")


class OtherSize(UnreadableImage):
    """An image that has not the size its annotations are for; skipped and counted like an unreadable one."""


@dataclass(frozen=True, slots=True)
class CompressedMask:
    """A mask as COCO's compressed run lengths: `size` is its height and width."""

    size: tuple[int, int]
    counts: bytes

    def bitmap(self) -> np.ndarray:
        """uint8 (H, W): 1 where the object is, else 0."""
        return coco_mask.decode({"size": list(self.size), "counts": self.counts})


class CocoSource:
    """The images of one COCO file.

    Args:
        table: what the file holds.
        root: the folder of the images.
        with_empty: keep images without objects other than crowds; in evaluation they count, training may do without.

    Attributes:
        classes: names of the labels 0 … K−1.
        category_ids: the file's own id of each label; None for a class that it does not list.
        annotations: the JSON file.
        sizes: int32 (len, 2): height and width of every image as the file states them.
        has_masks: whether every object has a mask.
        dropped: annotations that were left out, and why.
    """

    def __init__(self, table: CocoTable, root: Path, *, with_empty: bool = True) -> None:
        self.classes, self.category_ids = table.classes, table.category_ids
        self.root, self.dropped = root, table.dropped
        self.annotations = table.path
        self.has_masks = bool(table.masks.present.all())
        self._table = table
        self._chosen = np.arange(len(table.image_ids)) if with_empty else _with_objects(table)
        self.sizes = table.sizes[self._chosen]
        self._turns: dict[int, Turn] = {}

    def __len__(self) -> int:
        return len(self._chosen)

    def name(self, index: int) -> str:
        """The path of image `index`."""
        return str(placed(self.root, self._table.names[self._chosen[index]]))

    def read(self, index: int) -> tuple[Image.Image, Instances]:
        """Image `index` as upright RGB, and its objects.

        Raises:
            OtherSize: the image has another size than the JSON states.
            UnreadableImage: it cannot be read, or a mask is damaged.
            OversizedImage, OSError: as `read_image` says.
        """
        name, size = self.name(index), self._size(index)
        image, orientation = read_sized(name, name, size, str(self._table.path))
        turn = self._keep_turn(index, orientation, UPRIGHT[orientation].size((image.height, image.width)))
        return image, _clipped(_turned(self.annotated(index), turn, size), image.height, image.width)

    def truth(self, index: int) -> Truth:
        """The objects of image `index` as the file has them, in the upright image's pixels.

        Raises:
            UnreadableImage, OSError: the image's header cannot be read.
        """
        size, name = self._size(index), self.name(index)
        turn = self._turns.get(index) or self._keep_turn(index, *look(name, name))
        instances = _turned(self.annotated(index), turn, size)
        return truth_of(instances, int(self._table.image_ids[self._chosen[index]]), turn.size(size))

    @cached_property
    def frame(self) -> Frame:
        """What the file's annotations are for where EXIF turns an image: its stored pixels, or the upright ones."""
        return rule_of(self.votes)

    @cached_property
    def votes(self) -> Counter[Frame]:
        """How many images show each frame of the annotations, as `frames.votes_of` counts them."""
        # All of the file's images, also those that training leaves out, so that every reader finds the same rule.
        return votes_of(map(self._sight, range(len(self._table.names))))

    @property
    def annotated_by(self) -> str:
        """What to call the annotations in messages."""
        return f"the annotations of {self.annotations}"

    def sight(self, index: int) -> Sight | None:
        """What image `index` shows of the annotations' frame; None where EXIF does not turn it."""
        return self._sight(int(self._chosen[index]))

    def _sight(self, at: int) -> Sight | None:
        name = str(placed(self.root, self._table.names[at]))
        try:
            orientation, stored = look(name)
        except (UnreadableImage, OversizedImage, OSError):
            return None
        height, width = self._table.sizes[at].tolist()
        return sight_of(name, orientation, stored, (height, width))

    def _size(self, index: int) -> Size:
        """Height and width as the file states them."""
        height, width = self.sizes[index].tolist()
        return height, width

    def _keep_turn(self, index: int, orientation: int, stored: Size) -> Turn:
        """What turns the annotations of an image upright; it is kept, so that scoring does not open the image again."""
        turn = AS_STORED
        if orientation != 1:
            turn = turn_of(orientation, shown_frame(orientation, stored, self._size(index)) or self.frame)
        self._turns[index] = turn
        return turn

    def labels(self, index: int) -> list[int]:
        """The labels of the objects in image `index`."""
        at = self._chosen[index]
        return self._table.labels[int(self._table.first[at]) : int(self._table.first[at + 1])].tolist()

    def annotated(self, index: int) -> Instances:
        """The objects of image `index` with boxes, float64, and areas as the file has them, in its own frame.

        Raises:
            UnreadableImage: a mask is damaged.
        """
        table, at = self._table, self._chosen[index]
        rows = slice(int(table.first[at]), int(table.first[at + 1]))
        size = (int(table.sizes[at, 0]), int(table.sizes[at, 1]))
        masks = tuple(self._mask(row, size) for row in range(rows.start, rows.stop)) if self.has_masks else None
        return Instances(
            boxes=table.boxes[rows],
            labels=table.labels[rows],
            masks=masks,
            is_crowd=table.crowd[rows],
            areas=table.areas[rows],
            ids=table.ids[rows],
        )

    def _mask(self, row: int, size: tuple[int, int]) -> CompressedMask:
        packed = self._table.masks[row]
        assert packed is not None
        if not isinstance(packed, bytes):
            return CompressedMask(size, _rasterised(packed, size))
        mask = CompressedMask(size, packed)
        try:
            mask.bitmap()
        except (ValueError, RuntimeError) as error:
            raise UnreadableImage(f"annotation {self._table.ids[row]} has damaged run lengths: {error}") from None
        return mask


def open_coco(
    data_dir: str | PathLike[str],
    split: str,
    *,
    classes: Sequence[str] | None = None,
    category_ids: Sequence[int | None] | None = None,
    annotations: str | PathLike[str] | None = None,
    need_masks: bool = False,
    with_empty: bool = True,
    crowd_as_instances: bool = False,
    exact: bool = False,
) -> DetectSource:
    """Open one split of a COCO data set.

    Args:
        data_dir: a folder with `annotations/instances_SPLIT2017.json` or `instances_SPLIT.json` and the images in
            `SPLIT2017/`, `SPLIT/`, below `images/`, or in that itself; or `shapes`.
        split: `train`, `val` and `test` also stand for the other names in `splits.ROLES`.
        classes: names of the categories in the order of their labels, such as those of the training split; None takes
            the file's, in the order of their ids.
        category_ids: the ids of `classes` in the training split, as `CocoTable.for_classes` takes them.
        annotations: another file, below `data_dir` or anywhere.
        need_masks: refuse a set in which an object has no mask.
        with_empty: keep images without objects.
        crowd_as_instances: read annotations with `iscrowd` 1 as single objects, as CVAT means them.
        exact: the user named this split, so that it is taken though others may be meant too.

    Raises:
        NoSplitError: no annotations of this split; the text says what there is.
        FileNotFoundError: no such file, or none of its images; the text says what was looked for.
        ValueError: not COCO's JSON, or one that contradicts itself; no objects; no masks where they are needed; other
            classes than those expected.
    """
    if str(data_dir) == BUILT_IN:
        shapes = DetectShapes(split)
        match_categories(shapes.classes, classes or shapes.classes, shapes.name(0))
        return shapes
    root = Path(data_dir)
    path = _annotation_file(root, split, annotations, exact=exact)
    table = open_table(path, crowd_as_instances=crowd_as_instances)
    if classes is not None:
        missing = missing_categories(table.classes, classes, path)
        renumbered = None if category_ids is None else other_ids(table, classes, category_ids, path)
        table = table.for_classes(classes, category_ids)
        for text in (missing, renumbered):
            if text:
                logger.warning("%s", text)
    if table.crowd.all():
        raise ValueError(f"{path} holds no objects{_why_none(table)}; give a file with annotations of objects")
    if need_masks:
        _check_masks(table)
    source = CocoSource(table, image_folder(root, split, table), with_empty=with_empty)
    for asked in table.questions:
        if asked.is_grave:
            logger.warning("%s: %s", path, asked.text)
    crowds = int(table.crowd.sum())
    logger.info("%s: %d images, %d objects, %d crowds", path, len(source), len(table.ids) - crowds, crowds)
    return source


def _why_none(table: CocoTable) -> str:
    """What became of a file's annotations when no objects are left."""
    if len(table.crowd):
        return f": all {len(table.crowd)} annotations have iscrowd 1; {CROWD_REMEDY}"
    if table.dropped:
        return f": all {len(table.dropped)} annotations were left out, the first: {table.dropped[0]}"
    return ", its list of annotations is empty"


def _annotation_file(data_dir: Path, split: str, annotations: str | PathLike[str] | None, *, exact: bool) -> Path:
    folders = split_folders(data_dir)
    if annotations is not None:
        tried = [data_dir / annotations, data_dir / ANNOTATIONS / annotations, Path(annotations)]
        found = next((path for path in tried if path.is_file()), None)
    else:
        tried = [data_dir / ANNOTATIONS / f"instances_{split}{year}.json" for year in YEARS]
        files = annotation_files(data_dir)
        chosen = choose_split(split, files, data_dir, exact=exact)
        found = None if chosen is None else files[chosen]
    if found is not None:
        return found
    if ANNOTATIONS in folders:
        there = f"{ANNOTATIONS}/ holds {listed(sorted(p.name for p in (data_dir / ANNOTATIONS).iterdir()))}"
    else:
        there = f"it holds {listed(folders)}" if folders else "it holds no folders"
    names = " or ".join(str(path) for path in tried[:2])
    raise NoSplitError(f"no annotations of {split!r} in {data_dir}; {there}. Expected {names}")


def open_table(path: Path, *, crowd_as_instances: bool = False) -> CocoTable:
    """Read a file of annotations; raises what `read_coco` raises."""
    return read_coco(path, _compressed, crowd_as_instances=crowd_as_instances)


def read_sized(source: str | bytes, name: str, size: Size, stated_by: str) -> tuple[Image.Image, int]:
    """Read an image as upright RGB; return it and its EXIF orientation.

    Args:
        source: a path or the file's bytes.
        name: what error messages call it.
        size: the height and width it must have, as it is stored or upright.
        stated_by: the file that states them.

    Raises:
        OtherSize: it has another size both ways.
        UnreadableImage, OversizedImage, OSError: as `read_image` does.
    """
    image, orientation = read_oriented(source, name)
    upright = (image.height, image.width)
    if size not in (upright, UPRIGHT[orientation].size(upright)):
        raise OtherSize(
            f"{name} has {image.width}×{image.height} pixels, but {stated_by} says {size[1]}×{size[0]}; its boxes are "
            "of another image"
        )
    return image, orientation


def image_folder(data_dir: Path, split: str, table: CocoTable) -> Path:
    """Return the first of the usual folders in which one of the images lies.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a file name leads out of `data_dir`.
    """
    below = [f"{name}{year}" for name in dict.fromkeys((split, *names_of(split))) for year in YEARS]
    # Folders that differ from these in case count too.
    alike = [name for name in split_folders(data_dir) if name.casefold() in below and name not in below]
    beside = [table.path.parent] if table.path.name == BESIDE else []
    named = [data_dir / name for name in (*alike, *below)]
    folders = [*beside, *named, *(data_dir / IMAGES / path.name for path in named), data_dir / IMAGES, data_dir]
    tried = np.linspace(0, len(table.names) - 1, MOST_TRIED, dtype=int)
    names = [table.names[index] for index in np.unique(tried).tolist()]
    for folder in folders:
        if any(not _leaves(data_dir, folder, name) and placed(folder, name).is_file() for name in names):
            _check_names(data_dir, folder, table)
            return folder
    _check_names(data_dir, folders[0], table)
    raise FileNotFoundError(
        f"none of the {len(names)} images of {table.path} looked for is there, such as {names[0]!r}; looked in "
        f"{', '.join(map(str, folders))}"
    )


def placed(root: Path, name: str) -> Path:
    """Return where an image lies; a backslash in its name parts folders, unless a file has it in its own name."""
    path = root / name
    return path if "\\" not in name or path.is_file() else root / name.replace("\\", "/")


def _check_names(data_dir: Path, root: Path, table: CocoTable) -> None:
    """Refuse file names that lead out of the data set's folder: a file of annotations must not open other files."""
    for at in range(len(table.names)):
        name = table.names[at]
        if _leaves(data_dir, root, name):
            raise ValueError(
                f"{table.path}: image {table.image_ids[at]} has file_name {name!r}, which leads out of {data_dir}; "
                "expected a path below the folder of the images: make it relative, or give the folder that holds "
                "all as --data-dir"
            )


def _leaves(data_dir: Path, root: Path, name: str) -> bool:
    """Whether a file name leads out of a folder; links that lie in the folder are the user's own."""
    plain = name.replace("\\", "/")
    if not (plain.startswith("/") or ".." in plain or plain[1:2] == ":"):
        return False
    if DRIVE.match(plain):
        return True
    base, path = os.path.abspath(data_dir), os.path.abspath(root / plain)  # noqa: PTH100 (links stay as they are)
    return os.path.commonpath([base, path]) != base


def _check_masks(table: CocoTable) -> None:
    lacking = np.flatnonzero(~table.masks.present)
    if len(lacking):
        raise ValueError(
            f"{len(lacking)} of {len(table.ids)} annotations of {table.path} have no mask, the first is annotation "
            f"{table.ids[lacking[0]]}; this model learns masks: add `segmentation`, or take one that needs boxes only, "
            "such as a retinanet"
        )


def _with_objects(table: CocoTable) -> np.ndarray:
    """Positions of the images that show more than crowds."""
    images = np.repeat(np.arange(len(table.image_ids)), np.diff(table.first))
    return np.unique(images[~table.crowd])


def _clipped(instances: Instances, height: int, width: int) -> Instances:
    """With float32 boxes that end at the image's edges."""
    boxes = instances.boxes.clip(0, [width, height, width, height]).astype(np.float32)
    return replace(instances, boxes=boxes, areas=instances.areas.astype(np.float32))


def _turned(instances: Instances, turn: Turn, size: Size) -> Instances:
    """Objects of an image of height and width `size`, turned with it."""
    if turn is AS_STORED:
        return instances
    masks = instances.masks
    if masks is not None:
        bitmaps = [np.asfortranarray(turn.pixels(mask.bitmap())) for mask in masks]
        masks = tuple(CompressedMask(turn.size(size), coco_mask.encode(one)["counts"]) for one in bitmaps)
    return replace(instances, boxes=turn.boxes(instances.boxes, size), masks=masks)


def _rasterised(polygons: Polygons, size: tuple[int, int]) -> bytes:
    parts: Any = coco_mask.frPyObjects([polygon.tolist() for polygon in polygons], *size)
    return coco_mask.merge(parts)["counts"]


def _compressed(counts: list[int], size: tuple[int, int]) -> bytes:
    runs: Any = coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size)
    return runs["counts"]

"""Images with objects for detection and instance segmentation, in any of the formats in `registry`.

Decided here: labels 0 … K−1 are the classes in the order of their ids, which come back in results; boxes are clipped
to the image in training and stay as they are where detections are scored with them, as COCO's own evaluation has it;
images are upright, and boxes and masks drawn on stored pixels that EXIF turns are turned with them; see
`data.common.orientation`.

Legend: `N` objects of an image.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image

from globalvit.data.built_in.shapes import DetectShapes
from globalvit.data.common.folders import SHAPES, listed, placed, split_folders
from globalvit.data.common.formats import choose_format
from globalvit.data.common.images import OversizedImage, UnreadableImage, look, read_oriented
from globalvit.data.common.orientation import (
    AS_STORED,
    UPRIGHT,
    Frame,
    Sight,
    Size,
    Turn,
    rule_of,
    shown_frame,
    sight_of,
    turn_of,
    votes_of,
)
from globalvit.data.common.splits import NoSplitError, choose_split, flag_of, role_of
from globalvit.data.detection.coco import ANNOTATIONS, CocoFormat, given_file, open_file
from globalvit.data.detection.coco_json import CocoTable, match_categories, missing_categories, other_ids
from globalvit.data.detection.formats import DetectionFormat
from globalvit.data.detection.instances import DetectSource, GroundTruth, Instances, ground_truth_of
from globalvit.data.detection.registry import FORMATS, holds_objects
from globalvit.data.detection.run_lengths import CompressedMask
from globalvit.data.detection.shard_images import members_of
from globalvit.data.storage.tar_index import Span

logger = logging.getLogger(__name__)


class OtherSize(UnreadableImage):
    """An image that has not the size its annotations are for; skipped and counted like an unreadable one."""


class CocoSource:
    """The images of one split.

    Args:
        table: what the labels say.
        root: the folder of the images, or of shards of them.
        with_empty: keep images without objects other than crowds; in evaluation they count, training may do without.

    Attributes:
        classes: names of the labels 0 … K−1.
        category_ids: the file's own id of each label; None for a class that it does not list.
        annotations: the JSON file, or the file of labels of every image that has one.
        sizes: int32 (len, 2): height and width of every image as the file states them.
        has_masks: whether every object has a mask.
        dropped: annotations that were left out, and why.
    """

    def __init__(self, table: CocoTable, root: Path, *, with_empty: bool = True) -> None:
        self.classes, self.category_ids = table.classes, table.category_ids
        self.root, self.dropped = root, table.dropped
        self.annotations = (table.path,) if table.sources is None else tuple(filter(None, table.sources))
        self.has_masks = bool(table.masks.present.all())
        self._table = table
        self._chosen = np.arange(len(table.image_ids)) if with_empty else _with_objects(table)
        self.sizes = table.sizes[self._chosen]
        self._members = members_of(root, table)
        self._turns: dict[int, Turn] = {}

    # Of the images.
    channels = 3

    def __len__(self) -> int:
        return len(self._chosen)

    def name(self, index: int) -> str:
        """The path of image `index`."""
        return str(placed(self.root, self._table.names[self._chosen[index]]))

    def place(self, index: int) -> str:
        """The file of image `index`, or its shard and member."""
        return self._place(int(self._chosen[index]))

    def span(self, index: int) -> Span | None:
        """Where image `index` lies in its shard; None for a file."""
        return self._members and self._members.span(int(self._chosen[index]))

    def packed_sizes(self) -> list[str] | None:
        """Bytes of each image in shards, for fingerprints; None for files."""
        if self._members is None:
            return None
        sizes = self._members.sizes
        return [str(sizes[at]) for at in self._chosen.tolist()]

    def _place(self, at: int) -> str:
        return str(placed(self.root, self._table.names[at])) if self._members is None else self._members.place(at)

    def _data(self, at: int) -> str | bytes:
        """The path of image number `at` of the table, or its bytes in a shard."""
        return self._place(at) if self._members is None else self._members.data(at)

    def read(self, index: int) -> tuple[Image.Image, Instances]:
        """Image `index` as upright RGB, and its objects.

        Raises:
            OtherSize: the image has another size than the JSON states.
            UnreadableImage: it cannot be read, or a mask is damaged.
            OversizedImage, OSError: as `read_image` says.
        """
        at, size = int(self._chosen[index]), self._size(index)
        stated_by = self._table.stated_by(at)
        image, orientation = read_sized(self._data(at), self._place(at), size, stated_by, self.channels)
        turn = self._keep_turn(index, orientation, UPRIGHT[orientation].size((image.height, image.width)))
        return image, _clipped(_turned(self.annotated(index), turn, size), image.height, image.width)

    def ground_truth(self, index: int) -> GroundTruth:
        """The objects of image `index` as the file has them, in the upright image's pixels.

        Raises:
            UnreadableImage, OSError: the image's header cannot be read.
        """
        size, at = self._size(index), int(self._chosen[index])
        turn = self._turns.get(index) or self._keep_turn(index, *look(self._data(at), self._place(at)))
        instances = _turned(self.annotated(index), turn, size)
        return ground_truth_of(instances, int(self._table.image_ids[self._chosen[index]]), turn.size(size))

    @cached_property
    def frame(self) -> Frame:
        """What the file's annotations are for where EXIF turns an image: its stored pixels, or the upright ones."""
        return rule_of(self.votes)

    @cached_property
    def votes(self) -> Counter[Frame]:
        """How many images show each frame of the annotations, as `orientation.votes_of` counts them."""
        # All of the file's images, also those that training leaves out, so that every reader finds the same rule.
        return votes_of(map(self._sight, range(len(self._table.names))))

    @property
    def annotated_by(self) -> str:
        """What to call the annotations in messages."""
        return f"the annotations of {self._table.path}"

    def sight(self, index: int) -> Sight | None:
        """What image `index` shows of the annotations' frame; None where EXIF does not turn it."""
        return self._sight(int(self._chosen[index]))

    def _sight(self, at: int) -> Sight | None:
        if self._table.is_upright:
            return None
        try:
            orientation, stored = look(self._data(at), self._place(at))
        except (UnreadableImage, OversizedImage, OSError):
            return None
        height, width = self._table.sizes[at].tolist()
        return sight_of(self._place(at), orientation, stored, (height, width))

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
            return CompressedMask.of_polygons(packed, size)
        mask = CompressedMask(size, packed)
        try:
            mask.bitmap()
        except (ValueError, RuntimeError) as error:
            raise UnreadableImage(f"annotation {self._table.ids[row]} has damaged run lengths: {error}") from None
        return mask


def open_detection(
    data_dir: str | PathLike[str],
    split: str,
    *,
    classes: Sequence[str] | None = None,
    category_ids: Sequence[int | None] | None = None,
    form: str | None = None,
    annotations: str | PathLike[str] | None = None,
    need_masks: bool = False,
    with_empty: bool = True,
    crowd_as_instances: bool = False,
    exact: bool = False,
) -> DetectSource:
    """Open one split of a set of images with objects.

    Args:
        data_dir: a folder in one of the formats in `registry`, or `shapes`.
        split: `train`, `val` and `test` also stand for the other names in `splits.ROLES`.
        classes: names of the classes in the order of their labels, such as those of the training split; None takes
            the data's, in the order of their ids.
        category_ids: the ids of `classes` in the training split, as `CocoTable.for_classes` takes them.
        form: name of the format; None finds it.
        annotations: a file of COCO's annotations for this split, below `data_dir` or anywhere.
        need_masks: refuse a set in which an object has no mask.
        with_empty: keep images without objects.
        crowd_as_instances: read annotations with `iscrowd` or `difficult` 1 as single objects.
        exact: the user named this split, so that it is taken though others may be meant too.

    Raises:
        NoSplitError: no labels of this split; the text says what there is.
        FileNotFoundError: no such file, or none of its images; the text says what was looked for.
        ValueError: the format is not clear; labels that cannot be read, or that contradict themselves; no objects; no
            masks where they are needed; other classes than those expected.
    """
    if str(data_dir) == SHAPES:
        shapes = DetectShapes(split)
        match_categories(shapes.classes, classes or shapes.classes, shapes.name(0))
        return shapes
    root = Path(data_dir)
    if annotations is not None:
        title, path = CocoFormat.name, given_file(root, Path(annotations))
        found = open_file(path, root, split, crowd_as_instances=crowd_as_instances)
    else:
        chosen, name = find_format(root, split, form, exact=exact)
        title = chosen.name
        found = chosen.open(root, name, classes, crowd_as_instances=crowd_as_instances)
    table = found.table if classes is None else _for_classes(found.table, classes, category_ids)
    if table.crowd.all():
        raise ValueError(f"{table.path} holds no objects{_why_none(table)}; give a file with annotations of objects")
    if need_masks:
        _check_masks(table)
    source = CocoSource(table, found.find_root(), with_empty=with_empty)
    for asked in table.questions:
        if asked.is_grave:
            logger.warning("%s: %s", table.path, asked.text)
    crowds = int(table.crowd.sum())
    counts = (len(source), len(table.ids) - crowds, crowds)
    logger.info("%s (format %s): %d images, %d objects, %d crowds", table.path, title, *counts)
    return source


def find_format(
    data_dir: Path, split: str, form: str | None = None, *, exact: bool = False
) -> tuple[DetectionFormat, str]:
    """Return the format of a folder, and what it calls a split.

    Raises:
        NoSplitError: it holds no labels of this split; the text says what there is.
        ValueError: several formats fit, or several splits may be meant.
    """
    folders = split_folders(data_dir)
    chosen = choose_format(FORMATS, data_dir, form)
    splits = [] if chosen is None else chosen.splits(data_dir)
    name = choose_split(split, splits, data_dir, exact=exact)
    if chosen is not None and name is not None:
        return chosen, name
    if chosen is not None:
        raise NoSplitError(
            f"no annotations of {split!r} in {data_dir} ({chosen.describe(data_dir)}); it has {listed(splits)}; "
            f"{flag_of(split)} takes another name"
        )
    there = f"it holds {listed(folders)}" if folders else "it holds no folders"
    raise NoSplitError(
        f"no annotations of {split!r} in {data_dir}; {there}. Expected {data_dir}/{ANNOTATIONS}/instances_{split}.json "
        f"as COCO has it, data.yaml and labels/ of YOLO, or Annotations/ of Pascal VOC{_deeper(data_dir, folders)}"
    )


def _deeper(data_dir: Path, folders: Sequence[str]) -> str:
    """A hint at a folder in or above `data_dir` that holds a set of images with objects."""
    if role_of(data_dir.absolute().name):
        return f". {data_dir} looks like a split: did you mean its parent, {data_dir.absolute().parent}?"
    for name in folders:
        with suppress(OSError, ValueError):
            if holds_objects(data_dir / name):
                return f". Did you mean {data_dir / name}?"
    return ""


def _for_classes(table: CocoTable, classes: Sequence[str], category_ids: Sequence[int | None] | None) -> CocoTable:
    """See `CocoTable.for_classes`; classes that the file does not list, and other ids, are logged."""
    missing = missing_categories(table.classes, classes, table.path)
    renumbered = None if category_ids is None else other_ids(table, classes, category_ids, table.path)
    chosen = table.for_classes(classes, category_ids)
    for text in (missing, renumbered):
        if text:
            logger.warning("%s", text)
    return chosen


def _why_none(table: CocoTable) -> str:
    """What became of a file's annotations when no objects are left."""
    if len(table.crowd):
        return f": all {len(table.crowd)} annotations have {table.words.crowd}; {table.words.crowd_remedy}"
    if table.dropped:
        return f": all {len(table.dropped)} annotations were left out, the first: {table.dropped[0]}"
    return ", its list of annotations is empty"


def read_sized(
    source: str | bytes, name: str, size: Size, stated_by: str, channels: int = 3
) -> tuple[Image.Image, int]:
    """Read an image as `read_image` does; return it and its EXIF orientation.

    Args:
        source: a path or the file's bytes.
        name: what error messages call it.
        size: the height and width it must have, as it is stored or upright.
        stated_by: the file that states them.
        channels: as `read_image` takes them.

    Raises:
        OtherSize: it has another size both ways.
        UnreadableImage, OversizedImage, OSError: as `read_image` does.
    """
    image, orientation = read_oriented(source, name, channels)
    upright = (image.height, image.width)
    if size not in (upright, UPRIGHT[orientation].size(upright)):
        raise OtherSize(
            f"{name} has {image.width}×{image.height} pixels, but {stated_by} says {size[1]}×{size[0]}; its boxes are "
            "of another image"
        )
    return image, orientation


def _check_masks(table: CocoTable) -> None:
    missing = np.flatnonzero(~table.masks.present)
    if len(missing):
        where = f" (in {table.stated_by(table.image_of(int(missing[0])))})" if table.sources else ""
        raise ValueError(
            f"{len(missing)} of {len(table.ids)} annotations of {table.path} have no mask, the first is annotation "
            f"{table.ids[missing[0]]}{where}; this model learns masks: add outlines, or take one that needs "
            "boxes only, such as a retinanet"
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
        masks = tuple(CompressedMask.of(turn.pixels(mask.bitmap())) for mask in masks)
    return replace(instances, boxes=turn.boxes(instances.boxes, size), masks=masks)

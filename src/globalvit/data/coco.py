"""Object detection and instance segmentation data in COCO's form: JSON and folders of images.

Decided here: labels 0 … K−1 are the categories in the order of their ids, which come back in results; boxes are clipped
to the image in training and stay as they are in the truth that detections are scored with, as COCO's own evaluation
has it; an image is not turned as its EXIF data ask for if it has the size the JSON states as it is stored, since
COCO's annotations are of the stored pixels, and turned if that gives the size.

Legend: `N` objects of an image.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from PIL import Image

from globalvit.data.check_boxes import odd_objects
from globalvit.data.coco_folder import ANNOTATIONS, BESIDE, annotation_files
from globalvit.data.coco_json import CocoTable, label_order, read_coco
from globalvit.data.image_folder import listed, split_folders
from globalvit.data.images import UnreadableImage, decode_image, to_rgb
from globalvit.data.instances import Instances
from globalvit.data.packed_masks import Polygons
from globalvit.data.shapes import BUILT_IN, DetectShapes
from globalvit.data.splits import NoSplitError, choose_split, names_of
from globalvit.data.truth import DetectSource, Truth, truth_of

logger = logging.getLogger(__name__)

IMAGES = "images"
YEARS = ("2017", "")
# So many images, from the first to the last of the file, are looked for in a folder before another is tried.
MOST_TRIED = 20


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
        category_ids: the file's own id of each label.
        sizes: int32 (len, 2): height and width of every image.
        has_masks: whether every object has a mask.
        dropped: annotations that were left out, and why.
    """

    def __init__(self, table: CocoTable, root: Path, *, with_empty: bool = True) -> None:
        self.classes, self.category_ids = table.classes, table.category_ids
        self.root, self.dropped = root, table.dropped
        self.has_masks = bool(table.masks.present.all())
        self._table = table
        self._chosen = np.arange(len(table.image_ids)) if with_empty else _with_objects(table)
        self.sizes = table.sizes[self._chosen]

    def __len__(self) -> int:
        return len(self._chosen)

    def name(self, index: int) -> str:
        """The path of image `index`."""
        return str(self.root / self._table.names[self._chosen[index]])

    def read(self, index: int) -> tuple[Image.Image, Instances]:
        """Image `index` as RGB, and its objects.

        Raises:
            OtherSize: the image has another size than the JSON states.
            UnreadableImage: it cannot be read, or a mask is damaged.
            OversizedImage, OSError: as `read_image` says.
        """
        name, (height, width) = self.name(index), self.sizes[index].tolist()
        image = read_sized(name, name, (height, width), str(self._table.path))
        return image, _clipped(self._instances(index), height, width)

    def truth(self, index: int) -> Truth:
        """The objects of image `index` as the file has them."""
        height, width = self.sizes[index].tolist()
        return truth_of(self._instances(index), int(self._table.image_ids[self._chosen[index]]), (height, width))

    def labels(self, index: int) -> list[int]:
        """The labels of the objects in image `index`."""
        at = self._chosen[index]
        return self._table.labels[int(self._table.first[at]) : int(self._table.first[at + 1])].tolist()

    def _instances(self, index: int) -> Instances:
        """The objects with boxes and areas as the file has them, float64."""
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
    annotations: str | PathLike[str] | None = None,
    need_masks: bool = False,
    with_empty: bool = True,
    exact: bool = False,
) -> DetectSource:
    """Open one split of a COCO data set.

    Args:
        data_dir: a folder with `annotations/instances_SPLIT2017.json` or `instances_SPLIT.json` and the images in
            `SPLIT2017/`, `SPLIT/`, below `images/`, or in that itself; or `shapes`.
        split: `train`, `val` and `test` also stand for the other names in `splits.ROLES`.
        classes: names of the categories in the order of their labels, such as those of the training split; None takes
            the file's, in the order of their ids.
        annotations: another file, below `data_dir` or anywhere.
        need_masks: refuse a set in which an object has no mask.
        with_empty: keep images without objects.
        exact: the user named this split, so that it is taken though others may be meant too.

    Raises:
        NoSplitError: no annotations of this split; the text says what there is.
        FileNotFoundError: no such file, or none of its images; the text says what was looked for.
        ValueError: not COCO's JSON, or one that contradicts itself; no objects; no masks where they are needed; other
            classes than those expected.
    """
    if str(data_dir) == BUILT_IN:
        shapes = DetectShapes(split)
        label_order(shapes.classes, classes or shapes.classes, shapes.name(0))
        return shapes
    root = Path(data_dir)
    path = _annotation_file(root, split, annotations, exact=exact)
    table = open_table(path)
    if classes is not None:
        table = table.for_classes(classes)
    if table.crowd.all():
        raise ValueError(f"{path} holds no objects; give a file with annotations")
    if need_masks:
        _check_masks(table)
    source = CocoSource(table, image_folder(root, split, table), with_empty=with_empty)
    for odd in odd_objects(table):
        if odd.is_grave:
            logger.warning("%s: %s", path, odd.text)
    logger.info("%s: %d images, %d objects", path, len(source), len(table.ids))
    return source


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


def open_table(path: Path) -> CocoTable:
    """Read a file of annotations; raises what `read_coco` raises."""
    return read_coco(path, _compressed)


def read_sized(source: str | bytes, name: str, size: tuple[int, int], stated_by: str) -> Image.Image:
    """Read an image as RGB, turned upright only if it has the height and width stated then and not as it is stored.

    Args:
        source: a path or the file's bytes.
        name: what error messages call it.
        size: height and width.
        stated_by: the file that states them.

    Raises:
        OtherSize: it has another size both ways.
        UnreadableImage, OversizedImage, OSError: as `read_image` does.
    """
    image = decode_image(source, partial(to_rgb, stored=size), name)
    if (image.height, image.width) != size:
        raise OtherSize(
            f"{name} has {image.width}×{image.height} pixels, but {stated_by} says {size[1]}×{size[0]}; its boxes are "
            "of another image"
        )
    return image


def image_folder(data_dir: Path, split: str, table: CocoTable) -> Path:
    """The first of the usual folders in which one of the images lies.

    Raises:
        FileNotFoundError: there is none.
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
        if any((folder / name).is_file() for name in names):
            return folder
    raise FileNotFoundError(
        f"none of the {len(names)} images of {table.path} looked for is there, such as {names[0]!r}; looked in "
        f"{', '.join(map(str, folders))}"
    )


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


def _rasterised(polygons: Polygons, size: tuple[int, int]) -> bytes:
    parts: Any = coco_mask.frPyObjects([polygon.tolist() for polygon in polygons], *size)
    return coco_mask.merge(parts)["counts"]


def _compressed(counts: list[int], size: tuple[int, int]) -> bytes:
    runs: Any = coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size)
    return runs["counts"]

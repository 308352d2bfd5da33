"""The objects of an image: boxes, labels, and masks that take little room until they are asked for.

Legend: `N` objects · `H W` pixels.
"""

from dataclasses import dataclass, fields
from typing import Any, Protocol, Self, TypedDict

import numpy as np
from PIL import Image


class Mask(Protocol):
    """The pixels of one object, however they are kept; picklable, so that workers can hold it."""

    def bitmap(self) -> np.ndarray:
        """uint8 (H, W) of the whole image: 1 where the object is, else 0."""
        ...


@dataclass(frozen=True, slots=True)
class RunLengths:
    """A mask as COCO's JSON keeps it uncompressed.

    Args:
        size: height and width of the image.
        counts: lengths of runs of 0, 1, 0, … down the columns; the first is 0 where the first pixel is 1.

    Raises:
        ValueError: the runs do not fill the image.
    """

    size: tuple[int, int]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        height, width = self.size
        if min(self.counts, default=0) < 0 or sum(self.counts) != height * width:
            raise ValueError(
                f"run lengths of {sum(self.counts)} pixels do not fill a mask of {width}×{height}; expected "
                f"{height * width}, none negative"
            )

    @classmethod
    def of(cls, bitmap_HW: np.ndarray) -> Self:
        """The runs of a bitmap, whose values other than 0 count as 1."""
        values = np.asarray(bitmap_HW, dtype=bool).ravel(order="F")
        changes = np.flatnonzero(np.diff(values, prepend=False))
        counts = np.diff(changes, prepend=0, append=len(values))
        return cls((bitmap_HW.shape[0], bitmap_HW.shape[1]), tuple(counts.tolist()))

    @property
    def area(self) -> int:
        """Pixels of the object."""
        return sum(self.counts[1::2])

    def bitmap(self) -> np.ndarray:
        """uint8 (H, W): 1 where the object is, else 0."""
        values = np.repeat(np.arange(len(self.counts), dtype=np.uint8) % 2, self.counts)
        return values.reshape(self.size, order="F")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Instances:
    """The labeled objects of one image, in its own pixels.

    Attributes:
        boxes: float32 (N, 4): left, top, right, bottom.
        labels: int64 (N,), 0 … K−1.
        masks: one for each object, decoded when asked; None where the data set has no masks.
        is_crowd: bool (N,): regions of many objects, which count neither as found nor as missed.
        areas: float32 (N,), pixels, as the data set states them.
        ids: int64 (N,), the data set's own.

    Raises:
        ValueError: the parts are of different lengths.
    """

    boxes: np.ndarray
    labels: np.ndarray
    masks: tuple[Mask, ...] | None
    is_crowd: np.ndarray
    areas: np.ndarray
    ids: np.ndarray

    def __post_init__(self) -> None:
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        lengths = {name: len(part) for name, part in parts.items() if part is not None}
        if len(set(lengths.values())) > 1 or self.boxes.shape[1:] != (4,):
            raise ValueError(f"expected boxes (N, 4) and as many of everything else, got {lengths}")

    def __len__(self) -> int:
        return len(self.labels)


class GroundTruth(TypedDict):
    """The objects of an image, in its own pixels, as the metric takes them.

    `boxes` float64 (N, 4) xyxy, `labels` int64, `crowd` bool and `areas` float64 (N,), `masks` a list of COCO's run
    lengths `{"size", "counts"}`, or None where the data set has none.
    """

    image_id: int
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    masks: list[dict[str, Any]] | None


class DetectSource(Protocol):
    """Images with objects by position 0 … len − 1; picklable, so that workers can hold it."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels 0 … K−1."""
        ...

    @property
    def category_ids(self) -> tuple[int | None, ...]:
        """The data set's own id of each label; None where it does not list the class."""
        ...

    @property
    def has_masks(self) -> bool:
        """Whether every object has a mask."""
        ...

    @property
    def sizes(self) -> np.ndarray:
        """Height and width of every image, int (len, 2)."""
        ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What to call image `index` in messages."""
        ...

    def read(self, index: int) -> tuple[Image.Image, Instances]:
        """Image `index` as RGB, and its objects; raises `UnreadableImage`, `OversizedImage` or OSError."""
        ...

    def ground_truth(self, index: int) -> GroundTruth:
        """What detections in image `index` are compared with."""
        ...


def ground_truth_of(instances: Instances, image_id: int, size: tuple[int, int]) -> GroundTruth:
    """Return the ground truth of these instances, with masks that are kept as run lengths."""
    masks: Any = instances.masks
    return GroundTruth(
        image_id=image_id,
        size=size,
        boxes=instances.boxes.astype(np.float64),
        labels=instances.labels,
        crowd=instances.is_crowd,
        areas=instances.areas.astype(np.float64),
        masks=None if masks is None else [{"size": mask.size, "counts": mask.counts} for mask in masks],
    )

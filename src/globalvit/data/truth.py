"""What a set of images with objects offers, and what detections are compared with."""

from typing import Any, Protocol, TypedDict

import numpy as np
from PIL import Image

from globalvit.data.instances import Instances


class Truth(TypedDict):
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

    def truth(self, index: int) -> Truth:
        """What detections in image `index` are compared with."""
        ...


def truth_of(instances: Instances, image_id: int, size: tuple[int, int]) -> Truth:
    """The truth that these instances are, with masks that are kept as run lengths."""
    masks: Any = instances.masks
    return Truth(
        image_id=image_id,
        size=size,
        boxes=instances.boxes.astype(np.float64),
        labels=instances.labels,
        crowd=instances.is_crowd,
        areas=instances.areas.astype(np.float64),
        masks=None if masks is None else [{"size": mask.size, "counts": mask.counts} for mask in masks],
    )

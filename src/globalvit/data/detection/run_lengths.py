"""Masks as COCO's compressed run lengths, by the library that defines them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from faster_coco_eval.core import mask as coco_mask

from globalvit.data.common.orientation import Size


@dataclass(frozen=True, slots=True)
class CompressedMask:
    """A mask as COCO's compressed run lengths: `size` is its height and width."""

    size: Size
    counts: bytes

    @classmethod
    def of(cls, bitmap_HW: np.ndarray) -> Self:
        """Encode a bitmap, uint8 (H, W)."""
        counts = coco_mask.encode(np.asfortranarray(bitmap_HW))["counts"]
        return cls((bitmap_HW.shape[0], bitmap_HW.shape[1]), counts)

    @classmethod
    def of_polygons(cls, polygons: Sequence[np.ndarray], size: Size) -> Self:
        """Rasterize the polygons (x, y, x, y, …) of one object."""
        parts: Any = coco_mask.frPyObjects([polygon.tolist() for polygon in polygons], *size)
        return cls(size, coco_mask.merge(parts)["counts"])

    def bitmap(self) -> np.ndarray:
        """uint8 (H, W): 1 where the object is, else 0."""
        return coco_mask.decode({"size": list(self.size), "counts": self.counts})


def compress(counts: list[int], size: Size) -> bytes:
    """Compress plain run lengths, which fill a mask of height and width `size`."""
    runs: Any = coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size)
    return runs["counts"]

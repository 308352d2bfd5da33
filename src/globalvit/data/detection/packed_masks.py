"""The outlines of a million objects in little room.

As Python lists, COCO's polygons take some gigabytes, which every worker would copy page by page as reference
counts change. Here all coordinates lie in one array.
"""

from array import array
from collections.abc import Iterable, Sequence

import numpy as np

# Coordinates are kept as whole numbers of these parts of a pixel where that is exact, as it is in COCO's own files.
PARTS_OF_A_PIXEL = 100
Polygons = list[np.ndarray]


class PackedMasks:
    """Masks by position: polygons, COCO's compressed run lengths, or none.

    Args:
        masks: each a list of polygons (x, y, x, y, …), bytes of compressed run lengths, or None.
    """

    def __init__(self, masks: Iterable[Sequence[Sequence[float]] | bytes | None]) -> None:
        coordinates, polygon_ends, first_polygons = array("d"), array("q", [0]), array("q", [0])
        runs, run_ends = bytearray(), array("q", [0])
        for mask in masks:
            if isinstance(mask, bytes):
                runs += mask
            else:
                for polygon in mask or ():
                    coordinates.extend(polygon)
                    polygon_ends.append(len(coordinates))
            first_polygons.append(len(polygon_ends) - 1)
            run_ends.append(len(runs))
        self._coordinates = _smallest(np.frombuffer(coordinates, np.float64))
        self._polygon_ends, self._first_polygons = np.array(polygon_ends), np.array(first_polygons)
        self._runs, self._run_ends = bytes(runs), np.array(run_ends)

    def __len__(self) -> int:
        return len(self._run_ends) - 1

    def __getitem__(self, index: int) -> Polygons | bytes | None:
        """Polygons, each float64 (2 · points,), or compressed run lengths, or None."""
        start, end = self._run_ends[index], self._run_ends[index + 1]
        if end > start:
            return self._runs[start:end]
        polygons = range(self._first_polygons[index], self._first_polygons[index + 1])
        return [self._polygon(number) for number in polygons] or None

    @property
    def present(self) -> np.ndarray:
        """Which of them there are, bool (len,)."""
        return (np.diff(self._run_ends) > 0) | (np.diff(self._first_polygons) > 0)

    @property
    def extent(self) -> float:
        """The largest coordinate of any polygon, without its sign; NaN where one is."""
        return float(np.abs(_pixels(self._coordinates)).max(initial=0))

    def _polygon(self, number: int) -> np.ndarray:
        return _pixels(self._coordinates[self._polygon_ends[number] : self._polygon_ends[number + 1]])


def _smallest(coordinates: np.ndarray) -> np.ndarray:
    """Whole parts of a pixel, int32, where nothing is lost by it; else as they are."""
    if not (np.abs(coordinates) < np.iinfo(np.int32).max / PARTS_OF_A_PIXEL).all():
        return coordinates.copy()
    parts = np.rint(coordinates * PARTS_OF_A_PIXEL).astype(np.int32)
    return parts if (_pixels(parts) == coordinates).all() else coordinates.copy()


def _pixels(coordinates: np.ndarray) -> np.ndarray:
    return coordinates / PARTS_OF_A_PIXEL if coordinates.dtype == np.int32 else coordinates

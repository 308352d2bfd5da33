"""Label maps: PNG files in which every pixel says its class.

Decided here: gray and palette files hold class numbers, of 1 to 16 bits; in files with colors each pixel is looked up
in the table of the classes' colors. 255 is `IGNORE`. A file that cannot be decoded is an unreadable image; labels
that no class has are an error that names the file.

Legend: `K` classes · `H W` pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from globalvit.data.frames import Frame, shown_frame, turn_of
from globalvit.data.images import OversizedImage, UnreadableImage, WrongLabels, decode_image, look, read_image, upright
from globalvit.data.orientation import UPRIGHT

IGNORE = 255
MOST_CLASSES = 255
# What Pillow multiplies gray values of fewer than 8 bits by.
_SCALED = {2: 85, 4: 17}
_GREY = 0


class WrongSize(WrongLabels):
    """Labels of another size than their image."""


@dataclass(frozen=True, kw_only=True)
class LabelReader:
    """Reads label maps as uint8 (H, W), 0 … K−1 or `IGNORE`.

    Args:
        total: number of classes K, at most 255.
        reduce_zero_label: 0 in a file is to be ignored, and every other label is one less than the file says.
        colors: of the classes, RGB, for files with colors; `reduce_zero_label` does not apply to these.

    Raises:
        ValueError: no classes, too many, or other colors than classes.
    """

    total: int
    reduce_zero_label: bool = False
    colors: tuple[tuple[int, int, int], ...] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.total <= MOST_CLASSES:
            raise ValueError(f"{self.total} classes: expected 1 to {MOST_CLASSES}, since {IGNORE} is to be ignored")
        if self.colors is not None and len(set(self.colors)) != self.total:
            raise ValueError(
                f"{len(set(self.colors))} different colors for {self.total} classes; give each class its own"
            )

    def read(self, data: bytes, name: str) -> np.ndarray:
        """The labels in a file's bytes; `name` is what errors call it.

        Raises:
            UnreadableImage: not a PNG file, truncated, or damaged.
            WrongLabels: a label that no class has, or colors without a table.
        """
        return decode_image(data, lambda image: self._labels(image, data, name), name, ("PNG",))

    def _labels(self, image: Image.Image, data: bytes, name: str) -> np.ndarray:
        image = upright(image)
        if image.mode in ("RGB", "RGBA"):
            return self._by_color(np.asarray(image.convert("RGB")), name)
        if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
            raise WrongLabels(f"{name} has mode {image.mode}; expected a gray or palette PNG of class numbers")
        values_HW = np.asarray(image)
        if image.mode == "L":
            values_HW = values_HW // _gray_scale(data)
        return self._by_number(values_HW, name)

    def _by_number(self, values_HW: np.ndarray, name: str) -> np.ndarray:
        values_HW = values_HW.astype(np.uint8) if values_HW.dtype == bool else values_HW
        highest = int(values_HW.max())
        if highest <= IGNORE and not self._is_refused[np.bincount(values_HW.ravel(), minlength=256) > 0].any():
            return self._table[values_HW]
        first = self.total + self.reduce_zero_label
        bad = int(values_HW[(values_HW >= first) & (values_HW != IGNORE)][0])
        raise WrongLabels(self._wrong_number(bad, name))

    def _wrong_number(self, value: int, name: str) -> str:
        shifted = ", less 1 by reduce_zero_label," if self.reduce_zero_label else ""
        hint = " Labels that count from 1 need reduce_zero_label." if value == self.total else ""
        return (
            f"{name} has label {value}{shifted} but there are {self.total} classes, 0 … {self.total - 1}, and {IGNORE} "
            f"for pixels to ignore; mend the file or the list of classes.{hint}"
        )

    def _by_color(self, pixels_HWC: np.ndarray, name: str) -> np.ndarray:
        if self.colors is None:
            raise WrongLabels(
                f"{name} holds colors, not class numbers; give each class its color in classes.json, as in "
                '[{"name": "sky", "color": [70, 130, 180]}], or save it as a gray or palette PNG'
            )
        packed_HW = _packed(pixels_HWC)
        places = np.searchsorted(self._sorted_colors, packed_HW).clip(max=self.total - 1)
        is_strange = self._sorted_colors[places] != packed_HW
        if is_strange.any():
            row, column = (int(found[0]) for found in np.nonzero(is_strange))
            red, green, blue = pixels_HWC[row, column].tolist()
            raise WrongLabels(
                f"{name} has the color {red},{green},{blue} at {column},{row}, which no class has; add it to "
                "classes.json or mend the file (colors must not be blended at edges)"
            )
        return self._color_order[places].astype(np.uint8)

    @cached_property
    def _table(self) -> np.ndarray:
        """From what a file says to the label."""
        table = np.arange(256, dtype=np.int16) - self.reduce_zero_label
        table[IGNORE] = IGNORE
        return np.where(table < 0, IGNORE, table).astype(np.uint8)

    @cached_property
    def _is_refused(self) -> np.ndarray:
        return (self._table >= self.total) & (self._table != IGNORE)

    @cached_property
    def _color_order(self) -> np.ndarray:
        return np.argsort(_packed(np.array(self.colors)))

    @cached_property
    def _sorted_colors(self) -> np.ndarray:
        return _packed(np.array(self.colors))[self._color_order]


def read_labeled(
    data: bytes,
    label_data: bytes,
    reader: LabelReader,
    name: str,
    label_name: str,
    *,
    frame: Callable[[], Frame] = lambda: "upright",
    decode: Callable[[bytes, str], Image.Image] = read_image,
) -> tuple[Image.Image, np.ndarray]:
    """Return an image as upright RGB and its labels, turned like it, from the bytes of both files.

    Args:
        data: the image's file.
        label_data: the label map's file.
        reader: reads the label map.
        name: what errors call the image.
        label_name: what errors call the label map.
        frame: asked which frame the set's labels are for where EXIF turns the image and its size does not show it.
        decode: reads the image upright.

    Raises:
        UnreadableImage: one of them cannot be decoded.
        OversizedImage: one of them has more than 179 megapixels.
        WrongLabels: what `LabelReader.read` refuses, or, as `WrongSize`, the sizes differ.
    """
    image, labels_HW = decode(data, name), reader.read(label_data, label_name)
    size = (image.height, image.width)
    orientation, stored = look(data, name)
    # A label map with EXIF data of its own is upright by now, like its image.
    if orientation != 1 and labels_HW.shape in (size, stored) and look(label_data)[0] == 1:
        shown = shown_frame(orientation, stored, labels_HW.shape)
        labels_HW = turn_of(orientation, shown or frame()).pixels(labels_HW)
    if labels_HW.shape != size:
        raise WrongSize(
            f"{label_name} is {labels_HW.shape[1]}×{labels_HW.shape[0]}, but its image {name} is "
            f"{image.width}×{image.height}: every pixel needs one label"
        )
    return image, np.ascontiguousarray(labels_HW)


def look_at_pair(data: bytes | Path, label_data: bytes | Path) -> Frame | None:
    """Return the frame that an image and its label map, paths or bytes, show labels to be for; None for neither."""
    try:
        orientation, stored = look(data)
        if orientation == 1:
            return None
        label_orientation, label_size = look(label_data)
    except (UnreadableImage, OversizedImage, OSError):
        return None
    return shown_frame(orientation, stored, UPRIGHT[label_orientation].size(label_size))


def _gray_scale(data: bytes) -> int:
    """What the gray values of a PNG file were multiplied by when it was opened."""
    depth, color_type = data[24], data[25]
    return _SCALED.get(depth, 1) if color_type == _GREY else 1


def _packed(colors: np.ndarray) -> np.ndarray:
    """RGB in the last axis as one number each."""
    red, green, blue = np.moveaxis(colors.astype(np.int64), -1, 0)
    return red << 16 | green << 8 | blue

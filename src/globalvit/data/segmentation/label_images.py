"""Label maps: PNG, TIFF or BMP files in which every pixel says its class.

Decided here: gray and palette files hold class numbers, of 1 to 16 bits; in files with colors, and in palette files
whose palette and not whose numbers fit it, each pixel is looked up in the table of the classes' colors; a palette that
the table knows in part is refused. Classes of a color table that are for pixels to ignore are ignored, and
count in files of numbers, since the number is the line of the table. 255 is
`IGNORE`, except in sets of two classes whose files hold nothing but 0 and 255 (see `survey`). A file that cannot
be decoded is an unreadable image; labels that no class has are an error that names the file.

Legend: `K` classes · `H W` pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from globalvit.data.common.images import (
    OversizedImage,
    UnreadableImage,
    WrongLabels,
    decode_image,
    look,
    read_image,
    upright,
)
from globalvit.data.common.orientation import Frame, Sight, shown_frame, sight_of, turn_of

IGNORE = 255
MOST_CLASSES = 255
# What Pillow multiplies gray values of fewer than 8 bits by.
_SCALED = {2: 85, 4: 17}
_GRAY, _RGB = 0, 2
_BITS_TAG = 258
FORMATS = ("PNG", "TIFF", "BMP")
# Compressions of TIFF that change values.
_LOSSY = ("jpeg", "tiff_jpeg", "webp")
TABLES = "classes.json, class_dict.csv or labelmap.txt"
JPEG_START = b"\xff\xd8\xff"
HIGHEST = 65535
# Values that no class has, in one file: more of them are the traces of compression or smoothing.
MOST_STRANGE = 8
MOST_SHOWN = 8


class Reads(Protocol):
    """What reads label maps."""

    def read(self, data: bytes, name: str) -> np.ndarray:
        """The labels in a file's bytes, as `LabelReader.read` gives them."""
        ...


class WrongSize(WrongLabels):
    """Labels of another size than their image."""


@dataclass(frozen=True, kw_only=True)
class LabelReader:
    """Reads label maps as uint8 (H, W), 0 … K−1 or `IGNORE`.

    Args:
        total: number of classes K, at most 255.
        reduce_zero_label: 0 in a file is to be ignored, and every other label is one less than the file says.
        colors: of the classes, RGB, for files with colors; `reduce_zero_label` does not apply to these.
        void: further numbers, as files have them, and their colors, which are to be ignored.
        ignore: a value in the files that is to be ignored, in addition to 255.
        is_binary: the files hold 0 and 255 for the classes 0 and 1.

    Raises:
        ValueError: no classes, too many, or other colors than classes.
    """

    total: int
    reduce_zero_label: bool = False
    colors: tuple[tuple[int, int, int], ...] | None = None
    void: tuple[tuple[int, tuple[int, int, int]], ...] = ()
    ignore: int | None = None
    is_binary: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.total <= MOST_CLASSES:
            raise ValueError(f"{self.total} classes: expected 1 to {MOST_CLASSES}, since {IGNORE} is to be ignored")
        if self.colors is not None and len(set(self.colors)) != self.total:
            raise ValueError(
                f"{len(set(self.colors))} different colors for {self.total} classes; give each class its own"
            )
        if self.ignore is not None and not 0 <= self.ignore <= HIGHEST:
            raise ValueError(f"ignore_label={self.ignore} must be 0 … {HIGHEST}, a value of label maps")

    def read(self, data: bytes, name: str) -> np.ndarray:
        """The labels in a file's bytes; `name` is what errors call it.

        Raises:
            UnreadableImage: not a PNG, TIFF or BMP file, truncated, or damaged.
            WrongLabels: a label that no class has, colors without a table, or another format's lossy values.
        """
        if data[:3] == JPEG_START:
            raise WrongLabels(f"{name} is a JPEG file, which changes class numbers; expected PNG, so export it again")
        return decode_image(data, lambda image: self._labels(image, data, name), name, FORMATS)

    def values(self, data: bytes, name: str) -> list[int] | None:
        """The different values in a file of numbers, as stored, ascending; None for a file with colors.

        Raises:
            UnreadableImage: not a PNG, TIFF or BMP file, truncated, or damaged.
        """
        return decode_image(data, lambda image: _values(image, data), name, FORMATS)

    def labels(self, data: bytes, name: str) -> list[int]:
        """The labels 0 … K−1 in a file, ascending; empty if it cannot be read, which reading it reports."""
        try:
            counts = np.bincount(self.read(data, name).ravel(), minlength=IGNORE + 1)
        except (UnreadableImage, OversizedImage, WrongLabels):
            return []
        return np.flatnonzero(counts[:IGNORE]).tolist()

    @property
    def ignored_values(self) -> set[int]:
        """The values in files that are ignored."""
        values = set(np.flatnonzero(self._table == IGNORE).tolist())
        return values | ({self.ignore} if self.ignore is not None else set())

    def label_of(self, value: int) -> int:
        """The label that a value 0 … 255 in a file stands for; K or more if no class has it."""
        return int(self._table[value])

    def _labels(self, image: Image.Image, data: bytes, name: str) -> np.ndarray:
        _check_exact(image, data, name)
        scale = _gray_scale(image, data)
        image = upright(image)
        if image.mode in ("RGB", "RGBA"):
            return self._by_color(_opaque(image, name), name)
        if image.mode == "P" and self._is_colored(image, name):
            return self._by_color(np.asarray(image.convert("RGB")), name)
        if not _holds_numbers(image):
            raise WrongLabels(f"{name} has mode {image.mode}; expected a gray or palette PNG of class numbers")
        return self._by_number(_numbers(image, scale), name)

    def _is_colored(self, image: Image.Image, name: str) -> bool:
        """Whether the palette of a file, and not its numbers, agrees with the classes' colors.

        Raises:
            WrongLabels: some of its colors are those of other classes, and others of none.
        """
        palette = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        used = [index for _, index in image.getcolors(256) or [] if isinstance(index, int) and index < len(palette)]
        if self.colors is None or not used:
            return False
        colors = {index: tuple(palette[index].tolist()) for index in used}
        known = self._by_file_number
        if all(index == IGNORE or known[index : index + 1] == [color] for index, color in colors.items()):
            return False
        if set(colors.values()) <= set(known):
            return True
        moved = next((index for index, color in colors.items() if color in known and known.index(color) != index), None)
        if moved is not None and any(len(set(color)) > 1 for color in colors.values()):
            other = next(color for color in colors.values() if color not in known)
            raise WrongLabels(
                f"{name} has a palette in which {moved} has the color of class number {known.index(colors[moved])}, "
                f"{color_text(colors[moved])}, and no class has the color {color_text(other)}; expected the colors of "
                f"{TABLES}, or none of them: correct one of the two"
            )
        return False

    @cached_property
    def _by_file_number(self) -> list[tuple[int, int, int]]:
        """The colors in the order of the numbers in files, which count what is to be ignored too."""
        colors = list(self.colors or ())
        for number, color in self.void:
            colors.insert(number, color)
        return colors

    def _by_number(self, values_HW: np.ndarray, name: str) -> np.ndarray:
        if self.ignore is not None and self.ignore > IGNORE:
            values_HW = np.where(values_HW == self.ignore, IGNORE, values_HW)
        if int(values_HW.max()) <= IGNORE:
            present = np.bincount(values_HW.ravel(), minlength=256) > 0
            if not self._is_refused[present].any():
                return self._table[values_HW]
        raise WrongLabels(self._wrong_number(np.unique(values_HW).tolist(), name))

    def _wrong_number(self, present: Sequence[int], name: str) -> str:
        bad = next(value for value in present if value > IGNORE or self._is_refused[value])
        if self.is_binary:
            return (
                f"{name} has label {bad}, but the other label maps hold only 0 and {IGNORE}, read as the two classes; "
                f"make them alike, or use --ignore-label {IGNORE} if {IGNORE} marks pixels to ignore"
            )
        shifted = ", less 1 by reduce_zero_label," if self.reduce_zero_label else ""
        return (
            f"{name} has label {bad}{shifted} but there are {self.total} classes, 0 … {self.total - 1}, and {IGNORE} "
            f"for pixels to ignore; its values are {shown(present)}: {self._remedy(bad, present)}"
        )

    def _remedy(self, bad: int, present: Sequence[int]) -> str:
        """What most likely happened to a file with these values, and what to do."""
        strange = [value for value in present if value > IGNORE or self._is_refused[value]]
        if present[-1] > IGNORE:
            return "they are not class numbers but 16-bit values, as of instance ids; export class numbers of 8 bits"
        if len(strange) > MOST_STRANGE or (len(strange) > 1 and len(present) > self.total + 1):
            return (
                "so many come from JPEG compression, smooth edges or resizing; export the label maps as PNG without "
                "smoothing, and resize them with nearest neighbor only"
            )
        if bad == self.total and present[0] > 0 and not self.reduce_zero_label:
            return "labels that count from 1 need --reduce-zero-label"
        if len(strange) == 1:
            return f"use --ignore-label {bad} if it marks pixels to ignore, else correct file or class list"
        return "they look stretched to be seen; export class numbers, or correct the list of classes"

    def _by_color(self, pixels_HWC: np.ndarray, name: str) -> np.ndarray:
        if self.colors is None:
            raise WrongLabels(_no_table(pixels_HWC, name))
        packed_HW = _packed(pixels_HWC)
        places = np.searchsorted(self._sorted_colors, packed_HW).clip(max=len(self._sorted_colors) - 1)
        is_strange = self._sorted_colors[places] != packed_HW
        if is_strange.any():
            row, column = (int(found[0]) for found in np.nonzero(is_strange))
            same = int((packed_HW == packed_HW[row, column]).sum())
            others = len(np.unique(packed_HW[is_strange])) - 1
            raise WrongLabels(
                f"{name} has the color {color_text(pixels_HWC[row, column].tolist())} at {column},{row}, which no "
                f"class has ({same} of {packed_HW.size} pixels{f', and {others} more such colors' * bool(others)}); "
                f"add it to the color table ({TABLES}), by the name void if it is to be ignored, or correct "
                "the file (colors must not be blended at edges)"
            )
        labels = self._color_order[places]
        return np.where(labels < self.total, labels, IGNORE).astype(np.uint8)

    @cached_property
    def _table(self) -> np.ndarray:
        """From what a file says to the label."""
        table = np.arange(256, dtype=np.int16) - self.reduce_zero_label
        void = [number for number, _ in self.void]
        table = np.where(np.isin(table, void), IGNORE, table - np.searchsorted(void, table))
        table[IGNORE] = 1 if self.is_binary else IGNORE
        if self.ignore is not None and self.ignore <= IGNORE:
            table[self.ignore] = IGNORE
        return np.where(table < 0, IGNORE, table).astype(np.uint8)

    @cached_property
    def _is_refused(self) -> np.ndarray:
        if self.is_binary:
            allowed = [0, IGNORE, *([] if self.ignore is None else [min(self.ignore, IGNORE)])]
            return ~np.isin(np.arange(256), allowed)
        return (self._table >= self.total) & (self._table != IGNORE)

    @cached_property
    def _color_order(self) -> np.ndarray:
        return np.argsort(_packed(self._all_colors))

    @cached_property
    def _sorted_colors(self) -> np.ndarray:
        return _packed(self._all_colors)[self._color_order]

    @cached_property
    def _all_colors(self) -> np.ndarray:
        """The colors of the classes, then those to be ignored, (N, 3)."""
        return np.array([*(self.colors or ()), *(color for _, color in self.void)])


def read_labeled(
    data: bytes,
    label_data: bytes,
    reader: Reads,
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


def sight_of_pair(name: str, data: bytes | Path, label_data: bytes | Path) -> Sight | None:
    """Return what an image and its label map, paths or bytes, show of the frame that labels are for.

    Returns:
        None if EXIF does not turn the image, if the label map has EXIF data, or if one cannot be read.
    """
    try:
        orientation, stored = look(data)
        if orientation == 1:
            return None
        label_orientation, label_size = look(label_data)
    except (UnreadableImage, OversizedImage, OSError):
        return None
    return sight_of(name, orientation, stored, label_size) if label_orientation == 1 else None


def shown(values: Sequence[int]) -> str:
    """At most eight values for a message, the first and the last."""
    few = [*values[:MOST_SHOWN]] if len(values) <= MOST_SHOWN else [*values[:4], "…", *values[-3:]]
    return ", ".join(map(str, few))


def _holds_numbers(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "P") or image.mode.startswith("I")


def _numbers(image: Image.Image, scale: int) -> np.ndarray:
    """The numbers of a gray or palette file as stored (H, W); `scale` is what gray values were multiplied by."""
    values_HW = np.asarray(image)
    if image.mode == "L":
        values_HW = values_HW // scale
    return values_HW.astype(np.uint8) if values_HW.dtype == bool else values_HW


def _values(image: Image.Image, data: bytes) -> list[int] | None:
    scale = _gray_scale(image, data)
    image.load()
    return np.unique(_numbers(image, scale)).tolist() if _holds_numbers(image) else None


def _check_exact(image: Image.Image, data: bytes, name: str) -> None:
    """Refuse files that do not keep what was written, or whose values Pillow does not give as they are.

    Raises:
        WrongLabels: lossy compression, several pages, or colors of 16 bits.
    """
    if image.format == "TIFF" and image.info.get("compression") in _LOSSY:
        raise WrongLabels(
            f"{name} is a TIFF file compressed as {image.info['compression']}, which changes class numbers; export it "
            "again without loss (LZW or deflate)"
        )
    pages = getattr(image, "n_frames", 1)
    if pages > 1:
        raise WrongLabels(f"{name} has {pages} pages; expected one label map per file, so save each page on its own")
    if image.format == "PNG" and (data[24], data[25]) == (16, _RGB):
        raise WrongLabels(f"{name} holds colors of 16 bits; expected 8 bits, as in the color table, so export it again")


def _opaque(image: Image.Image, name: str) -> np.ndarray:
    """The colors of an image (H, W, 3); what lies below transparent pixels is not known."""
    if image.mode == "RGBA" and np.asarray(image.getchannel("A")).min() < IGNORE:
        raise WrongLabels(f"{name} has transparent pixels; expected one opaque color per class, so fill them")
    return np.asarray(image.convert("RGB"))


def _no_table(pixels_HWC: np.ndarray, name: str) -> str:
    """What to say of a file with colors where the classes have none."""
    colors = np.unique(pixels_HWC.reshape(-1, 3), axis=0).tolist()
    few = "; ".join(map(color_text, colors[:4])) + ("; …" if len(colors) > 4 else "")
    is_gray = all(red == green == blue for red, green, blue in colors)
    gray = "Its three channels are equal: keep one of them, or" if is_gray else "Or"
    return (
        f"{name} holds colors, not class numbers ({few}); give each class its color in classes.json, as in "
        '[{"name": "sky", "color": [70, 130, 180]}], in class_dict.csv as name,r,g,b or in labelmap.txt as '
        f"name:r,g,b::. {gray} save it as a gray or palette PNG of class numbers"
    )


def _gray_scale(image: Image.Image, data: bytes) -> int:
    """What the gray values of a file were multiplied by when it was opened."""
    if image.format == "TIFF":
        return _SCALED.get(image.tag_v2.get(_BITS_TAG, (8,))[0], 1)  # pyright: ignore[reportAttributeAccessIssue]
    if image.format != "PNG" or data[25] != _GRAY:
        return 1
    return _SCALED.get(data[24], 1)


def color_text(color: Sequence[int]) -> str:
    """Red, green and blue for a message."""
    return ",".join(map(str, color))


def _packed(colors: np.ndarray) -> np.ndarray:
    """RGB in the last axis as one number each."""
    red, green, blue = np.moveaxis(colors.astype(np.int64), -1, 0)
    return red << 16 | green << 8 | blue

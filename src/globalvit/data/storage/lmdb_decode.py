"""Images from their bytes: by simplejpeg where it gives Pillow's pixels bit for bit, else as files are read.

Both decode by libjpeg-turbo, but each brings its own; so they are compared once in every process before simplejpeg is
trusted with anything. It is asked only for ordinary JPEGs: 8 bits, gray or three channels, and no APP1 segment, where
EXIF or XMP may turn the image. Whatever it objects to is read by Pillow, whose verdict counts.
"""

import logging
from functools import cache
from importlib.util import find_spec
from io import BytesIO

import numpy as np
from PIL import Image

from globalvit.data.common.images import MOST_PIXELS, RGB, read_image

logger = logging.getLogger(__name__)

START_OF_IMAGE, START_OF_SCAN = b"\xff\xd8", 0xDA
# Baseline, extended and progressive, all Huffman-coded; not lossless, hierarchical or arithmetic.
FRAMES = (0xC0, 0xC1, 0xC2)
# Tables, restart intervals, comments, and application segments other than APP1.
HARMLESS = frozenset({0xC4, 0xDB, 0xDD, 0xFE, 0xE0, *range(0xE2, 0xF0)})


def decode(data: bytes, name: str, channels: int = RGB, *, is_direct: bool = True) -> Image.Image:
    """Decode an image as `read_image` does, the same whichever way it goes.

    Args:
        data: the file's bytes.
        name: what error messages call the image.
        channels: as `read_image` takes them.
        is_direct: whether simplejpeg may be used where it is installed.

    Raises:
        UnreadableImage, OversizedImage, WrongChannels: as `read_image` does.
    """
    if is_direct and channels <= RGB and has_direct() and is_ordinary_jpeg(data):
        from simplejpeg import decode_jpeg

        try:
            return Image.fromarray(decode_jpeg(data, "RGB"))
        except ValueError:
            # Damaged, or odd in a way that Pillow may forgive: it decides, and words the error.
            return read_image(data, name)
    return read_image(data, name, channels)


@cache
def has_direct() -> bool:
    """Whether simplejpeg is installed and gives the same pixels as Pillow."""
    if find_spec("simplejpeg") is None:
        return False
    from simplejpeg import decode_jpeg

    is_same = all(np.array_equal(decode_jpeg(data, "RGB"), np.asarray(read_image(data))) for data in _samples())
    if not is_same:
        logger.warning("simplejpeg's pixels are not Pillow's here: Pillow decodes; update both to change that")
    return is_same


def is_ordinary_jpeg(data: bytes) -> bool:
    """Whether the segments before the first scan are such that both decoders must agree."""
    if data[:2] != START_OF_IMAGE:
        return False
    at, frames = 2, 0
    while at + 9 < len(data) and data[at] == 0xFF:
        kind, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if kind == START_OF_SCAN:
            return frames == 1
        if kind in FRAMES:
            frames += _is_plain_frame(data[at + 4 : at + 10])
        elif kind not in HARMLESS:
            return False
        at += 2 + length
    return False


def _is_plain_frame(frame: bytes) -> bool:
    precision, channels = frame[0], frame[5]
    pixels = int.from_bytes(frame[1:3]) * int.from_bytes(frame[3:5])
    return precision == 8 and channels in (1, 3) and 0 < pixels <= MOST_PIXELS


def _samples() -> list[bytes]:
    """Small JPEGs of odd size in all ways of storing color that are in use, baseline and progressive."""
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (37, 45, 3), dtype=np.uint8)).resize(
        (91, 75), Image.Resampling.BICUBIC
    )
    ways = [(image, subsampling) for subsampling in ("4:4:4", "4:2:2", "4:2:0")] + [(image.convert("L"), None)]
    return [_encoded(way, subsampling, progressive) for way, subsampling in ways for progressive in (False, True)]


def _encoded(image: Image.Image, subsampling: str | None, progressive: bool) -> bytes:
    stream = BytesIO()
    image.save(
        stream, "JPEG", quality=85, progressive=progressive, **({"subsampling": subsampling} if subsampling else {})
    )
    return stream.getvalue()

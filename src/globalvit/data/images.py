"""Reading images: an upright RGB image comes out whatever lies in the file, or an error that names the file.

Decided here: the content counts, not the extension; gray, palette and CMYK become RGB; transparency is laid over white;
16-bit values are scaled to 8 bits; EXIF's rotation is applied; the first frame of an animation is taken.
"""

import warnings
from collections.abc import Callable
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image

# Twice the number at which Pillow begins to warn of decompression bombs: 179 megapixels.
MOST_PIXELS = 178_956_970
# Pillow's other plugins are left out: some start programs (EPS runs Ghostscript), none holds photographs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
# Endings, in lower case, of the files in a folder that count as images.
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k"}
)
FULL_16_BIT = 65535
_ORIENTATION_TAG = 0x0112
# EXIF's orientation → what makes the image upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

T = TypeVar("T")


class UnreadableImage(ValueError):  # noqa: N818 (it says what is there)
    """A file that is no readable image; training and evaluation skip and count it."""


class OversizedImage(ValueError):  # noqa: N818
    """An image of more than 179 megapixels; it is never skipped, since it would be lost or exhaust the memory."""


class WrongLabels(ValueError):  # noqa: N818
    """Labels that cannot belong to their image; never skipped, since those of the whole set may be wrong."""


def read_image(source: str | PathLike[str] | bytes | BinaryIO, name: str | None = None) -> Image.Image:
    """Read an image as upright RGB.

    Args:
        source: a path, the file's bytes, or a binary stream.
        name: what error messages call the image; a path is its own name.

    Raises:
        FileNotFoundError, PermissionError, IsADirectoryError: a path that cannot be opened.
        UnreadableImage: empty, truncated, damaged, or in a format that is not read.
        OversizedImage: more than 179 megapixels.
    """
    return decode_image(source, to_rgb, name)


def decode_image(
    source: str | PathLike[str] | bytes | BinaryIO,
    convert: Callable[[Image.Image], T],
    name: str | None = None,
    formats: tuple[str, ...] = FORMATS,
) -> T:
    """Open an image in one of `formats` and hand it to `convert`; the rest is as in `read_image`.

    Raises:
        WrongLabels: `convert` says so.
    """
    if isinstance(source, (str, PathLike)):
        with Path(source).open("rb") as stream:
            return _decode_stream(stream, name or str(source), convert, formats)
    stream = BytesIO(source) if isinstance(source, bytes) else source
    return _decode_stream(stream, name or "the image", convert, formats)


def to_rgb(image: Image.Image, stored: tuple[int, int] | None = None) -> Image.Image:
    """An opened image of any mode as upright RGB; see the head of this file for what becomes of each.

    Args:
        image: as it is stored.
        stored: a height and width; an image of these is left as it is and not turned upright.

    Raises:
        UnreadableImage: floating-point or 32-bit pixels, whose range is not known.
    """
    image.load()
    if (image.height, image.width) != stored:
        image = _upright(image)
    if image.mode == "F":
        raise UnreadableImage("its pixels are floating-point numbers of unknown range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.has_transparency_data:
        return _over_white(image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _decode_stream(stream: BinaryIO, name: str, convert: Callable[[Image.Image], T], formats: tuple[str, ...]) -> T:
    """Decode a stream; Pillow's warnings of odd metadata are not for the user, who gets the image or an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(stream, formats=formats) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise _oversized(name)
                return convert(image)
        except (OversizedImage, WrongLabels, MemoryError):
            raise
        except Image.DecompressionBombError:
            raise _oversized(name) from None
        except Exception as error:
            # Decoders raise nearly anything on damaged files: OSError, SyntaxError, struct.error, zlib.error …
            reason = _reason(error, stream, formats)
            raise UnreadableImage(f"{name} cannot be read as an image: {reason}") from error


def _oversized(name: str) -> OversizedImage:
    return OversizedImage(
        f"{name} has more than {MOST_PIXELS // 1_000_000 + 1} megapixels; make it smaller or remove it"
    )


def _reason(error: Exception, stream: BinaryIO, formats: tuple[str, ...]) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        stream.seek(0)
        return f"it is none of {', '.join(formats)}" if stream.read(1) else "the file is empty"
    return " ".join(str(error).split()) or type(error).__name__


def _upright(image: Image.Image) -> Image.Image:
    turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION_TAG, 1))
    return image if turn is None else image.transpose(turn)


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Modes I;16 (0 … 65535) and I, in which Pillow gives 16-bit files of some formats."""
    values_HW = np.asarray(image).astype(np.int64)
    if values_HW.min() < 0 or values_HW.max() > FULL_16_BIT:
        raise UnreadableImage("its pixels have 32 bits and an unknown range; save it with 8 or 16 bits")
    return Image.fromarray(((values_HW * 255 + FULL_16_BIT // 2) // FULL_16_BIT).astype(np.uint8)).convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")

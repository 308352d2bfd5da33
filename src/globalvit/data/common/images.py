"""Reading images: an upright RGB image comes out whatever lies in the file, or an error that names the file.

Decided here: the content counts, not the extension; gray, palette and CMYK become RGB; transparency is laid over white;
16-bit values are scaled to 8 bits; EXIF's rotation is applied, once; the first frame of an animation is taken.
"""

import warnings
from collections.abc import Callable
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image

from globalvit.data.common.orientation import AS_STORED, UPRIGHT, Size
from globalvit.regular import check_regular

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
RGB = 3
# The mode of images of four channels, of which the fourth is a channel like the others, and no transparency.
FOUR = "RGBX"
_ORIENTATION_TAG = 0x0112
# Where Pillow keeps what says the orientation; an upright image must not say it again.
_TURNED_BY = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")

T = TypeVar("T")


class UnreadableImage(ValueError):  # noqa: N818 (it says what is there)
    """A file that cannot be read as an image; training and evaluation skip and count it."""


class OversizedImage(ValueError):  # noqa: N818
    """An image of more than 179 megapixels; it is never skipped, since it would be lost or exhaust the memory."""


class WrongLabels(ValueError):  # noqa: N818
    """Labels that cannot belong to their image; never skipped, since those of the whole set may be wrong."""


class WrongChannels(WrongLabels):
    """An image of another number of channels than the model takes; never skipped, since the whole set may be such."""


def read_image(
    source: str | PathLike[str] | bytes | BinaryIO, name: str | None = None, channels: int = RGB
) -> Image.Image:
    """Read an image as upright RGB, or with four channels as `RGBX`.

    Args:
        source: a path, the file's bytes, or a binary stream.
        name: what error messages call the image; a path is its own name.
        channels: those that the model takes, 1, 3 or 4.

    Raises:
        FileNotFoundError, PermissionError, IsADirectoryError: a path that cannot be opened.
        OSError: the path is a pipe, socket or device, which may have no end.
        UnreadableImage: empty, truncated, damaged, or in a format that is not read.
        OversizedImage: more than 179 megapixels.
        WrongChannels: four channels are expected, and it has another number.
    """
    if channels <= RGB:
        return decode_image(source, to_rgb, name)
    known = name or (str(source) if isinstance(source, str | PathLike) else "the image")
    return decode_image(source, lambda image: to_channels(image, channels, known), name)


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
        check_regular(source)
        with Path(source).open("rb") as stream:
            return _decode_stream(stream, name or str(source), convert, formats)
    stream = BytesIO(source) if isinstance(source, bytes) else source
    return _decode_stream(stream, name or "the image", convert, formats)


def read_oriented(
    source: str | PathLike[str] | bytes | BinaryIO, name: str | None = None, channels: int = RGB
) -> tuple[Image.Image, int]:
    """Read an image as `read_image` does; return it and the orientation its EXIF data state, 1 … 8."""
    return decode_image(source, lambda image: _oriented(image, channels, name or "the image"), name)


def look(source: str | PathLike[str] | bytes | BinaryIO, name: str | None = None) -> tuple[int, Size]:
    """Return the orientation (1 … 8) and the stored height and width that a file's first bytes state.

    Raises:
        UnreadableImage, OSError: as `read_image` does, as far as the header shows it.
    """
    return decode_image(source, _looked_at, name)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an opened image of any mode as upright RGB that no longer carries an EXIF orientation.

    The head of this file says what becomes of each mode. An upright image comes back as it is: calling this twice
    turns nothing twice.

    Raises:
        UnreadableImage: floating-point or 32-bit pixels, whose range is not known.
    """
    image = upright(image)
    if image.mode == "F":
        raise UnreadableImage("its pixels are floating-point numbers of unknown range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.has_transparency_data:
        return _over_white(image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def to_channels(image: Image.Image, channels: int, name: str = "the image") -> Image.Image:
    """Return an opened image upright, as RGB or, where the model takes four channels, with the four that it has.

    Raises:
        UnreadableImage: what `to_rgb` refuses.
        WrongChannels: four channels are expected, and it has another number.
    """
    if channels <= RGB:
        return to_rgb(image)
    image = upright(image)
    if image.mode not in ("RGBA", "CMYK", FOUR):
        raise WrongChannels(
            f"{name} has {len(image.getbands())} channels ({image.mode}); expected {channels}, since the model takes "
            f"--in-chans {channels}: save it as RGBA (PNG or TIFF, 8 bits), or train with --in-chans {RGB}"
        )
    return image if image.mode == FOUR else Image.frombytes(FOUR, image.size, image.tobytes())


def upright(image: Image.Image) -> Image.Image:
    """Return an opened image turned as its EXIF data ask for, and without them.

    Every image that this package shows a network goes through here. The image that was given stays as it was.
    """
    image.load()
    turn = UPRIGHT[orientation(image)]
    if turn is AS_STORED:
        return image
    turned = turn.image(image)
    for key in _TURNED_BY:
        turned.info.pop(key, None)
    return turned


def orientation(image: Image.Image) -> int:
    """Return the orientation that an image's EXIF data state, 1 … 8; 1 where they state none that exists."""
    stated = image.getexif().get(_ORIENTATION_TAG, 1)
    return stated if isinstance(stated, int) and stated in UPRIGHT else 1


def _oriented(image: Image.Image, channels: int, name: str) -> tuple[Image.Image, int]:
    # Pillow turns a TIFF file when its pixels are loaded and then forgets how; PNG may state it behind the pixels.
    stated = orientation(image) if image.format == "TIFF" else None
    image.load()
    return to_channels(image, channels, name), stated or orientation(image)


def _looked_at(image: Image.Image) -> tuple[int, Size]:
    # Pillow would decode a whole PNG to find EXIF data behind its pixels.
    stated = 1 if image.format == "PNG" and "exif" not in image.info else orientation(image)
    size = image.height, image.width
    return stated, UPRIGHT[stated].size(size) if image.format == "TIFF" else size


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


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Modes I;16 (0 … 65535) and I, in which Pillow gives 16-bit files of some formats."""
    values_HW = np.asarray(image).astype(np.int64)
    if values_HW.min() < 0 or values_HW.max() > FULL_16_BIT:
        raise UnreadableImage("its pixels have 32 bits and an unknown range; save it with 8 or 16 bits")
    return Image.fromarray(((values_HW * 255 + FULL_16_BIT // 2) // FULL_16_BIT).astype(np.uint8)).convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")

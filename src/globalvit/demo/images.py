"""Images that come to the page and leave it: read safely, bounded in size, sent as data within the page.

What becomes of odd files is decided in `data.common.images`; nothing else here decodes what came from outside.
"""

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from globalvit.data.common.images import read_image

MIB = 2**20
# What is kept of an image: its longer side at most. Networks see less of it, and pages show less.
LONGEST_KEPT = 1280
LONGEST_SHOWN = 1024
# Smaller images are sent without loss; so are the few pixels of a digit.
LOSSLESS = 384 * 384
LONGEST_NAME = 60
NOT_ARRIVED = "that file did not arrive; choose it again"


class RefusedUpload(ValueError):  # noqa: N818 (it says what became of it)
    """A file that the page does not take; the text is one line for the person who sent it."""


def receive(path: str, name: str, folder: Path, most_bytes: int) -> Image.Image:
    """Read an uploaded file and delete it.

    Args:
        path: where the server put it; a browser may claim anything here.
        name: what the file was called, for messages.
        folder: the only one that uploads lie in.
        most_bytes: larger files are refused.

    Returns:
        Upright RGB, at most 1280 pixels a side.

    Raises:
        RefusedUpload: no file that was uploaded, too large, or no readable image.
    """
    try:
        file = Path(path).resolve()
        is_upload = file.is_relative_to(folder.resolve()) and file.is_file()
    except (OSError, ValueError) as error:
        raise RefusedUpload(NOT_ARRIVED) from error
    if not is_upload:
        raise RefusedUpload(NOT_ARRIVED)
    try:
        if file.stat().st_size > most_bytes:
            raise RefusedUpload(too_large(name, file.stat().st_size, most_bytes))
        return bounded(read_image(file, shorten(name)))
    except (ValueError, OSError, MemoryError) as error:
        raise error if isinstance(error, RefusedUpload) else RefusedUpload(one_line(error)) from error
    finally:
        file.unlink(missing_ok=True)


def too_large(name: str, found: int, most_bytes: int) -> str:
    """What is said of a file of too many bytes."""
    return (
        f"{shorten(name)} has {found / MIB:.1f} MiB, and this page takes {most_bytes / MIB:g} MiB at most; make it "
        "smaller, or start the page with a larger --max-upload-mb"
    )


def bounded(image: Image.Image) -> Image.Image:
    """The image with a longer side of at most 1280 pixels."""
    factor = LONGEST_KEPT / max(image.size)
    return image if factor >= 1 else image.resize(_scaled(image, factor), Image.Resampling.BICUBIC, reducing_gap=2)


def enlarged(image: Image.Image, least: int) -> Image.Image:
    """The image, its sides a whole number of times as long where the longer one has fewer than `least` pixels."""
    return image.resize(_scaled(image, -(-least // max(image.size))), Image.Resampling.NEAREST)


def data_url(image: Image.Image, longest: int = LONGEST_SHOWN) -> str:
    """An image as an address that holds its own data; it is reduced to `longest` pixels a side."""
    factor = min(1.0, longest / max(image.size))
    if factor < 1:
        image = image.resize(_scaled(image, factor), Image.Resampling.BICUBIC, reducing_gap=2)
    is_small = image.width * image.height <= LOSSLESS
    kind, options = ("png", {}) if is_small else ("jpeg", {"quality": 90})
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def shorten(name: str) -> str:
    """A name of at most 60 printable characters."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name).strip() or "the image"
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 2]}…{name[-LONGEST_NAME // 3 :]}"


def one_line(error: BaseException) -> str:
    """The text of an error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def example_images(source: Any, indices: Sequence[int]) -> list[tuple[str, Image.Image]]:
    """(name, RGB) of some images of a data set whose `read` gives an image, alone or with its labels."""
    pairs = [(source.name(index), source.read(index)) for index in indices]
    return [(name, read[0] if isinstance(read, tuple) else read) for name, read in pairs]


def _scaled(image: Image.Image, factor: float) -> tuple[int, int]:
    return max(1, round(image.width * factor)), max(1, round(image.height * factor))

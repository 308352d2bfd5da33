"""Images that come to the page and leave it: read safely, bounded in size, sent as data within the page.

What becomes of odd files is decided in `data.common.images`; nothing else here decodes what came from outside.
"""

import base64
from io import BytesIO
from pathlib import Path

from PIL import Image

from globalvit.data.common.images import read_image

MIB = 2**20
# Longer sides: of what is kept of an image, of what is sent, and at least, by repeating pixels, of what is shown.
LONGEST_KEPT, LONGEST_SHOWN, LEAST_SHOWN = 1280, 1024, 384
# Smaller images are sent without loss.
LOSSLESS = 384 * 384
LONGEST_NAME = 60


class RefusedUpload(ValueError):  # noqa: N818 (it says what became of it)
    """A file that the page does not take; the text is one line for the person who sent it."""


def receive(path: str, name: str, folder: Path, most_bytes: int) -> Image.Image:
    """Read an uploaded file and delete it; return upright RGB, at most 1280 pixels a side.

    The path is what a browser claims, the name is for messages, and `folder` is the only one that uploads lie in.
    Raises RefusedUpload if it is not a file that was uploaded, too large, or not a readable image.
    """
    try:
        file = Path(path).resolve()
        if not (file.is_relative_to(folder.resolve()) and file.is_file()):
            raise FileNotFoundError(path)
    except (OSError, ValueError) as error:
        raise RefusedUpload("that file did not arrive; choose it again") from error
    try:
        if (size := file.stat().st_size) > most_bytes:
            raise RefusedUpload(
                f"{shorten(name)} has {size / MIB:.1f} MiB, and this page takes at most {most_bytes / MIB:g} MiB; make "
                "it smaller, or start the page with a larger --max-upload-mb"
            )
        return bounded(read_image(file, shorten(name)))
    except (ValueError, OSError, MemoryError) as error:
        raise error if isinstance(error, RefusedUpload) else RefusedUpload(one_line(error)) from error
    finally:
        file.unlink(missing_ok=True)


def bounded(image: Image.Image, longest: int = LONGEST_KEPT) -> Image.Image:
    """Reduce an image to a longer side of at most `longest` pixels."""
    factor = longest / max(image.size)
    return image if factor >= 1 else image.resize(_scaled(image, factor), Image.Resampling.BICUBIC, reducing_gap=2)


def enlarged(image: Image.Image, least: int = LEAST_SHOWN) -> Image.Image:
    """Repeat the pixels of an image whose longer side has fewer than `least`."""
    return image.resize(_scaled(image, -(-least // max(image.size))), Image.Resampling.NEAREST)


def data_url(image: Image.Image) -> str:
    """Return an address that holds the image itself, at most 1024 pixels a side."""
    image = bounded(image, LONGEST_SHOWN)
    kind, options = ("png", {}) if image.width * image.height <= LOSSLESS else ("jpeg", {"quality": 90})
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def shorten(name: str) -> str:
    """Return a name of at most 60 printable characters."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name).strip() or "the image"
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 2]}…{name[-LONGEST_NAME // 3 :]}"


def one_line(error: BaseException) -> str:
    """Return the text of an error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _scaled(image: Image.Image, factor: float) -> tuple[int, int]:
    return max(1, round(image.width * factor)), max(1, round(image.height * factor))

"""Images that the page receives and sends: read safely, limited in size, embedded in the page.

Files are decoded only by `data.common.images`, which handles unusual ones.
"""

import base64
from io import BytesIO
from pathlib import Path

from PIL import Image

from globalvit.data.common.images import read_image

MIB = 2**20
# Longer sides: of what is kept of an image, of what is sent, and at least, by repeating pixels, of what is shown.
LONGEST_KEPT, LONGEST_SHOWN, LEAST_SHOWN = 1280, 1024, 384
# Smaller images are sent losslessly.
LOSSLESS = 384 * 384
LONGEST_NAME = 60


class RefusedUpload(ValueError):  # noqa: N818 (reads better without Error)
    """An upload that the page rejects; the message is one line for the user."""


def receive(path: str, name: str, folder: Path, most_bytes: int) -> Image.Image:
    """Read an uploaded file and delete it; return an upright RGB image of at most 1280 pixels per side.

    The path comes from the browser, the name is for messages, and `folder` is the only one that contains uploads.
    Raises RefusedUpload if the file was not uploaded, is too large, or is not a readable image.
    """
    try:
        file = Path(path).resolve()
        if not (file.is_relative_to(folder.resolve()) and file.is_file()):
            raise FileNotFoundError(path)
    except (OSError, ValueError) as error:
        raise RefusedUpload("the file was not uploaded; choose it again") from error
    try:
        if (size := file.stat().st_size) > most_bytes:
            raise RefusedUpload(
                f"{shorten(name)}: expected at most {most_bytes / MIB:g} MiB, got {size / MIB:.1f} MiB; make it "
                "smaller, or start the page with a larger --max-upload-mb"
            )
        return bounded(read_image(file, shorten(name)))
    except (ValueError, OSError, MemoryError) as error:
        raise error if isinstance(error, RefusedUpload) else RefusedUpload(one_line(error)) from error
    finally:
        file.unlink(missing_ok=True)


def bounded(image: Image.Image, longest: int = LONGEST_KEPT) -> Image.Image:
    """Shrink an image to a longer side of at most `longest` pixels."""
    factor = longest / max(image.size)
    return image if factor >= 1 else image.resize(_scaled(image, factor), Image.Resampling.BICUBIC, reducing_gap=2)


def enlarged(image: Image.Image, least: int = LEAST_SHOWN) -> Image.Image:
    """Enlarge an image by repeating pixels if its longer side has fewer than `least`."""
    return image.resize(_scaled(image, -(-least // max(image.size))), Image.Resampling.NEAREST)


def data_url(image: Image.Image) -> str:
    """Return a data URL of the image, at most 1024 pixels per side."""
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
    """Return an error message in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _scaled(image: Image.Image, factor: float) -> tuple[int, int]:
    return max(1, round(image.width * factor)), max(1, round(image.height * factor))

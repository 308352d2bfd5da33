"""Images with a classifier's predictions written below."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from globalvit.printable import printable

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

# Small images are enlarged and big ones reduced, so that the text has the same size on all.
SHORTEST_WIDTH, LONGEST_SIDE = 480, 1024
LINE, MARGIN, TEXT = 34, 14, 19
PAPER, INK, FAINT, BAR = "#ffffff", "#1a1a1a", "#e8edf2", "#9ec5f4"


def label_map(image: "Image.Image", names: Sequence[str], scores: Sequence[float]) -> "Image.Image":
    """Draw a panel under an image: one line per class, with a bar as long as its probability (0 … 1)."""
    from PIL import Image, ImageDraw

    image = fit(image)
    panel = 2 * MARGIN + LINE * len(names)
    page = Image.new("RGB", (max(image.width, SHORTEST_WIDTH), image.height + panel), PAPER)
    page.paste(image, ((page.width - image.width) // 2, 0))
    pen = ImageDraw.Draw(page)
    for i, (name, score) in enumerate(zip(names, scores, strict=True)):
        _draw_line(pen, page.width, image.height + MARGIN + i * LINE, name, score)
    return page


def _draw_line(pen: "ImageDraw.ImageDraw", width: int, top: int, name: str, score: float) -> None:
    left, right, bottom = MARGIN, width - MARGIN, top + LINE - 6
    pen.rounded_rectangle((left, top, right, bottom), 5, fill=FAINT)
    if (end := left + score * (right - left)) >= left + 5:
        pen.rounded_rectangle((left, top, end, bottom), 5, fill=BAR)
    percent, middle = f"{100 * score:.1f} %", (top + bottom) / 2
    pen.text((right - 8, middle), percent, INK, font(), anchor="rm")
    room = right - left - 32 - pen.textlength(percent, font())
    pen.text((left + 8, middle), _shorten(pen, name, room), INK, font(), anchor="lm")


def _shorten(pen: "ImageDraw.ImageDraw", text: str, room: float) -> str:
    """Shorten `text` to `room` pixels, with an ellipsis if it was cut."""
    text = printable(text)
    if pen.textlength(text, font()) <= room:
        return text
    while text and pen.textlength(text + "…", font()) > room:
        text = text[:-1]
    return text + "…"


def fit(image: "Image.Image") -> "Image.Image":
    """Return a copy that is large enough to write text under; an image that is large enough keeps its size."""
    from PIL import Image

    scale = LONGEST_SIDE / max(image.size)
    if scale > 1:
        scale = min(scale, max(1.0, SHORTEST_WIDTH / image.width))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Bicubic would blur the few pixels of a very small image into a stain.
    return image.resize(size, Image.Resampling.NEAREST if scale > 4 else Image.Resampling.BICUBIC)


def font() -> "ImageFont.FreeTypeFont":
    """Return the font of the panel."""
    from globalvit.drawing import fonts

    return fonts.font(TEXT)

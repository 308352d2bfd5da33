"""The font of captions."""

from functools import cache
from pathlib import Path

import matplotlib
from PIL import ImageFont


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which ships with matplotlib and covers most alphabets; `size` is in pixels."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)

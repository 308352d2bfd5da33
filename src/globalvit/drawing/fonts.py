"""The font of captions."""

from functools import cache
from pathlib import Path

import matplotlib
from PIL import ImageFont


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings and which has most alphabets; `size` in pixels."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)

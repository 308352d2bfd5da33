"""Explanations laid over their images, one by one and as a sheet with captions.

Legend: `H W` pixels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw

from globalvit.drawing.fonts import font
from globalvit.drawing.samples import shorten
from globalvit.explain.explanation import Explanation
from globalvit.explain.scene import Box
from globalvit.tasks.inputs import as_image

# Perceptually even, and its dark end leaves the image's own colors visible.
COLORS = colormaps["inferno"]
# What the model did not see keeps this part of its brightness.
UNLIT = 0.25
# How much of the colors shows where the map is at its lowest, as a part of `opacity`.
FAINTEST = 0.6
# How much of its color the image keeps below, so that heat is not taken for a yellow fruit.
COLORED = 0.2
# Attention from 20 % below the mean to 20 % above it takes all colors; a narrower range takes fewer.
LEAST_RANGE = 0.2
TILE, MARGIN, TEXT, LINE = 300, 10, 14, 19
COLUMNS = 4
PAPER, INK, FAINT = "#ffffff", "#1a1a1a", "#5b6470"
MARK, RIM = "#ffffff", "#000000"


def overlay(image: Any, explanation: Explanation, *, opacity: float = 0.5) -> Image.Image:
    """Color an image by a map, from its smallest value (dark) to its largest (bright).

    What the model did not see is unlit. The pixel or region that the look started from is marked, and the windows it
    was confined to are outlined.

    Args:
        image: the one that was explained, as a path, PIL image or uint8 array; a reduced or enlarged copy will do.
        explanation: what `explain` found in it.
        opacity: of the brightest colors, 0 … 1.

    Raises:
        ValueError: `opacity` is out of range, or the image has other proportions than the one explained.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity={opacity} must be in 0 … 1")
    image = as_image(image)
    _check_proportions(image, explanation)
    heat_HW = _even(explanation, explanation.placed(image.height, image.width))
    colors_HWC = COLORS(heat_HW)[..., :3] * 255
    alpha_HW1 = opacity * (FAINTEST + (1 - FAINTEST) * heat_HW[..., None])
    pixels_HWC = np.asarray(image, np.float32)
    base_HWC = COLORED * pixels_HWC + (1 - COLORED) * pixels_HWC.mean(-1, keepdims=True)
    blended_HWC = base_HWC * (1 - alpha_HW1) + colors_HWC * alpha_HW1
    drawn_HWC = pixels_HWC * UNLIT
    seen = explanation.seen(image.height, image.width)
    drawn_HWC[seen] = blended_HWC[seen]
    drawn = Image.fromarray(np.rint(drawn_HWC).astype(np.uint8))
    _mark(drawn, explanation)
    return drawn


def contact_sheet(
    image: Any,
    explanations: Sequence[Explanation],
    *,
    title: str | None = None,
    beside: Sequence[tuple[Image.Image, str]] = (),
    columns: int = COLUMNS,
) -> Image.Image:
    """The image as the model saw it and the overlays beside it, each with a caption below.

    Args:
        image: the one that was explained, as a path, PIL image or uint8 array.
        explanations: what `explain` found in it.
        title: caption of the image itself (default: its size).
        beside: other images to show before the overlays, each with a caption.
        columns: tiles in a row at most.

    Raises:
        ValueError: there are no explanations, or the image has other proportions than the one explained.
    """
    if not explanations:
        raise ValueError("no explanations came; a contact sheet shows at least one")
    image = as_image(image)
    height, width = explanations[0].input_size
    fitted = _fitted(image)
    first = _tile(_seen(fitted, explanations[0]), title or f"{image.width}×{image.height}", f"seen at {width}×{height}")
    others = [_tile(_fitted(other), caption, "") for other, caption in beside]
    tiles = [
        first,
        *others,
        *(_tile(overlay(fitted, one, opacity=0.6), one.title, one.note) for one in explanations),
    ]
    # Rows alike: five tiles stand as three and two.
    columns = -(-len(tiles) // -(-len(tiles) // columns))
    across, down = tiles[0].width + MARGIN, tiles[0].height + MARGIN
    sheet = Image.new("RGB", (columns * across + MARGIN, -(-len(tiles) // columns) * down + MARGIN), PAPER)
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (MARGIN + number % columns * across, MARGIN + number // columns * down))
    return sheet


def _even(explanation: Explanation, map_HW: np.ndarray) -> np.ndarray:
    """Stretch the map to 0 … 1 over the range of its values; all 0 where they are equal.

    The range of attention is at least `LEAST_RANGE` around the mean, so that nearly uniform attention looks uniform.
    """
    low, high = float(explanation.shown.min()), float(explanation.shown.max())
    # Values that differ by rounding only show nothing.
    if high - low <= 1e-6 * abs(high):
        return np.zeros_like(map_HW)
    if explanation.kind != "grad_cam":
        mean = float(explanation.shown.mean())
        low, high = min(low, (1 - LEAST_RANGE) * mean), max(high, (1 + LEAST_RANGE) * mean)
    return ((map_HW - low) / (high - low)).clip(0, 1)


def _check_proportions(image: Image.Image, explanation: Explanation) -> None:
    height, width = explanation.original_size
    # A copy in whole pixels is off by up to half of one on each side.
    if abs(image.width * height - image.height * width) > max(height, width):
        raise ValueError(
            f"expected the explained image, {width}×{height}, or a resized copy, got {image.width}×{image.height}; "
            f"pass the image that was given to explain"
        )


def _seen(image: Image.Image, explanation: Explanation) -> Image.Image:
    """The image, unlit where the model saw nothing."""
    pixels_HWC = np.asarray(image, np.float32)
    drawn_HWC = pixels_HWC * UNLIT
    seen = explanation.seen(image.height, image.width)
    drawn_HWC[seen] = pixels_HWC[seen]
    return Image.fromarray(np.rint(drawn_HWC).astype(np.uint8))


def _mark(drawn: Image.Image, explanation: Explanation) -> None:
    """Outline windows and region, ring the pixel: white with a dark rim, to be seen on anything."""
    scale = drawn.width / explanation.original_size[1], drawn.height / explanation.original_size[0]
    pen = ImageDraw.Draw(drawn)
    for cells in explanation.outlines:
        _rectangle(pen, explanation.box_of(cells), scale, wide=False)
    if explanation.region is not None:
        _rectangle(pen, explanation.region, scale, wide=True)
    if explanation.pixel is not None:
        x, y = ((place + 0.5) * factor for place, factor in zip(explanation.pixel, scale, strict=True))
        radius = max(3, min(drawn.size) // 40)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=RIM, width=max(3, radius // 2 + 2))
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=MARK, width=max(1, radius // 3))


def _rectangle(pen: ImageDraw.ImageDraw, box: Box, scale: tuple[float, float], *, wide: bool) -> None:
    left, top, right, bottom = (round(edge * scale[number % 2]) for number, edge in enumerate(box))
    corners = (left, top, max(right - 1, left), max(bottom - 1, top))
    if wide:
        pen.rectangle(corners, outline=RIM, width=4)
    pen.rectangle(corners, outline=MARK, width=2 if wide else 1)


def _fitted(image: Image.Image) -> Image.Image:
    """A copy that fills a tile; the pixels of a very small image stay visible."""
    scale = TILE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 4 else Image.Resampling.BICUBIC)


def _tile(image: Image.Image, title: str, figures: str) -> Image.Image:
    tile = Image.new("RGB", (TILE, TILE + 2 * LINE + 4), PAPER)
    tile.paste(image, ((TILE - image.width) // 2, (TILE - image.height) // 2))
    pen = ImageDraw.Draw(tile)
    pen.text((1, TILE + 3), shorten(title, TILE, font(TEXT)), INK, font(TEXT))
    pen.text((1, TILE + 3 + LINE), shorten(figures, TILE, font(TEXT - 2)), FAINT, font(TEXT - 2))
    return tile

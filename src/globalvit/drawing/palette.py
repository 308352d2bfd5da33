"""Colors for classes."""

import colorsys
from functools import cache

import numpy as np

DARK = (40, 40, 44)
# Advancing the hue by the golden ratio keeps any number of colors apart.
TURN = 0.6180339887
# Alternating saturation and brightness.
SHADES = ((0.85, 0.95), (0.55, 0.75), (0.45, 1.0), (0.9, 0.6), (0.7, 0.85))


@cache
def default_palette(total: int) -> np.ndarray:
    """Return distinct colors for `total` classes, uint8 (K, 3); the first, mostly the background's, is dark."""
    colors: list[tuple[int, int, int]] = [DARK]
    for number in range(total - 1):
        rgb = colorsys.hsv_to_rgb((0.98 + number * TURN) % 1, *SHADES[number % len(SHADES)])
        colors.append((round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2])))
    palette = np.array(colors[:total], np.uint8)
    palette.setflags(write=False)
    return palette

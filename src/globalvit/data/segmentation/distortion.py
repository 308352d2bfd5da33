"""Photometric distortion: brightness, contrast, saturation and hue, each changed in half of all images.

Liu et al., arXiv 1512.02325 (SSD), as segmentation's published recipes use it: contrast comes before saturation and
hue or after them, at random, and values are rounded and clipped after every step.
"""

import numpy as np
from PIL import Image

BRIGHTNESS = 32
# Contrast and saturation are multiplied by one less to one more than this.
FACTOR = 0.5
# 18 steps of OpenCV's hue circle, which has 180.
HUE_DEGREES = 36
_VALUES = np.arange(256, dtype=np.float64)


def distort(image: Image.Image, strength: float, random: np.random.Generator) -> Image.Image:
    """Distort an RGB image.

    Args:
        image: the image.
        strength: of all four changes; 1 is the published recipes', 0 changes nothing.
        random: what decides.
    """
    image = _brighten(image, strength, random)
    is_contrast_first = random.random() < 0.5
    image = _contrast(image, strength, random) if is_contrast_first else image
    image = _recolor(image, strength, random)
    return image if is_contrast_first else _contrast(image, strength, random)


def _brighten(image: Image.Image, strength: float, random: np.random.Generator) -> Image.Image:
    if random.random() < 0.5:
        return image
    return image.point(_table(_VALUES + strength * random.uniform(-BRIGHTNESS, BRIGHTNESS)) * 3)


def _contrast(image: Image.Image, strength: float, random: np.random.Generator) -> Image.Image:
    return image if random.random() < 0.5 else image.point(_table(_VALUES * _factor(strength, random)) * 3)


def _recolor(image: Image.Image, strength: float, random: np.random.Generator) -> Image.Image:
    """Saturation and hue."""
    same = _VALUES.astype(int).tolist()
    saturation = same if random.random() < 0.5 else _table(_VALUES * _factor(strength, random))
    hue = same if random.random() < 0.5 else _turned(strength * random.uniform(-HUE_DEGREES, HUE_DEGREES))
    if saturation == hue == same:
        return image
    return image.convert("HSV").point([*hue, *saturation, *same]).convert("RGB")


def _factor(strength: float, random: np.random.Generator) -> float:
    return 1 + strength * random.uniform(-FACTOR, FACTOR)


def _turned(degrees: float) -> list[int]:
    """Pillow's hue circle has 256 steps."""
    return (np.rint(_VALUES + degrees * 256 / 360).astype(int) % 256).tolist()


def _table(values: np.ndarray) -> list[int]:
    return np.rint(values).clip(0, 255).astype(int).tolist()

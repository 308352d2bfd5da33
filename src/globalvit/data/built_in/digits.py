"""1,797 handwritten digits, 8×8 pixels, that come with the package: UCI Optical Recognition of Handwritten Digits.

E. Alpaydin and C. Kaynak, CC BY 4.0. 360 digits, the same share of each class, are held out as the split `val`.
"""

from functools import cache
from importlib.resources import files
from io import BytesIO

import numpy as np
from PIL import Image

from globalvit.data.common.folders import DIGITS

FULL = 16  # the images' values are 0 … 16
VALIDATION_NAMES = ("val", "validation", "test")


class Digits:
    """The split `train` (1,437 digits) or `val` (360) as a `Source`; images are 8×8 RGB, dark strokes bright.

    Raises:
        ValueError: another split.
    """

    classes = tuple("0123456789")

    def __init__(self, split: str) -> None:
        if split not in ("train", *VALIDATION_NAMES):
            raise ValueError(f"the built-in digits have no split {split!r}; there are 'train' and 'val'")
        images, labels, held_out = _arrays()
        chosen = np.isin(np.arange(len(labels)), held_out) == (split in VALIDATION_NAMES)
        self._images_NHW = images[chosen]
        self._labels = labels[chosen]
        self._numbers = np.flatnonzero(chosen)

    def __len__(self) -> int:
        return len(self._labels)

    def label(self, index: int) -> int:
        """The digit that image `index` shows."""
        return int(self._labels[index])

    def name(self, index: int) -> str:
        """Such as `digits/17`, the number among all 1,797."""
        return f"{DIGITS}/{self._numbers[index]}"

    def read(self, index: int) -> Image.Image:
        """Image `index` as RGB, its values stretched to 0 … 255."""
        values_HW = self._images_NHW[index].astype(np.uint16)
        return Image.fromarray(((values_HW * 255 + FULL // 2) // FULL).astype(np.uint8)).convert("RGB")


@cache
def _arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (1797, 8, 8), labels (1797,), positions of the 360 that are held out."""
    file = files("globalvit.data.built_in") / "digits.npz"
    with np.load(BytesIO(file.read_bytes())) as arrays:
        return arrays["images"], arrays["labels"], arrays["held_out"]

"""Random erasing in two steps: a sample's record is drawn beside its image, and applied on the device later.

Zhong et al., arXiv 1708.04896, with the distribution of timm's implementation: 2 % to a third of the area, sides in a
ratio of 0.3 to 1/0.3. The record says exactly what to erase, so it does not matter where and when that happens.
"""

import math
from collections.abc import Sequence
from random import Random
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from globalvit.data.common.randomness import Purpose, derive

Mode = Literal["pixel", "rand", "const"]
SHARE_OF_AREA = (0.02, 1 / 3)
LOG_RATIO = (math.log(0.3), -math.log(0.3))
TRIES = 10


class Box(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int


class Erasure(NamedTuple):
    """What to erase of one image: rectangles, and the seed of the noise they are filled with."""

    boxes: tuple[Box, ...]
    seed: int


def draw_erasure(size: tuple[int, int], probability: float, count: int, key: tuple[int, ...]) -> Erasure:
    """Draw the record of one image.

    Args:
        size: height and width in pixels.
        probability: of erasing anything.
        count: rectangles at most, when anything is erased; they share the area.
        key: such as (seed, epoch, index); the record is a function of it.
    """
    seed = derive(Purpose.ERASE, *key)
    random = Random(seed)
    if random.random() >= probability:
        return Erasure((), seed)
    number = random.randint(1, count)
    boxes = [_draw_box(random, size, number) for _ in range(number)]
    return Erasure(tuple(box for box in boxes if box), seed)


def erase(images_BCHW: Tensor, records: Sequence[Erasure], mode: Mode) -> Tensor:
    """Fill the rectangles of normalized images in place: with noise by `pixel`, one color (`rand`) or 0 (`const`).

    The noise is standard normal and a function of the record, on each kind of device its own.
    """
    for image_CHW, record in zip(images_BCHW, records, strict=True):
        if record.boxes:
            generator = torch.Generator(images_BCHW.device).manual_seed(record.seed)
            for box in record.boxes:
                _fill(_cut(image_CHW, box), mode, generator)
    return images_BCHW


def _draw_box(random: Random, size: tuple[int, int], number: int) -> Box | None:
    """One rectangle smaller than the image; None in the rare case that none was found."""
    image_height, image_width = size
    for _ in range(TRIES):
        area = random.uniform(*SHARE_OF_AREA) * image_height * image_width / number
        ratio = math.exp(random.uniform(*LOG_RATIO))
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < height < image_height and 0 < width < image_width:
            top, left = random.randint(0, image_height - height), random.randint(0, image_width - width)
            return Box(top, left, height, width)
    return None


def _cut(image_CHW: Tensor, box: Box) -> Tensor:
    return image_CHW[:, box.top : box.top + box.height, box.left : box.left + box.width]


def _fill(area_CHW: Tensor, mode: Mode, generator: torch.Generator) -> None:
    channels = area_CHW.shape[0]
    shape = {"pixel": area_CHW.shape, "rand": (channels, 1, 1), "const": (channels, 1, 1)}[mode]
    if mode == "const":
        area_CHW.zero_()
    else:
        area_CHW.copy_(torch.randn(shape, generator=generator, device=area_CHW.device, dtype=area_CHW.dtype))

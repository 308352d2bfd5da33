"""Boxes, masks and names drawn over an image, and as a sheet of training samples.

Legend: `N` objects · `C` channels · `H W` pixels.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from globalvit.drawing.palette import default_palette
from globalvit.drawing.samples import INK, MARGIN, PAPER
from globalvit.drawing.statistics import Batch, Statistics
from globalvit.printable import printable

# Narrower images are enlarged by a whole number, so that names can be read beside what they name.
NARROWEST = 384
ALPHA = 0.45
# Objects of a single class differ by colors that come again after so many.
COLORS_OF_OBJECTS = 24
SMALLEST_TEXT, LARGEST_TEXT = 11, 28
PADDING = 2
# Brighter grounds, 0 … 255, take dark letters; the shares of red, green and blue in brightness are Rec. 601's.
BRIGHT, LUMA = 140, (0.299, 0.587, 0.114)
# Side of the square that a sheet shows an image in.
TILE = 320
Color = tuple[int, int, int]


def draw_instances(
    image: Image.Image,
    boxes: Any,
    labels: Any,
    names: Sequence[str],
    scores: Any = None,
    masks: Any = None,
) -> Image.Image:
    """Draw objects over an image.

    A class has a color; where there is only one class, its objects differ and its name is not written. Names that would
    cover one another are left out, those of later objects first.

    Args:
        image: RGB.
        boxes: (N, 4) xyxy in its pixels, the most important first.
        labels: (N,), positions in `names`.
        names: of all classes.
        scores: (N,), written in percent.
        masks: bool (N, H, W).

    Returns:
        The image; if it was narrower than 384 pixels, enlarged by a whole number.
    """
    factor = -(-NARROWEST // image.width)
    return _drawn(_Objects.of(boxes, labels, scores, masks), image, names, factor)


def instance_sheet(batch: Batch, classes: Sequence[str], transform: Statistics, columns: int = 4) -> Image.Image:
    """Draw the images of a training batch with their boxes, masks and names in rows.

    Args:
        batch: lists `images`, normalized float (C, H, W), `boxes` (N, 4), `labels` (N,) and, where there are some,
            `masks` (N, H, W).
        classes: names of the labels.
        transform: what normalized the images.
        columns: images in a row.
    """
    masks = batch.get("masks") or [None] * len(batch["images"])
    objects = map(_Objects.of, batch["boxes"], batch["labels"], [None] * len(masks), masks)
    images = [transform.denormalize(image.detach().cpu().float()) for image in batch["images"]]
    tiles = [_tile(image, found, classes) for image, found in zip(images, objects, strict=True)]
    width, height = (max(sides) + MARGIN for sides in zip(*(tile.size for tile in tiles), strict=True))
    columns = min(columns, len(tiles))
    sheet = Image.new("RGB", (columns * width + MARGIN, -(-len(tiles) // columns) * height + MARGIN), PAPER)
    for place, tile in enumerate(tiles):
        sheet.paste(tile, (MARGIN + place % columns * width, MARGIN + place // columns * height))
    return sheet


def _tile(image_CHW: Tensor, objects: "_Objects", classes: Sequence[str]) -> Image.Image:
    """An image with its objects, its longer side as long as a tile's or, if it was enlarged, nearly so."""
    values_HWC = image_CHW.permute(1, 2, 0).numpy()
    image = Image.fromarray(values_HWC[:, :, 0] if values_HWC.shape[2] == 1 else values_HWC).convert("RGB")
    factor = TILE / max(image.size)
    return _drawn(objects, image, classes, int(factor) if factor >= 1 else factor)


class _Objects(NamedTuple):
    """What is drawn: float64 boxes, and the rest as `draw_instances` takes it, on the CPU."""

    boxes: Tensor
    labels: list[int]
    scores: list[float] | None
    masks: Tensor | None

    @classmethod
    def of(cls, boxes: Any, labels: Any, scores: Any, masks: Any) -> Self:
        return cls(
            torch.as_tensor(boxes).reshape(-1, 4).double().cpu(),
            torch.as_tensor(labels).tolist(),
            None if scores is None else torch.as_tensor(scores).tolist(),
            None if masks is None else torch.as_tensor(masks).bool().cpu(),
        )


def _drawn(objects: _Objects, image: Image.Image, names: Sequence[str], factor: float) -> Image.Image:
    """The objects over the image, both resized by a factor."""
    size = (round(image.width * factor), round(image.height * factor))
    image = image.resize(size, Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.BILINEAR)
    if not objects.labels:
        return image
    boxes_N4 = objects.boxes * factor
    colors = _colors(objects.labels, len(names))
    pixels_CHW = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    if objects.masks is not None:
        masks_NHW = interpolate(objects.masks[:, None].to(torch.uint8), size=size[::-1])[:, 0].bool()
        pixels_CHW = draw_segmentation_masks(pixels_CHW, masks_NHW, ALPHA, list(colors))
    line = max(round(max(size) / 200), 2)
    pixels_CHW = draw_bounding_boxes(pixels_CHW, boxes_N4, colors=list(colors), width=line)
    image = Image.fromarray(pixels_CHW.permute(1, 2, 0).numpy())
    _write(image, boxes_N4.tolist(), _texts(objects, names), colors)
    return image


def _texts(objects: _Objects, names: Sequence[str]) -> list[str]:
    """Name and score of each object, as far as they tell anything."""
    texts = [printable(names[label]) if len(names) > 1 else "" for label in objects.labels]
    if objects.scores is None:
        return texts
    return [f"{text} {100 * score:.0f}".strip() for text, score in zip(texts, objects.scores, strict=True)]


def _write(image: Image.Image, boxes: Sequence[Sequence[float]], texts: Sequence[str], colors: Sequence[Color]) -> None:
    """Write texts on the boxes' upper edges, or below where the image ends, unless another text is in the way."""
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(min(max(max(image.size) / 40, SMALLEST_TEXT), LARGEST_TEXT))
    taken: list[tuple[float, float, float, float]] = []
    for (left, top, _, _), text, color in zip(boxes, texts, colors, strict=True):
        if not text:
            continue
        _, _, width, height = pen.textbbox((0, 0), text, font)
        width, height = width + 2 * PADDING, height + 2 * PADDING
        left = max(min(left, image.width - width), 0)
        top = top - height if top >= height else top
        place = (left, top, left + width, top + height)
        if not any(_overlap(place, other) for other in taken):
            taken.append(place)
            pen.rectangle(place, color)
            is_bright = sum(weight * value for weight, value in zip(LUMA, color, strict=True)) > BRIGHT
            pen.text((left + PADDING, top + PADDING), text, INK if is_bright else PAPER, font)


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _colors(labels: Sequence[int], classes: int) -> list[Color]:
    """A color for each object. The palette's first one, the background's, is not used."""
    if classes > 1:
        palette, numbers = default_palette(classes + 1)[1:], labels
    else:
        palette, numbers = default_palette(COLORS_OF_OBJECTS + 1)[1:], range(len(labels))
    return [tuple(palette[number % len(palette)].tolist()) for number in numbers]

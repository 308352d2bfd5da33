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

# Narrower images are enlarged by an integer factor, so that names are readable.
NARROWEST = 384
ALPHA = 0.45
# Number of colors for objects of a single class before they repeat.
COLORS_OF_OBJECTS = 24
SMALLEST_TEXT, LARGEST_TEXT = 11, 28
PADDING = 2
# Backgrounds brighter than this, 0 … 255, get dark text; the brightness weights of red, green and blue are Rec. 601's.
BRIGHT, LUMA = 140, (0.299, 0.587, 0.114)
# Side of a tile on a sheet.
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

    Each class has a color. If there is only one class, each object has a color and the class name is omitted. Names
    that would overlap are omitted, later objects first.

    Args:
        image: RGB.
        boxes: (N, 4) xyxy in pixels, most important first.
        labels: (N,), indices into `names`.
        names: of all classes.
        scores: (N,), shown in percent.
        masks: bool (N, H, W).

    Returns:
        The image, enlarged by an integer factor if it was narrower than 384 pixels.
    """
    factor = -(-NARROWEST // image.width)
    return _drawn(_Objects.of(boxes, labels, scores, masks), image, names, factor)


def instance_sheet(batch: Batch, classes: Sequence[str], transform: Statistics, columns: int = 4) -> Image.Image:
    """Draw the images of a training batch with their boxes, masks and names in rows.

    Args:
        batch: lists `images`, normalized float (C, H, W), `boxes` (N, 4), `labels` (N,) and optionally `masks`
            (N, H, W).
        classes: names of the labels.
        transform: the transform that normalized the images.
        columns: images per row.
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
    """Return an image with its objects, its longer side as long as a tile's, or nearly so if it was enlarged."""
    values_HWC = image_CHW.permute(1, 2, 0).numpy()
    image = Image.fromarray(values_HWC[:, :, 0] if values_HWC.shape[2] == 1 else values_HWC[:, :, :3]).convert("RGB")
    factor = TILE / max(image.size)
    return _drawn(objects, image, classes, int(factor) if factor >= 1 else factor)


class _Objects(NamedTuple):
    """Return float64 boxes, and the other arguments of `draw_instances`, on the CPU."""

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
    """Return the objects over the image, both resized by a factor."""
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
    """Return the name and score of each object, if there are several classes or scores."""
    texts = [printable(names[label]) if len(names) > 1 else "" for label in objects.labels]
    if objects.scores is None:
        return texts
    return [f"{text} {100 * score:.0f} %".strip() for text, score in zip(texts, objects.scores, strict=True)]


def _write(image: Image.Image, boxes: Sequence[Sequence[float]], texts: Sequence[str], colors: Sequence[Color]) -> None:
    """Write texts above the boxes, or inside if the image ends there; skip texts that would overlap another."""
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
    """Return a color per object; the palette's first color, the background's, is not used."""
    if classes > 1:
        palette, numbers = default_palette(classes + 1)[1:], labels
    else:
        palette, numbers = default_palette(COLORS_OF_OBJECTS + 1)[1:], range(len(labels))
    return [tuple(palette[number % len(palette)].tolist()) for number in numbers]

"""Label overlays: of one image, and as a sheet of training samples.

Legend: `B` images · `C` channels · `K` classes · `H W` pixels.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from globalvit.drawing.palette import default_palette
from globalvit.drawing.samples import INK, MARGIN, NARROWEST, PAPER, TEXT, shorten
from globalvit.drawing.statistics import Batch, Statistics
from globalvit.printable import printable

IGNORE = 255
ALPHA = 0.55
# Width of the dark stripes over ignored pixels.
STRIPE = 4
LINE = TEXT + 6
# Maximum width of a name in the legend.
WIDEST_NAME = 160
# Smaller images are enlarged by an integer factor before a legend is added.
SMALLEST_WITH_LEGEND = 240


def overlay_labels(
    image: Image.Image,
    labels_HW: np.ndarray,
    palette: np.ndarray,
    *,
    alpha: float = ALPHA,
    names: Sequence[str] | None = None,
) -> Image.Image:
    """Color an image by its labels; ignored pixels (255) are striped.

    Args:
        image: RGB.
        labels_HW: uint8 (H, W), of the image's size.
        palette: one color per class, uint8 (K, 3).
        alpha: opacity of the colors, 0 … 1.
        names: class names; if given, a legend of the classes that occur, largest first, is added below.

    Raises:
        ValueError: the sizes differ.
    """
    if labels_HW.shape != image.size[::-1]:
        raise ValueError(
            f"expected labels of the image's size {image.width}×{image.height}, got "
            f"{labels_HW.shape[1]}×{labels_HW.shape[0]}; resize one of them"
        )
    pixels_HWC = np.asarray(image, dtype=np.float32)
    colors_HWC = palette[labels_HW.clip(max=len(palette) - 1)]
    is_ignored = labels_HW == IGNORE
    blended_HWC = np.where(is_ignored[..., None], pixels_HWC, pixels_HWC * (1 - alpha) + colors_HWC * alpha)
    blended_HWC[is_ignored & _stripes(labels_HW.shape)] *= 1 - alpha
    drawn = Image.fromarray(np.rint(blended_HWC).astype(np.uint8))
    if names is None:
        return drawn
    factor = -(-SMALLEST_WITH_LEGEND // drawn.width)
    drawn = drawn.resize((drawn.width * factor, drawn.height * factor), Image.Resampling.NEAREST)
    return _stacked([drawn, draw_legend(labels_HW, palette, names, drawn.width)])


def draw_legend(labels: np.ndarray, palette: np.ndarray, names: Sequence[str], width: int) -> Image.Image:
    """Return a strip with the colors and names of the classes that occur in `labels`, largest first, in columns."""
    counts = np.bincount(labels.ravel(), minlength=IGNORE + 1)
    present = [int(label) for label in np.argsort(-counts[: len(names)], kind="stable") if counts[label]]
    font, names = ImageFont.load_default(TEXT), [printable(name) for name in names]
    widest = max((font.getlength(names[label]) for label in present), default=0)
    cell = min(int(min(widest, WIDEST_NAME)) + LINE + 2 * MARGIN, width)
    columns = max(width // cell, 1)
    strip = Image.new("RGB", (width, -(-len(present) // columns) * LINE + MARGIN), PAPER)
    pen = ImageDraw.Draw(strip)
    for place, label in enumerate(present):
        left, top = place % columns * cell, place // columns * LINE + MARGIN // 2
        pen.rectangle((left + 2, top + 2, left + TEXT, top + TEXT), tuple(palette[label].tolist()), INK)
        room = cell - LINE - MARGIN
        pen.text((left + LINE, top), shorten(names[label], room, font), INK, font)
    return strip


def label_sheet(
    batch: Batch,
    classes: Sequence[str],
    transform: Statistics,
    palette: np.ndarray | None = None,
    columns: int = 4,
) -> Image.Image:
    """Draw the images of a training batch in rows, each next to its label overlay, with a legend below.

    Args:
        batch: `images` normalized float (B, C, H, W), `labels` uint8 (B, H, W).
        classes: names of the labels.
        transform: the transform that normalized the images.
        palette: one color per class, uint8 (K, 3); None uses the default palette.
        columns: images per row.
    """
    palette = default_palette(len(classes)) if palette is None else palette
    images_BHWC = transform.denormalize(batch["images"].detach().cpu().float()).permute(0, 2, 3, 1).numpy()
    labels_BHW = batch["labels"].cpu().numpy()
    tiles = [_pair(image, labels, palette) for image, labels in zip(images_BHWC, labels_BHW, strict=True)]
    width, height = (side + MARGIN for side in tiles[0].size)
    columns = min(columns, len(tiles))
    sheet = Image.new("RGB", (columns * width + MARGIN, -(-len(tiles) // columns) * height + MARGIN), PAPER)
    for place, tile in enumerate(tiles):
        sheet.paste(tile, (MARGIN + place % columns * width, MARGIN + place // columns * height))
    return _stacked([sheet, draw_legend(labels_BHW, palette, classes, sheet.width)])


def _pair(image_HWC: np.ndarray, labels_HW: np.ndarray, palette: np.ndarray) -> Image.Image:
    """Return an image, enlarged if it is small, with its label overlay to the right."""
    image = Image.fromarray(image_HWC[:, :, 0] if image_HWC.shape[2] == 1 else image_HWC[:, :, :3]).convert("RGB")
    factor = -(-NARROWEST // image.width)
    size = (image.width * factor, image.height * factor)
    pair = Image.new("RGB", (2 * size[0], size[1]))
    pair.paste(image.resize(size, Image.Resampling.NEAREST), (0, 0))
    large_HW = labels_HW.repeat(factor, axis=0).repeat(factor, axis=1)
    pair.paste(overlay_labels(image.resize(size, Image.Resampling.NEAREST), large_HW, palette), (size[0], 0))
    return pair


def _stripes(shape: tuple[int, ...]) -> np.ndarray:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows + columns) // STRIPE % 2 == 0


def _stacked(images: Sequence[Image.Image]) -> Image.Image:
    """Stack images of equal width vertically."""
    stack = Image.new("RGB", (images[0].width, sum(image.height for image in images)), PAPER)
    top = 0
    for image in images:
        stack.paste(image, (0, top))
        top += image.height
    return stack

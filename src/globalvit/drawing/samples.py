"""Sheet of training images as the model gets them, each with its class below."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from globalvit.drawing.statistics import Batch, Statistics
from globalvit.printable import printable

# Smaller images are enlarged by an integer factor, so that a label fits below and every pixel is visible.
NARROWEST, MARGIN, TEXT = 160, 6, 14
PAPER, INK = "#ffffff", "#1a1a1a"
# Classes named below a mixed image: CutMix and Mixup combine two.
MOST_CLASSES, SMALLEST_SHARE = 2, 0.06


def sample_sheet(batch: Batch, classes: Sequence[str], transform: Statistics, columns: int = 8) -> Image.Image:
    """Draw the images of a batch in rows.

    Args:
        batch: `images` normalized float (B, C, H, W), `labels` (B,), and `targets` (B, K) if images were mixed.
        classes: names of the labels.
        transform: the transform that normalized the images.
        columns: images per row.
    """
    images_BCHW = transform.denormalize(batch["images"].detach().cpu().float())
    captions = [_caption(batch, index, classes) for index in range(len(images_BCHW))]
    tiles = [_tile(image, caption) for image, caption in zip(images_BCHW, captions, strict=True)]
    width, height = tiles[0].size
    columns = min(columns, len(tiles))
    sheet = Image.new("RGB", (columns * width + MARGIN, -(-len(tiles) // columns) * height + MARGIN), PAPER)
    for place, tile in enumerate(tiles):
        sheet.paste(tile, (MARGIN + place % columns * width, MARGIN + place // columns * height))
    return sheet


def _caption(batch: Batch, index: int, classes: Sequence[str]) -> list[str]:
    """Return one line per class in the target of an image, without the small shares of label smoothing."""
    if "targets" not in batch:
        return [classes[int(batch["labels"][index])]]
    shares, labels = batch["targets"][index].topk(min(MOST_CLASSES, len(classes)))
    named = [(float(share), classes[int(label)]) for share, label in zip(shares, labels, strict=True)]
    named = [(share, name) for share, name in named if share > SMALLEST_SHARE]
    return [name for _, name in named] if len(named) == 1 else [f"{share:.2f} {name}" for share, name in named]


def _tile(image_CHW: Tensor, caption: Sequence[str]) -> Image.Image:
    values_HWC = image_CHW.permute(1, 2, 0).numpy()
    image = Image.fromarray(values_HWC[:, :, 0] if values_HWC.shape[2] == 1 else values_HWC[:, :, :3]).convert("RGB")
    factor = -(-NARROWEST // image.width)
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    tile = Image.new("RGB", (image.width + MARGIN, image.height + MOST_CLASSES * (TEXT + 4) + MARGIN), PAPER)
    tile.paste(image, (0, 0))
    pen, font = ImageDraw.Draw(tile), ImageFont.load_default(TEXT)
    for line, text in enumerate(caption):
        pen.text((1, image.height + 1 + line * (TEXT + 3)), shorten(text, image.width, font), INK, font)
    return tile


def shorten(text: str, room: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Shorten `text` to `room` pixels, with an ellipsis if it was cut."""
    text = printable(text)
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text + "…"

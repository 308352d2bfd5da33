"""Images of simple shapes, drawn when they are asked for: a set for trying out every task without a file.

Image i of a split is a function of (seed, split, i): one to four circles, squares and triangles, of which later ones
cover earlier ones, on a blotchy ground under noise. As fruits have their colors, so have the shapes: each kind keeps
to a third of the hues, so that a network learns in minutes to tell them. Pixels, boxes and masks say exactly what can
be seen; a shape that would be nearly covered is not drawn at all.

Legend: `N` shapes · `C` channels · `H W` pixels.
"""

import math
from collections.abc import Sequence
from colorsys import hsv_to_rgb
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from globalvit.data.built_in.digits import VALIDATION_NAMES
from globalvit.data.common.folders import SHAPES
from globalvit.data.detection.instances import GroundTruth, Instances, RunLengths, ground_truth_of
from globalvit.drawing.palette import default_palette

KINDS = ("circle", "square", "triangle")
BACKGROUND = "background"
# Images of each split, unless another number is asked for.
TOTALS = {"train": 800, "val": 100}
SIDE = 128
MOST_SHAPES = 4
# Longer side of a shape's box, as a part of the image's side.
SIZES = (20 / 128, 56 / 128)
# Of a shape that is drawn, at least this part of its pixels is seen.
LEAST_SEEN = 0.3
SMALLEST_SIDE = 32
# A kind's hues lie so far to either side of its own, as a part of the circle of all.
HUES = 0.13
_CORNERS = {1: 4, 2: 3}
_STREAM = 0x5A9E5


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """An image and its ground truth.

    Attributes:
        image: RGB.
        labels: uint8 (H, W): 0 is the background, 1, 2, 3 are the shapes.
        instances: boxes and masks of what is seen of the shapes, labels 0, 1, 2.
    """

    image: Image.Image
    labels: np.ndarray
    instances: Instances


def draw_scene(split: str, index: int, *, seed: int = 0, side: int = SIDE, kinds: Sequence[int] | None = None) -> Scene:
    """Draw one image.

    Args:
        split: `train` or `val`; nothing of one is in the other.
        index: number of the image.
        seed: of the whole set.
        side: of the image in pixels; the shapes grow with it.
        kinds: places in `KINDS` of the shapes to draw; None draws one to four at random.
    """
    random = np.random.default_rng((_STREAM, seed, list(TOTALS).index(split), index))
    chosen = random.integers(len(KINDS), size=random.integers(1, MOST_SHAPES + 1)).tolist() if kinds is None else kinds
    drawn = _seen([(kind, _mask(kind, side, random)) for kind in chosen])
    canvas_HWC, ground = _ground(side, random)
    labels_HW = np.zeros((side, side), np.uint8)
    colors = [ground]
    for kind, mask_HW in drawn:
        colors.append(_color(random, kind, colors))
        _paint(canvas_HWC, mask_HW, colors[-1], random)
        labels_HW[mask_HW] = kind + 1
    canvas_HWC += random.uniform(4, 14) * random.standard_normal(canvas_HWC.shape, dtype=np.float32)
    image = Image.fromarray(canvas_HWC.clip(0, 255).astype(np.uint8))
    return Scene(image, labels_HW, _instances(drawn, first_id=index * MOST_SHAPES + 1))


class _Shapes:
    """What the views of the set share.

    Args:
        split: `train`, or `val` by any of its names.
        total: images; None takes 800 of `train` and 100 of `val`.
        seed: of the whole set.
        side: of the images in pixels.

    Raises:
        ValueError: another split, no images, or images of less than 32 pixels.
    """

    classes: tuple[str, ...] = KINDS

    def __init__(self, split: str, total: int | None = None, *, seed: int = 0, side: int = SIDE) -> None:
        if split not in ("train", *VALIDATION_NAMES):
            raise ValueError(f"the built-in shapes have no split {split!r}; there are 'train' and 'val'")
        self.split = "train" if split == "train" else "val"
        self.total = TOTALS[self.split] if total is None else total
        self.seed, self.side = seed, side
        if self.total < 1 or side < SMALLEST_SIDE or seed < 0:
            raise ValueError(
                f"{self.total} shapes images of {side} pixels with seed {seed}: expected 1 or more, of "
                f"{SMALLEST_SIDE} pixels or more, with a seed from 0 on"
            )

    def __len__(self) -> int:
        return self.total

    def name(self, index: int) -> str:
        """Such as `shapes/train/17`."""
        return f"{SHAPES}/{self.split}/{index}"

    def scene(self, index: int) -> Scene:
        """Image `index` and everything about it."""
        return draw_scene(self.split, index, seed=self.seed, side=self.side)


class ClassifyShapes(_Shapes):
    """Images of one shape each, as many of every class, to be classified."""

    def label(self, index: int) -> int:
        """The shape in image `index`."""
        return index % len(KINDS)

    def scene(self, index: int) -> Scene:
        """Image `index` and everything about it."""
        return draw_scene(self.split, index, seed=self.seed, side=self.side, kinds=[self.label(index)])

    def read(self, index: int) -> Image.Image:
        """Image `index` as RGB."""
        return self.scene(index).image


class SegmentShapes(_Shapes):
    """Images with a label for each pixel."""

    classes = (BACKGROUND, *KINDS)
    is_binary = False

    @property
    def palette(self) -> np.ndarray:
        """A color for each class, uint8 (K, 3)."""
        return default_palette(len(self.classes))

    def read(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Image `index` as RGB, and its labels, uint8 (H, W)."""
        scene = self.scene(index)
        return scene.image, scene.labels


class DetectShapes(_Shapes):
    """Images with boxes and masks; the image's number is its id."""

    category_ids = tuple(range(1, len(KINDS) + 1))
    has_masks = True

    @property
    def sizes(self) -> np.ndarray:
        """Height and width of every image, int (len, 2)."""
        return np.full((len(self), 2), self.side)

    def ground_truth(self, index: int) -> GroundTruth:
        """What detections in image `index` are compared with."""
        return ground_truth_of(self.scene(index).instances, index, (self.side, self.side))

    def read(self, index: int) -> tuple[Image.Image, Instances]:
        """Image `index` as RGB, and its shapes."""
        scene = self.scene(index)
        return scene.image, scene.instances


def _mask(kind: int, side: int, random: np.random.Generator) -> np.ndarray:
    """A shape of random size, turn and place, wholly in the image: bool (H, W)."""
    corners = _CORNERS.get(kind)
    if corners is None:
        points = np.array([[-1.0, -1.0], [1.0, 1.0]])
    else:
        turns = np.arange(corners) + random.uniform(0, 1)
        # A triangle's corners move a little, so that it is not always of equal sides; a square stays one.
        turns += random.uniform(-0.12, 0.12, corners) if corners == 3 else 0
        points = np.stack([np.cos(turns * math.tau / corners), np.sin(turns * math.tau / corners)], axis=1)
    length = side * random.uniform(*SIZES)
    points = (points - points.min(axis=0)) * (length - 1) / np.ptp(points, axis=0).max()
    points += random.uniform(0, side - 1 - points.max(axis=0))
    image = Image.new("1", (side, side))
    pen = ImageDraw.Draw(image)
    draw = pen.ellipse if corners is None else pen.polygon
    draw([tuple(point) for point in points.tolist()], fill=1)
    return np.array(image)


def _seen(shapes: Sequence[tuple[int, np.ndarray]]) -> list[tuple[int, np.ndarray]]:
    """What is seen of each shape beneath those after it; shapes that are nearly covered are left out."""
    covered = np.zeros_like(shapes[0][1])
    seen: list[tuple[int, np.ndarray]] = []
    for kind, mask_HW in reversed(shapes):
        rest_HW = mask_HW & ~covered
        if rest_HW.sum() >= LEAST_SEEN * mask_HW.sum():
            seen.append((kind, rest_HW))
            covered |= mask_HW
    return seen[::-1]


def _ground(side: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A background float32 (H, W, C) of coarse and fine blotches, and its mean color."""
    # Nearly gray: the shapes have the colors.
    color = random.uniform(65, 190) + random.uniform(-25, 25, 3)
    canvas_HWC = np.broadcast_to(color.astype(np.float32), (side, side, 3)).copy()
    for cells, strength in ((random.integers(2, 6), 25), (random.integers(8, 25), 18)):
        blotches = random.uniform(-strength, strength, (int(cells), int(cells))).astype(np.float32)
        enlarged = Image.fromarray(blotches).resize((side, side), Image.Resampling.BICUBIC)
        canvas_HWC += np.asarray(enlarged)[:, :, None] * random.uniform(0.4, 1, 3).astype(np.float32)
    return canvas_HWC, color


def _color(random: np.random.Generator, kind: int, taken: Sequence[np.ndarray], least: float = 90) -> np.ndarray:
    """A color of a kind that differs from those taken: the first of a few `least` away, or the farthest."""
    hues = kind / len(KINDS) + random.uniform(-HUES, HUES, 12)
    strengths = random.uniform((0.55, 0.45), (1, 1), (12, 2))
    colors = [hsv_to_rgb(hue % 1, *strength) for hue, strength in zip(hues, strengths, strict=True)]
    candidates = 255 * np.array(colors)
    distances = np.linalg.norm(candidates[:, None] - np.stack(taken), axis=2).min(axis=1)
    return candidates[np.minimum(distances, least).argmax()]


def _paint(canvas_HWC: np.ndarray, mask_HW: np.ndarray, color: np.ndarray, random: np.random.Generator) -> None:
    """Fill a mask with a color that grows lighter in one direction."""
    rows, columns = np.nonzero(mask_HW)
    direction, strength = random.uniform(0, math.tau), random.uniform(0, 20)
    along = (rows - rows.mean()) * math.sin(direction) + (columns - columns.mean()) * math.cos(direction)
    canvas_HWC[rows, columns] = color + (along * strength / max(float(np.abs(along).max()), 1))[:, None]


def _instances(seen: Sequence[tuple[int, np.ndarray]], first_id: int) -> Instances:
    bitmaps = [mask_HW for _, mask_HW in seen]
    return Instances(
        boxes=np.array([_box(mask_HW) for mask_HW in bitmaps], np.float32),
        labels=np.array([kind for kind, _ in seen], np.int64),
        masks=tuple(map(RunLengths.of, bitmaps)),
        is_crowd=np.zeros(len(seen), bool),
        areas=np.array([mask_HW.sum() for mask_HW in bitmaps], np.float32),
        ids=np.arange(first_id, first_id + len(seen)),
    )


def _box(mask_HW: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

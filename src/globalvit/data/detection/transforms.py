"""Detection's training transform and its batches: whatever moves an image moves its boxes and masks alike.

The chains of resizing and cropping are the published ones; pixels are resampled once for the whole chain, so they are a
little sharper than after several steps. Crowds are not targets. A box that a crop cuts is clipped, and drawn close
around what is left of the mask where there is one.

Legend: `N` objects · `C` channels · `h w` pixels of an image · `H W` pixels of its image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from globalvit.data.common.randomness import Purpose, derive
from globalvit.data.common.samples import Batch, Item
from globalvit.data.common.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    INTERPOLATIONS,
    ChannelStatistics,
    FitTransform,
    as_range,
    to_tensor,
)
from globalvit.data.detection.instances import DetectSource, Instances
from globalvit.data.detection.placement import Placement

Sample = tuple[Image.Image, Instances]
Policy = Literal["resize", "detr", "jitter"]
# DETR's augmentation (Carion et al., 2020, section 4), in pixels where the shorter side is 800 at most.
FULL_SIDE = 800
SHORT_SIDES = tuple(range(480, 801, 32))
SIDES_BEFORE_CROP, LONGEST_BEFORE_CROP = (400, 500, 600), 4200
CROPS = (384, 600)
SMALLEST_SIDE, SMALLEST_SIDE_OF_DETR = 32, 64
# Thinner boxes are not targets: nothing of them is seen.
THINNEST = 1.0


class Target(NamedTuple):
    """An augmented image and what is in it.

    `image` uint8 (C, h, w), `boxes` float32 (N, 4) xyxy in its pixels, `labels` int64 (N,), `masks` bool (N, h, w), or
    None where the data set has none.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    masks: Tensor | None


@dataclass(frozen=True, kw_only=True)
class DetectTrainTransform(ChannelStatistics):
    """How images and objects are augmented for training; every choice is a function of (seed, epoch, index).

    `resize` (1x schedules) makes the shorter side `short_side`, unless the longer one would pass `long_side`. `detr`
    (3x) makes the shorter side one of 480, 512, … 800, and in half of the cases crops before: the shorter side is made
    400, 500 or 600, and 384 to 600 pixels of each side are kept; these numbers are for a `short_side` of 800 and go
    with it. `jitter` (large-scale jitter, Ghiasi et al., 2021) fits the image into a square of `crop` pixels, times a
    random scale. At last, where `crop` is given, at most so many pixels of each side are kept, and `jitter` pads to
    them at the right and below with the channels' mean.

    Args:
        policy: `resize`, `detr` or `jitter`.
        short_side: in pixels, at most.
        long_side: in pixels, at most.
        crop: largest height and width of the result; None keeps all.
        scale: of `jitter`, smallest and largest.
        hflip: probability of a horizontal flip.
        interpolation: `bicubic`, `bilinear`, `lanczos` or `nearest`.
        mean: of each channel, for values 0 … 1; one value means gray images.
        std: deviation of each channel.

    Raises:
        ValueError: a value is none of these.
    """

    policy: Policy = "resize"
    short_side: int = 800
    long_side: int = 1333
    crop: int | None = None
    scale: tuple[float, float] = (0.1, 2.0)
    hflip: float = 0.5
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        self.check_statistics()
        object.__setattr__(self, "scale", as_range("scale", self.scale))
        # Checks the interpolation and the sides.
        FitTransform(short_side=self.short_side, long_side=self.long_side, interpolation=self.interpolation)
        if self.policy not in get_args(Policy):
            raise ValueError(f"policy={self.policy!r} must be one of {', '.join(get_args(Policy))}")
        if self.policy == "detr" and self.short_side < SMALLEST_SIDE_OF_DETR:
            raise ValueError(f"short_side={self.short_side} must be {SMALLEST_SIDE_OF_DETR} or more for policy='detr'")
        if self.policy == "jitter" and self.crop is None:
            raise ValueError("policy='jitter' needs crop, the side of the square that images are fitted into")
        if self.crop is not None and self.crop < SMALLEST_SIDE:
            raise ValueError(f"crop={self.crop} must be {SMALLEST_SIDE} pixels or more")
        if not 0 <= self.hflip <= 1:
            raise ValueError(f"hflip={self.hflip} must be a probability, 0 … 1")

    def __call__(self, sample: Sample, seed: int, epoch: int, index: int) -> Target:
        """An image and its objects → an augmented image and what is left of them."""
        image, instances = sample
        random = np.random.Generator(np.random.PCG64(derive(Purpose.AUGMENT, seed, epoch, index)))
        placement = self._placement(image.height, image.width, random)
        image_Chw = to_tensor(placement.image(image, INTERPOLATIONS[self.interpolation]), self.channels)
        target = _target(image_Chw, instances, placement)
        return self._padded(target) if self.policy == "jitter" else target

    def prepare(self) -> None:
        """Nothing has to be built before the first image."""

    def _placement(self, height: int, width: int, random: np.random.Generator) -> Placement:
        """Where the pixels of an image of this size go."""
        placement = Placement.whole(height, width)
        if self.policy == "jitter":
            placement = self._jittered(placement, random)
        elif self.policy == "detr":
            placement = self._as_detr(placement, random)
        else:
            placement = _fitted(placement, self.short_side, self.long_side)
        if self.crop is not None:
            placement = _cropped(placement, self.crop, self.crop, random)
        return placement.flipped() if random.random() < self.hflip else placement

    def _as_detr(self, placement: Placement, random: np.random.Generator) -> Placement:
        unit = self.short_side / FULL_SIDE
        if random.random() < 0.5:
            placement = _fitted(placement, random.choice(SIDES_BEFORE_CROP) * unit, LONGEST_BEFORE_CROP * unit)
            smallest, largest = (round(side * unit) for side in CROPS)
            sides = placement.height, placement.width
            height, width = (int(random.integers(min(side, smallest), min(side, largest) + 1)) for side in sides)
            placement = _cropped(placement, height, width, random)
        return _fitted(placement, random.choice(SHORT_SIDES) * unit, self.long_side)

    def _jittered(self, placement: Placement, random: np.random.Generator) -> Placement:
        assert self.crop is not None
        factor = random.uniform(*self.scale) * self.crop / max(placement.height, placement.width)
        return placement.resized(*(max(round(side * factor), 1) for side in (placement.height, placement.width)))

    def _padded(self, target: Target) -> Target:
        assert self.crop is not None
        height, width = target.image.shape[1:]
        grounds = torch.tensor([round(255 * value) for value in self.mean], dtype=torch.uint8)
        image_Chw = grounds[:, None, None].repeat(1, self.crop, self.crop)
        image_Chw[:, :height, :width] = target.image
        masks = target.masks
        if masks is not None:
            masks = torch.nn.functional.pad(masks, (0, self.crop - width, 0, self.crop - height))
        return target._replace(image=image_Chw, masks=masks)


@dataclass(frozen=True)
class DetectEvalTransform:
    """From a sample to what is evaluated: the image as `fit` resizes it, and the image's own size."""

    fit: FitTransform

    def __call__(self, sample: Sample) -> tuple[Tensor, tuple[int, int]]:
        """An image and its objects → uint8 (C, h, w) and (H, W); the ground truth comes from the source."""
        image, _ = sample
        return self.fit.to_uint8(image), (image.height, image.width)


def collate_targets(_: Any, items: Sequence[Item]) -> Batch:
    """Training's batch: lists `images`, `boxes`, `labels` and, where the data set has them, `masks`: see `Target`."""
    targets: list[Target] = [item.value for item in items]
    batch: Batch = {
        "images": [target.image for target in targets],
        "boxes": [target.boxes for target in targets],
        "labels": [target.labels for target in targets],
    }
    masks = [target.masks for target in targets]
    return batch if any(one is None for one in masks) else batch | {"masks": masks}


def collate_ground_truth(source: DetectSource, items: Sequence[Item]) -> Batch:
    """Evaluation's batch: lists `images`, uint8 (C, h, w), `sizes`, (H, W), and `annotations`, a `GroundTruth` each."""
    return {
        "images": [item.value[0] for item in items],
        "sizes": [item.value[1] for item in items],
        "annotations": [source.ground_truth(item.index) for item in items],
    }


def _fitted(placement: Placement, short_side: float, long_side: float) -> Placement:
    fit = FitTransform(short_side=round(short_side), long_side=round(long_side))
    return placement.resized(*fit.fitted_size(placement.height, placement.width))


def _cropped(placement: Placement, height: int, width: int, random: np.random.Generator) -> Placement:
    """A random part of at most this height and width."""
    height, width = min(height, placement.height), min(width, placement.width)
    top = int(random.integers(placement.height - height + 1))
    left = int(random.integers(placement.width - width + 1))
    return placement.cropped(top, left, height, width)


def _target(image_Chw: Tensor, instances: Instances, placement: Placement) -> Target:
    """The objects of which something is seen."""
    boxes_N4 = placement.boxes(instances.boxes)
    edges = [placement.width, placement.height] * 2
    clipped_N4 = boxes_N4.clip(0, edges)
    is_cut = (clipped_N4 != boxes_N4).any(axis=1)
    kept = np.flatnonzero(~instances.is_crowd & _is_seen(clipped_N4))
    masks_Nhw = None
    if instances.masks is not None:
        masks_Nhw = np.empty((len(kept), placement.height, placement.width), bool)
        for place, number in enumerate(kept):
            masks_Nhw[place] = placement.bitmap(instances.masks[number].bitmap())
            if is_cut[number]:
                clipped_N4[number] = _closer(clipped_N4[number], masks_Nhw[place])
        has_pixels = masks_Nhw.any(axis=(1, 2)) & _is_seen(clipped_N4[kept])
        kept, masks_Nhw = kept[has_pixels], masks_Nhw if has_pixels.all() else masks_Nhw[has_pixels]
    return Target(
        image_Chw,
        torch.from_numpy(clipped_N4[kept].astype(np.float32)),
        torch.from_numpy(instances.labels[kept].astype(np.int64)),
        None if masks_Nhw is None else torch.from_numpy(masks_Nhw),
    )


def _is_seen(boxes_N4: np.ndarray) -> np.ndarray:
    return (boxes_N4[:, 2:] - boxes_N4[:, :2]).min(axis=1) >= THINNEST


def _closer(box: np.ndarray, mask_hw: np.ndarray) -> np.ndarray:
    """The part of a box in which its mask lies, or the box if the mask has no pixel."""
    rows, columns = np.flatnonzero(mask_hw.any(axis=1)), np.flatnonzero(mask_hw.any(axis=0))
    if not len(rows):
        return box
    near, far = [columns[0], rows[0]], [columns[-1] + 1, rows[-1] + 1]
    return np.concatenate([np.maximum(box[:2], near), np.minimum(box[2:], far)])

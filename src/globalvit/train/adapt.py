"""What the training images decide if a recipe leaves it open: the size of small images, the batch of small sets."""

import logging
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np

from globalvit.data.common.images import UnreadableImage
from globalvit.models.variants import ModelSpec
from globalvit.train.fields import TrainConfig

logger = logging.getLogger(__name__)

# Images with sides shorter than this are small, and train at the next multiple of STRIDE.
SMALL, STRIDE = 96, 32
MOST_READ = 15
# A batch has at most this part of the images, but not fewer than LEAST.
STEPS_PER_EPOCH, LEAST = 20, 8


def fit_size(config: TrainConfig, train: Any) -> TrainConfig:
    """Return the config of a classifier with an image size that fits small training images; logs one line.

    Images are enlarged to the size of weights that the run starts from, since those were trained at it.
    """
    is_open = config.img_size is None and not config.progressive
    if ModelSpec(model=config.model).kind != "classify" or not is_open:
        return config
    side = _typical_side(train)
    if side is None:
        return config
    size = STRIDE * -(-side // STRIDE)
    if config.weights is not None:
        logger.info(
            "the images have about %d px and are enlarged to the size of the weights; --image-size %d is faster, and "
            "often less accurate",
            *(side, size),
        )
        return config
    logger.info("the images have about %d px, so training uses %d px; --image-size overrides it", side, size)
    return replace(config, img_size=size)


def fit_batch(config: TrainConfig, images: int, parts: int, recipe: str) -> TrainConfig:
    """Return the config with a batch that gives a small set about 20 steps an epoch; logs one line.

    The learning rate of a step stays what it is with the recipe's own batch.

    Args:
        config: with `small_set` true, otherwise it stays as it is.
        images: training images.
        parts: forward passes of a step over all processes.
        recipe: its name, for the log.
    """
    wanted = min(max(images // STEPS_PER_EPOCH, LEAST), images) // parts
    # Mixing takes pairs of images.
    batch = max(wanted - wanted % 2, 1)
    if not config.small_set or batch >= config.batch_size:
        return config
    meant = config.global_batch and max(round(config.global_batch * batch / config.batch_size), 1)
    logger.info(
        "recipe %s: for %d training images, batch_size %d instead of %d gives %d steps an epoch, and the warm-up takes "
        "%g of %d epochs; --batch-size overrides it",
        *(recipe, images, batch, config.batch_size, images // (batch * parts), config.warmup_epochs),
        config.total_epochs,
    )
    return replace(config, batch_size=batch, global_batch=meant)


def _typical_side(train: Any) -> int | None:
    """Median of the longer sides of some images in pixels; None if it is not below `SMALL`."""
    chosen = np.unique(np.linspace(0, len(train) - 1, MOST_READ, dtype=int)).tolist()
    sides: list[int] = []
    for index in chosen:
        try:
            sides.append(max(train.read(index).size))
        except (UnreadableImage, OSError):
            continue
        # Photographs take long to read.
        if sum(side >= SMALL for side in sides) > len(chosen) // 2:
            return None
    return round(median(sides)) if sides and median(sides) < SMALL else None

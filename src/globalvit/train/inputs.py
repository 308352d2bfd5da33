"""From a config to what a run eats: the two splits, their transforms, and the batches of every step."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from PIL import Image

from globalvit.build import as_transform, preprocessing
from globalvit.data.common.holdout import DEFAULT_FRACTION, Subset, hold_out
from globalvit.data.common.images import RGB
from globalvit.data.common.loading import Batch, to_device
from globalvit.data.common.orientation import warn_of_frames
from globalvit.data.common.splits import NoSplitError, role_of
from globalvit.data.common.transforms import FitTransform
from globalvit.models.variants import as_size
from globalvit.tasks.task import Preprocessing, Task
from globalvit.train.feed import Feed
from globalvit.train.feeds import feed_for
from globalvit.train.fields import LAYOUTS, TrainConfig
from globalvit.weights.catalog import is_name
from globalvit.weights.load import resolve_checkpoint

logger = logging.getLogger(__name__)
Size = tuple[int, int]


@dataclass(frozen=True)
class Splits:
    """The images to train on and those to evaluate on, with the same classes.

    Attributes:
        train: to train on.
        val: to evaluate on.
        val_fraction: the part of the training images that was held out to evaluate on; 0 where `val` is a split.
    """

    train: Any
    val: Any
    val_fraction: float = 0.0

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels 0 … K−1."""
        return self.train.classes

    @property
    def is_multi_label(self) -> bool:
        """Whether images may have any number of labels."""
        return getattr(self.train, "is_multi_label", False)


def open_splits(config: TrainConfig) -> Splits:
    """Open the split to train on and the one to evaluate on, or hold images out for the latter.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: `data_dir` is not given, the data are not what they should be, or the classes not those asked for.
    """
    feed = feed_for(config)
    if config.data_dir is None:
        raise ValueError(f"no data: give --data-dir FOLDER with {LAYOUTS[feed.kind]}")
    train = feed.open_split(config.train_split)
    splits = _with_validation(config, feed, train)
    if config.num_classes not in (None, len(train.classes)):
        raise ValueError(
            f"num_classes={config.num_classes}, but {config.data_dir} has {len(train.classes)} classes; "
            "leave --num-classes out"
        )
    warn_of_frames(train)
    if not splits.val_fraction:
        warn_of_frames(splits.val)
    return splits


def open_held_out(config: TrainConfig, classes: Sequence[str] | None) -> Subset:
    """The training images that a run with this config holds out for validation, by its `val_fraction` and `seed`.

    Raises:
        FileNotFoundError, ValueError: see `Feed.open_split`.
    """
    whole = feed_for(config).open_split(config.train_split, classes, is_whole=True)
    return Subset(whole, hold_out(whole, config.val_fraction or DEFAULT_FRACTION, config.seed))


def _with_validation(config: TrainConfig, feed: Feed, train: Any) -> Splits:
    """Both splits; without a validation split, or where `val_fraction` asks for it, some images are held out."""
    if config.val_fraction and config.val_split:
        raise ValueError(
            f"expected --val-split or --val-fraction, got both ({config.val_split}, {config.val_fraction:g}); leave "
            "out one of them"
        )
    if config.val_split is not None and role_of(config.val_split) == "test":
        logger.warning(
            "--val-split %s: the test split chooses the best checkpoint, so its score there will be too good; hold "
            "images out for that with --val-fraction, and measure with globalvit validate --split %s",
            *(config.val_split, config.val_split),
        )
    if not config.val_fraction:
        try:
            return Splits(train, feed.open_split(config.val_split or "val", train.classes))
        except NoSplitError:
            if config.val_split is not None or config.val_fraction == 0:
                raise
    fraction = config.val_fraction or DEFAULT_FRACTION
    # Only detectors may train without some images that validation wants.
    whole = feed.open_split(config.train_split, train.classes, is_whole=True) if feed.kind == "detect" else train
    if feed.kind == "segment":
        logger.info("%s: reading %d label maps to hold out images of every class", config.data_dir, len(whole))
    val = Subset(whole, hold_out(whole, fraction, config.seed))
    taken = {val.name(index) for index in range(len(val))}
    rest = Subset(train, [index for index in range(len(train)) if train.name(index) not in taken])
    logger.info(
        "%s: %d images of %r are held out for validation and %d are left to train on (--val-fraction %g, seed %d); the "
        "same on every machine%s",
        *(config.data_dir, len(val), config.train_split, len(rest), fraction, config.seed),
        "" if config.val_fraction else "; no folder is called val, valid or validation, and test is never taken for it",
    )
    return Splits(rest, val, fraction)


def evaluation_transform(config: TrainConfig) -> Preprocessing:
    """The transform of the weights the run starts from, with what the config says otherwise."""
    own = preprocessing(
        config.model, config.weights if is_name(config.weights) else None, image_size=_windows_size(config)
    )
    if config.weights is not None and not is_name(config.weights):
        saved = as_transform(resolve_checkpoint(config.weights).preprocessing)
        # Another kind of task prepares its images in another way.
        own = saved if isinstance(saved, type(own)) else own
    chosen = with_settings(own.for_channels(config.in_chans), config)
    if config.in_chans > RGB:
        logger.info(
            "%d channels: colors are not augmented, mean %s and std %s (--mean, --std)",
            *(config.in_chans, *(", ".join(f"{one:g}" for one in values) for values in (chosen.mean, chosen.std))),
        )
    return chosen


def with_settings(transform: Preprocessing, config: TrainConfig) -> Preprocessing:
    """The transform with what the config says of it in place of its own."""
    chosen: dict[str, Any] = {"interpolation": config.interpolation, "mean": config.mean, "std": config.std}
    if isinstance(transform, FitTransform):
        chosen |= _sides(transform, config) | {"multiple": config.size_multiple}
    else:
        chosen |= {
            "image_size": None if config.img_size is None else as_size(config.img_size),
            "crop_ratio": config.crop_pct,
            "crop_mode": config.crop_mode,
        }
    return replace(transform, **{name: value for name, value in chosen.items() if value is not None})


def settle_transform(config: TrainConfig, transform: Preprocessing) -> TrainConfig:
    """The config with everything of the evaluation transform written out, so that nothing of it is implied."""
    shared: dict[str, Any] = {"interpolation": transform.interpolation, "mean": transform.mean, "std": transform.std}
    if isinstance(transform, FitTransform):
        sides = {"short_side": transform.short_side, "long_side": transform.long_side}
        return replace(config, size_multiple=transform.multiple, **sides, **shared)
    height, width = transform.image_size
    size = height if height == width else (height, width)
    return replace(config, img_size=size, crop_pct=transform.crop_ratio, crop_mode=transform.crop_mode, **shared)


def _windows_size(config: TrainConfig) -> Size | None:
    return None if config.img_size is None else as_size(config.img_size)


def _sides(transform: FitTransform, config: TrainConfig) -> dict[str, int | None]:
    """The bounds of the sides; a longer one that is not given keeps its ratio to the shorter."""
    long_side = config.long_side
    if long_side is None and config.short_side is not None and transform.short_side is not None:
        long_side = round(config.short_side * transform.long_side / transform.short_side)
    return {"short_side": config.short_side, "long_side": long_side}


def set_up(task: Task, config: TrainConfig) -> None:
    """Give a task what the config says of its losses and its evaluation."""
    feed_for(config).set_up(task)


class Inputs:
    """Batches of every step and of evaluation, for one process of many.

    Attributes:
        steps_per_epoch: optimizer steps of an epoch; images that fill no whole step are left out of it.
    """

    def __init__(
        self, config: TrainConfig, splits: Splits, transform: Preprocessing, device: torch.device, rank: int, world: int
    ) -> None:
        self.config, self.splits, self.device = config, splits, device
        self.transform = transform
        self.feed = feed_for(config)
        self.augmentation = self.feed.augmentation(transform)
        share: dict[str, Any] = {
            "batch_size": config.batch_size,
            "rank": rank,
            "world": world,
            "workers": config.workers,
            "pin_memory": device.type == "cuda",
        }
        self.training = self.feed.train_loader(splits.train, self.augmentation, seed=config.seed, **share)
        self.validation = self.feed.eval_loader(splits.val, transform, **share)
        self.steps_per_epoch = len(self.training) // config.grad_accum_steps
        if not self.steps_per_epoch:
            raise ValueError(
                f"{len(splits.train)} training images do not fill one step of {config.batch_size} images × "
                f"{world} process(es) × {config.grad_accum_steps} passes; lower --batch-size or --grad-accum-steps"
            )

    def steps(self, epoch: int, first: int) -> Iterator[list[Batch]]:
        """The batches of each step of an epoch from step `first` of it on, as the loader gives them."""
        passes = self.config.grad_accum_steps
        self.training.start_at(epoch, first * passes, self.image_size(epoch))
        batches = iter(self.training)
        for _ in range(self.steps_per_epoch - first):
            yield list(islice(batches, passes))

    def ready(self, batch: Batch, epoch: int, number: int) -> Batch:
        """A batch on the device, normalized, erased and mixed; `number` counts the batches of the whole run."""
        batch = to_device(batch, self.augmentation, self.device)
        is_on = not self.config.mixup_off_epoch or epoch < self.config.mixup_off_epoch
        batch = self.feed.finish(batch, number, is_on=is_on)
        if self.config.channels_last and isinstance(batch["images"], torch.Tensor):
            batch["images"] = batch["images"].contiguous(memory_format=torch.channels_last)
        return batch

    def sheet(self, batch: Batch) -> Image.Image:
        """An image of a training batch that is `ready`."""
        return self.feed.sheet(batch, self.splits.classes, self.transform)

    def image_size(self, epoch: int) -> Size | None:
        """Height and width of the training images of an epoch in pixels, where they change."""
        sizes = self.config.progressive
        if not sizes:
            return None
        return as_size(sizes[min(epoch * len(sizes) // self.config.total_epochs, len(sizes) - 1)])

    def names(self, batch: Batch) -> list[str]:
        """What the images of a training batch are called."""
        return [self.splits.train.name(index) for index in batch["indices"].tolist()]

    def share_skipped(self, gather: Callable[[Any], list[Any]]) -> int:
        """Let every process know all images that any could not read; returns how many they are.

        Raises:
            ValueError: they are too many.
        """
        accounts = (self.training.skipped, self.validation.skipped)
        for account in accounts:
            for reasons in gather(account.reasons):
                account.merge(reasons)
        return sum(map(len, accounts))

    def close(self) -> None:
        """End the workers."""
        self.training.close()
        self.validation.close()

"""From a config to what a run eats: the two splits, their transforms, and the batches of every step."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import torch

from globalvit.build import preprocessing
from globalvit.data.image_folder import Source, open_split
from globalvit.data.loading import Batch, Loader, eval_loader, to_device, train_loader
from globalvit.data.mixing import Mixing
from globalvit.data.transforms import EvalTransform, TrainTransform
from globalvit.models.variants import as_size
from globalvit.train.fields import TrainConfig
from globalvit.weights.catalog import is_name
from globalvit.weights.load import resolve_checkpoint

Size = tuple[int, int]


@dataclass(frozen=True)
class Splits:
    """The pictures to train on and those to evaluate on, with the same classes."""

    train: Source
    val: Source

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels 0 … K−1."""
        return self.train.classes


def open_splits(config: TrainConfig) -> Splits:
    """Open both splits of `data_dir`.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: `data_dir` is not given, a class is empty, or the classes are not those asked for.
    """
    if config.data_dir is None:
        raise ValueError("no data: give --data-dir FOLDER with train/CLASS/ and val/CLASS/, or --data-dir digits")
    train = open_split(config.data_dir, config.train_split)
    val = open_split(config.data_dir, config.val_split or "val", train.classes)
    if config.num_classes not in (None, len(train.classes)):
        raise ValueError(
            f"num_classes={config.num_classes}, but {config.data_dir} has {len(train.classes)} classes; "
            "leave --num-classes out"
        )
    return Splits(train, val)


def evaluation_transform(config: TrainConfig) -> EvalTransform:
    """The transform of the weights the run starts from, with what the config says otherwise."""
    if config.weights is None or is_name(config.weights):
        transform = preprocessing(config.model, config.weights)
    else:
        saved = resolve_checkpoint(config.weights).preprocessing
        transform = EvalTransform(**asdict(saved)) if saved else preprocessing(config.model)
    return with_settings(transform.for_channels(config.in_chans), config)


def with_settings(transform: EvalTransform, config: TrainConfig) -> EvalTransform:
    """The transform with what the config says of it in place of its own."""
    chosen: dict[str, Any] = {
        "image_size": None if config.img_size is None else as_size(config.img_size),
        "crop_ratio": config.crop_pct,
        "crop_mode": config.crop_mode,
        "interpolation": config.interpolation,
        "mean": config.mean,
        "std": config.std,
    }
    return replace(transform, **{name: value for name, value in chosen.items() if value is not None})


def settle_transform(config: TrainConfig, transform: EvalTransform) -> TrainConfig:
    """The config with everything of the evaluation transform written out, so that nothing of it is implied."""
    height, width = transform.image_size
    return replace(
        config,
        img_size=height if height == width else (height, width),
        crop_pct=transform.crop_ratio,
        crop_mode=transform.crop_mode,
        interpolation=transform.interpolation,
        mean=transform.mean,
        std=transform.std,
    )


def training_transform(config: TrainConfig, transform: EvalTransform) -> TrainTransform:
    """The augmentation of the config, ending in the size and statistics of the evaluation transform."""
    return TrainTransform(
        image_size=transform.image_size,
        scale=config.scale,
        ratio=config.ratio,
        hflip=config.hflip,
        vflip=config.vflip,
        aa=config.aa,
        color_jitter=config.color_jitter or None,
        interpolation=config.train_interpolation,
        reprob=config.reprob,
        remode=config.remode,
        recount=config.recount,
        mean=transform.mean,
        std=transform.std,
    )


class Inputs:
    """Batches of every step and of evaluation, for one process of many.

    Attributes:
        steps_per_epoch: optimiser steps of an epoch; images that fill no whole step are left out of it.
    """

    def __init__(
        self, config: TrainConfig, splits: Splits, transform: EvalTransform, device: torch.device, rank: int, world: int
    ) -> None:
        self.config, self.splits, self.device = config, splits, device
        self.transform = transform
        self.augmentation = training_transform(config, transform)
        share: dict[str, Any] = {
            "batch_size": config.batch_size,
            "rank": rank,
            "world": world,
            "workers": config.workers,
            "pin_memory": device.type == "cuda",
        }
        self.training = train_loader(splits.train, self.augmentation, seed=config.seed, **share)
        self.validation: Loader = eval_loader(splits.val, transform, **share)
        self.steps_per_epoch = len(self.training) // config.grad_accum_steps
        if not self.steps_per_epoch:
            raise ValueError(
                f"{len(splits.train)} training pictures do not fill one step of {config.batch_size} images × "
                f"{world} process(es) × {config.grad_accum_steps} passes; lower --batch-size or --grad-accum-steps"
            )
        self.mixing = Mixing(
            len(splits.classes),
            mixup=config.mixup,
            cutmix=config.cutmix,
            prob=config.mixup_prob,
            switch_prob=config.mixup_switch_prob,
            smoothing=config.smoothing,
            seed=config.seed,
        )
        self.mixing.check_batch_size(config.batch_size)

    def steps(self, epoch: int, first: int) -> Iterator[list[Batch]]:
        """The batches of each step of an epoch from step `first` of it on, as the loader gives them."""
        passes = self.config.grad_accum_steps
        self.training.start_at(epoch, first * passes, self.image_size(epoch))
        batches = iter(self.training)
        for _ in range(self.steps_per_epoch - first):
            yield list(islice(batches, passes))

    def ready(self, batch: Batch, epoch: int, number: int) -> Batch:
        """A batch on the device, normalised, erased and mixed; `number` counts the batches of the whole run."""
        batch = to_device(batch, self.augmentation, self.device)
        is_on = not self.config.mixup_off_epoch or epoch < self.config.mixup_off_epoch
        batch = self.mixing(batch, number, is_on=is_on)
        if self.config.channels_last:
            batch["images"] = batch["images"].contiguous(memory_format=torch.channels_last)
        return batch

    def image_size(self, epoch: int) -> Size:
        """Height and width of the training images of an epoch, in pixels."""
        sizes = self.config.progressive
        if not sizes:
            return self.transform.image_size
        return as_size(sizes[min(epoch * len(sizes) // self.config.total_epochs, len(sizes) - 1)])

    def names(self, batch: Batch) -> list[str]:
        """What the pictures of a training batch are called."""
        return [self.splits.train.name(index) for index in batch["indices"].tolist()]

    def share_skipped(self, gather: Callable[[Any], list[Any]]) -> int:
        """Let every process know all pictures that any could not read; returns how many they are.

        Raises:
            ValueError: they are too many.
        """
        accounts = (self.training.skipped, self.validation.skipped)
        for account in accounts:
            for reasons in gather(account.reasons):
                account.merge(reasons)
        return sum(map(len, accounts))

    def close(self) -> None:
        """End the loader processes."""
        self.training.close()
        self.validation.close()

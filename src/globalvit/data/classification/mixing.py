"""Mixup and CutMix by timm, drawn from (seed, step) only, and soft targets.

Legend: `B` images · `C` channels · `H W` pixels · `K` classes.
"""

import torch

from globalvit.data.common.loading import Batch
from globalvit.data.common.randomness import Purpose, derive, seeded


class Mixing:
    """Mixes the images of a batch in pairs and makes `targets`, float (B, K), of its `labels`.

    Args:
        num_classes: K.
        mixup: alpha of Mixup; 0 is off.
        cutmix: alpha of CutMix; 0 is off.
        prob: probability of mixing a batch.
        switch_prob: probability of CutMix where both are on.
        smoothing: label smoothing, in 0 … 1.
        seed: the run's.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        smoothing: float = 0.0,
        seed: int = 0,
    ) -> None:
        # Imported here because timm takes seconds.
        from timm.data.mixup import Mixup, mixup_target

        self.num_classes, self.smoothing, self.seed = num_classes, smoothing, seed
        self.is_mixing = mixup > 0 or cutmix > 0
        self._soften = mixup_target
        self._mix = Mixup(
            mixup_alpha=mixup,
            cutmix_alpha=cutmix,
            prob=prob,
            switch_prob=switch_prob,
            label_smoothing=smoothing,
            num_classes=num_classes,
        )

    def check_batch_size(self, batch_size: int) -> None:
        """Refuse a batch that cannot be mixed, before a run begins.

        Raises:
            ValueError: the number of images is odd.
        """
        if self.is_mixing and batch_size % 2:
            raise ValueError(
                f"a batch of {batch_size} images cannot be mixed in pairs; make --batch-size even, or set --mixup 0 "
                "and --cutmix 0"
            )

    def __call__(self, batch: Batch, step: int, *, is_on: bool = True) -> Batch:
        """The batch with float images (B, C, H, W) mixed, in place, and `targets` added.

        Args:
            batch: as `to_device` gives it.
            step: number of this batch in the run, the same on every rank.
            is_on: False leaves the images alone, as in a run's last epochs; labels are smoothed nevertheless.

        Raises:
            ValueError: the number of images is odd.
        """
        if not (self.is_mixing and is_on):
            return batch | {"targets": self._soften(batch["labels"], self.num_classes, 1.0, self.smoothing)}
        self.check_batch_size(len(batch["labels"]))
        with seeded(derive(Purpose.MIX, self.seed, step)):
            images, targets = self._mix(batch["images"], batch["labels"])
        return batch | {"images": images, "targets": targets}


class MultiLabelMixing(Mixing):
    """Mixes images with any number of labels; `labels` and `targets` are float (B, K).

    Smoothing moves each target towards one half: to `y · (1 − smoothing) + smoothing / 2`.
    """

    def __call__(self, batch: Batch, step: int, *, is_on: bool = True) -> Batch:
        """See `Mixing`."""
        images, targets_BK = batch["images"], batch["labels"]
        if self.is_mixing and is_on:
            count = len(targets_BK)
            self.check_batch_size(count)
            # With a class for each image, the targets say how much of which image is in the result.
            self._mix.num_classes, self._mix.label_smoothing = count, 0.0
            with seeded(derive(Purpose.MIX, self.seed, step)):
                images, shares_BB = self._mix(images, torch.arange(count, device=targets_BK.device))
            targets_BK = shares_BB.to(targets_BK.dtype) @ targets_BK
        return batch | {"images": images, "targets": targets_BK * (1 - self.smoothing) + self.smoothing / 2}

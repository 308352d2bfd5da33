"""A task: a model with its losses, predictions and metric. Return types never depend on `training`."""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from globalvit.data.fit import FitTransform
from globalvit.data.transforms import EvalTransform
from globalvit.deploy.deploying import deploy
from globalvit.metrics.metric import Metric
from globalvit.models.backbone import Backbone
from globalvit.models.variants import Kind, ModelSpec

Batch = dict[str, Any]
Preprocessing = EvalTransform | FitTransform


class Task(nn.Module):
    """What training, evaluation and the command line know of a model.

    Attributes:
        kind: `classify`, `segment` or `detect`.
        spec: what `create_model` was asked for.
        backbone: images → feature maps.
        classes: names of the labels 0 … K−1, None where they are not known.
        preprocessing: from an image to the tensor the model expects.
        has_frozen_norms: whether batch norms keep their statistics in training.
        is_counted: losses are divided by what a step counts, which differs from pass to pass (`tasks.reduce`); all
            others are means over images.
    """

    kind: Kind
    is_counted: bool = False

    def __init__(
        self,
        spec: ModelSpec,
        backbone: Backbone,
        preprocessing: Preprocessing,
        classes: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__()
        if classes is not None and len(classes) != spec.num_classes:
            raise ValueError(f"{len(classes)} class names came for num_classes={spec.num_classes}; give one a class")
        self.spec = spec
        self.backbone = backbone
        self.preprocessing = preprocessing
        self.classes = classes
        self.has_frozen_norms = False

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes' names, or their numbers where no names are known."""
        return self.classes or tuple(map(str, range(self.spec.num_classes)))

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def train(self, mode: bool = True) -> Self:
        """Training mode, in which batch norms may be frozen, or evaluation mode."""
        super().train(mode)
        if mode and self.has_frozen_norms:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars by name; `loss` is the one to minimize, the others are for the log."""

    def count(self, batch: Batch) -> None:
        """Ask `tasks.reduce.over_step` for all that `losses` asks for, in the same order; without gradients."""
        self.losses(batch)

    @abstractmethod
    def evaluate(self, batch: Batch, metric: Metric) -> None:
        """Add one batch of a validation set to `metric`."""

    @abstractmethod
    def metric(self) -> Metric:
        """An empty metric of this task."""

    @abstractmethod
    def predict(self, images: Any, *, batch_size: int = 32) -> list[dict[str, Any]]:
        """One dict an image, in the order given."""

    def deploy(self) -> Self:
        """Return a copy for inference only, faster and equal up to rounding; this model stays as it is.

        Layer scales, batch norms and factors of norms are folded into their neighbors; on a CPU, weights are prepared
        for it. Each part is compared with the original, which stays if it differs (1e-5 relative in float32). The copy
        keeps the device and the dtype that the model has now and takes any image size. It has no derivatives and cannot
        be saved or exported: train, save and export this model instead.
        """
        return deploy(self)

    @contextmanager
    def predicting(self) -> Iterator[None]:
        """Evaluation mode without gradients; the mode is what it was afterwards."""
        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.train(was_training)

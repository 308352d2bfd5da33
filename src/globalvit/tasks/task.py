"""A task: a model with its losses, predictions and metric. Return types never depend on `training`."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from globalvit.data.classification.transforms import EvalTransform
from globalvit.data.common.transforms import FitTransform
from globalvit.deploy.deploying import deploy
from globalvit.metrics.metric import Metric
from globalvit.models.backbone import Backbone
from globalvit.models.variants import Kind, ModelSpec
from globalvit.pytorch import in_evaluation

Batch = dict[str, Any]
Preprocessing = EvalTransform | FitTransform


@dataclass
class _Modes:
    """Number of threads that evaluate a model, and the modes of its modules before the first one."""

    threads: int = 0
    modes: list[tuple[nn.Module, bool]] = field(default_factory=list)


_lock = Lock()
_evaluated: dict[nn.Module, _Modes] = {}


class Task(nn.Module):
    """Interface of a model to training, evaluation and the command line.

    Attributes:
        kind: `classify`, `segment` or `detect`.
        spec: what `create_model` was asked for.
        backbone: images → feature maps.
        classes: names of the labels 0 … K−1, None where they are not known.
        preprocessing: from an image to the tensor the model expects.
        score_thresholds: of each class, the score from which on `predict` reports it by default, as the evaluation of a
            run chose it; None where there is none.
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
            raise ValueError(f"expected {spec.num_classes} class names, one per class, got {len(classes)}")
        self.spec = spec
        self.backbone = backbone
        self.preprocessing = preprocessing
        self.classes = classes
        self.score_thresholds: tuple[float | None, ...] | None = None
        self.has_frozen_norms = False

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the class names, or their numbers if names are unknown."""
        return self.classes or tuple(map(str, range(self.spec.num_classes)))

    @property
    def device(self) -> torch.device:
        """Return the device of the parameters."""
        return next(self.parameters()).device

    def place(self, images: Tensor) -> Tensor:
        """Return images on the device and in the dtype of the parameters."""
        parameter = next(self.parameters())
        return images.to(parameter.device, parameter.dtype, non_blocking=True)

    def train(self, mode: bool = True) -> Self:
        """Set training mode, in which batch norms may be frozen, or evaluation mode."""
        super().train(mode)
        if mode and self.has_frozen_norms:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return scalars by name; `loss` is minimized, the others are logged."""

    def count(self, batch: Batch) -> None:
        """Ask `tasks.reduce.over_step` for all that `losses` asks for, in the same order; without gradients."""
        self.losses(batch)

    @abstractmethod
    def evaluate(self, batch: Batch, metric: Metric) -> None:
        """Add one batch of a validation set to `metric`."""

    @abstractmethod
    def metric(self) -> Metric:
        """An empty metric of this task."""

    def best_thresholds(self, metric: Metric) -> Sequence[float | None] | None:  # noqa: ARG002 - not every task has some
        """Return the score of each class from which on its F1 in an evaluation is highest; None without scores."""
        return None

    @abstractmethod
    def predict(self, images: Any, *, batch_size: int = 32) -> list[dict[str, Any]]:
        """One dict an image, in the order given."""

    def check_outputs(self, found: int) -> None:
        """Check that the head has one output per class, which a head that was put in its place may not have.

        Raises:
            ValueError: it has more or fewer.
        """
        if found != self.spec.num_classes:
            raise ValueError(
                f"expected {self.spec.num_classes} outputs of the head, one per class, got {found}; after "
                f"replacing the head, save the model with save_weights() and open it again, or create it with "
                f"num_classes={found}"
            )

    def deploy(self) -> Self:
        """Return a copy for inference only, faster and equal up to rounding; this model stays as it is.

        Layer scales, batch norms and factors of norms are folded into their neighbors; on a CPU, weights are prepared
        for it. Each part is compared with the original, which stays if it differs (1e-5 relative in float32). The copy
        keeps the device and the dtype that the model has now and takes any image size. It has no derivatives and cannot
        be saved or exported: train, save and export this model instead.
        """
        return deploy(self)

    @contextmanager
    def predicting(self) -> Iterator[Self]:
        """Yield this model in evaluation mode, without gradients; no mode changes that another thread can see."""
        with _lock:
            # A mode that another thread sets for a while is not one to rely on.
            evaluated = None if self in _evaluated else in_evaluation(self)
        with self.evaluating() if evaluated is None else torch.inference_mode():
            yield evaluated or self

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode without gradients; every module's own mode is what it was once all threads have left."""
        with _lock:
            inside = _evaluated.setdefault(self, _Modes())
            if inside.threads == 0:
                inside.modes = [(module, module.training) for module in self.modules()]
                self.eval()
            inside.threads += 1
        try:
            with torch.inference_mode():
                yield
        finally:
            with _lock:
                inside.threads -= 1
                if inside.threads == 0:
                    del _evaluated[self]
                    for module, mode in inside.modes:
                        module.training = mode

"""Parameter groups, optimizer, learning-rate schedule and moving average of a training run, all timm's."""

import math
from collections import defaultdict
from typing import Any, cast

import torch
from timm.optim import (
    create_optimizer_v2,  # pyright: ignore[reportPrivateImportUsage]
    get_optimizer_info,  # pyright: ignore[reportPrivateImportUsage]
    list_optimizers,  # pyright: ignore[reportPrivateImportUsage]
)
from timm.scheduler.scheduler import Scheduler
from timm.scheduler.scheduler_factory import create_scheduler_v2
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.optim import Optimizer

from globalvit.closest import suggest
from globalvit.tasks.task import Task
from globalvit.train.fields import TrainConfig

# Optimizers whose one-kernel implementation is faster on every device.
FUSED = frozenset(["adam", "adamw"])
# Steps of layer decay in a deeper backbone: with one per block, the stem of a network of 32 blocks would stand still.
DECAY_GROUPS = 12


def parameter_groups(
    task: Task, weight_decay: float, layer_decay: float | None = None, head_lr_scale: float = 1.0
) -> list[dict[str, Any]]:
    """Split the trainable parameters by weight decay and by the factor on their learning rate.

    Biases, norms, scales (one axis or none) and what the backbone names as spared have no weight decay.

    Returns:
        Groups for an optimizer; `lr_scale`, which timm's schedules multiply with, is layer_decay^(groups from the head)
        in the backbone, whose blocks form at most `DECAY_GROUPS` groups of neighbors, and `head_lr_scale` elsewhere.
    """
    spared = {f"backbone.{name}" for name in task.backbone.no_decay_names()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            decay = 0.0 if parameter.ndim <= 1 or name in spared else weight_decay
            groups[decay, _lr_scale(task, name, layer_decay, head_lr_scale)].append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (decay, scale), parameters in groups.items()
    ]


def create_optimizer(task: Task, config: TrainConfig) -> Optimizer:
    """The optimizer of `config` over the task's parameters.

    Raises:
        ValueError: timm knows no optimizer of this name, or it does not take the betas given.
    """
    options = _options(config)
    if config.opt.lower() in FUSED:
        options["fused"] = True
    return create_optimizer_v2(
        parameter_groups(task, config.weight_decay, config.layer_decay, config.head_lr_scale),
        opt=config.opt,
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        **options,
    )


class Schedule:
    """Learning rates as a function of the step alone, so that nothing of it needs saving."""

    def __init__(self, optimizer: Optimizer, config: TrainConfig, steps_per_epoch: int) -> None:
        self.optimizer = optimizer
        # Counted in steps throughout: for timm an epoch is one step.
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=config.sched,
            num_epochs=config.steps or config.epochs * steps_per_epoch,
            decay_epochs=config.decay_epochs * steps_per_epoch,
            # timm decays one step before a milestone.
            decay_milestones=[round(epoch * steps_per_epoch) + 1 for epoch in config.decay_milestones],
            decay_rate=config.decay_rate,
            warmup_epochs=_warmup_steps(config, steps_per_epoch),  # pyright: ignore[reportArgumentType]  # parts are fine
            warmup_lr=config.warmup_lr,
            min_lr=config.min_lr,
            step_on_epochs=False,
            updates_per_epoch=1,
        )
        self.scheduler = cast(Scheduler, scheduler)

    def set_lr(self, step: int) -> float:
        """Set the learning rates of step `step` (from 0) and return the head's, which no layer decay scales."""
        self.scheduler.step_update(step)
        return max(group["lr"] / (group.get("lr_scale") or 1.0) for group in self.optimizer.param_groups)


def _warmup_steps(config: TrainConfig, steps_per_epoch: int) -> float:
    if config.warmup_steps is not None:
        return config.warmup_steps
    # The epochs of a run that is counted in steps say nothing of its length.
    return 0 if config.steps else config.warmup_epochs * steps_per_epoch


def create_ema(task: Task, config: TrainConfig) -> ModelEmaV3 | None:
    """The moving average of the task's weights, a copy of it at first, or None where the config has none."""
    if not config.model_ema:
        return None
    return ModelEmaV3(task, decay=config.model_ema_decay, use_warmup=config.model_ema_warmup)


@torch.no_grad()
def gradient_norm(parameters: list[nn.Parameter]) -> torch.Tensor:
    """The L2 norm over all gradients, a scalar on their device."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def _options(config: TrainConfig) -> dict[str, Any]:
    """The options of the optimizer that the config sets; timm would drop in silence what it does not take."""
    known = [str(name) for name in list_optimizers()]
    if config.opt.lower() not in known:
        raise ValueError(f"opt={config.opt!r} is not known to timm.{suggest(config.opt.lower(), known)}")
    info = get_optimizer_info(config.opt)
    if config.opt_betas is not None and not info.has_betas:
        raise ValueError(f"opt={config.opt!r} has no betas; leave --opt-betas out")
    chosen = {"betas": config.opt_betas, "eps": config.opt_eps if info.has_eps else None}
    return {key: value for key, value in chosen.items() if value is not None}


def _lr_scale(task: Task, name: str, layer_decay: float | None, head_lr_scale: float) -> float:
    if not name.startswith("backbone."):
        return head_lr_scale
    if layer_decay is None:
        return 1.0
    depths = task.backbone.num_depths
    distance = depths - task.backbone.depth_of(name.removeprefix("backbone."))
    return layer_decay ** math.ceil(distance * min(DECAY_GROUPS, depths) / depths)

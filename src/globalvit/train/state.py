"""What a checkpoint holds, and what a run counts.

`model.safetensors`, `ema.safetensors`, `optimizer.pt` and `state.json`. Learning rates, data order and random numbers
are functions of the step and need no saving.
"""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer

from globalvit import atomic
from globalvit.tasks.task import Task
from globalvit.train.checkpoint import STATE_FILE
from globalvit.train.config import from_dict
from globalvit.train.engine import (
    full_state,
    load_full_state,
    load_optimizer_state,
    optimizer_state,
    parameter_names,
)
from globalvit.train.fields import TrainConfig
from globalvit.weights.load import EMA_FILE, MODEL_FILE, save_weights

OPTIMIZER_FILE = "optimizer.pt"


@dataclass
class State:
    """Where a run stands.

    Attributes:
        step: optimizer steps done.
        evaluated: step of the last evaluation.
        best: best score so far, None before the first evaluation.
        best_step: step of the best score.
        stale: evaluations since the best one.
        loss_sum: sum of the losses since the last record.
        loss_count: how many these are.
        overflows: fp16 steps in a row that were left out because a gradient overflowed.
        seconds: time trained, over all parts of a run that was resumed.
        scores: what the best evaluation measured.
        scaler: state of the fp16 loss scaling.
    """

    step: int = 0
    evaluated: int = 0
    best: float | None = None
    best_step: int = 0
    stale: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    overflows: int = 0
    seconds: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)

    def add_score(self, score: float, scores: dict[str, float]) -> bool:
        """Take the score of an evaluation at the present step; returns whether it is the best so far."""
        self.evaluated = self.step
        is_best = self.best is None or score > self.best
        if is_best:
            self.best, self.best_step, self.stale, self.scores = score, self.step, 0, scores
        else:
            self.stale += 1
        return is_best

    def add_loss(self, loss: float, seconds: float) -> None:
        """Count a step that was done."""
        self.loss_sum += loss
        self.loss_count += 1
        self.seconds += seconds

    def count_overflow(self, loss: float, norm: float) -> None:
        """Count steps in a row with a number that is not finite."""
        self.overflows = 0 if math.isfinite(loss) and math.isfinite(norm) else self.overflows + 1

    def take_mean_loss(self) -> float:
        """The mean loss since the last call."""
        mean = self.loss_sum / self.loss_count
        self.loss_sum, self.loss_count = 0.0, 0
        return mean


@dataclass(frozen=True)
class Snapshot:
    """The tensors of a run at one step, whole and on the CPU."""

    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    optimizer: dict[str, Any]


def take_snapshot(task: Task, ema: Task | None, optimizer: Optimizer) -> Snapshot:
    """Collect the tensors; with sharded parameters every process must call this."""
    return Snapshot(
        full_state(task), None if ema is None else full_state(ema), optimizer_state(optimizer, parameter_names(task))
    )


def write_checkpoint(folder: Path, task: Task, snapshot: Snapshot, state: State, config: TrainConfig) -> None:
    """Fill the folder of a checkpoint.

    Raises:
        OSError, RuntimeError: the disk is full.
    """
    about = (task.spec, task.classes, task.preprocessing)
    save_weights(folder / MODEL_FILE, snapshot.model, *about)
    if snapshot.ema is not None:
        save_weights(folder / EMA_FILE, snapshot.ema, *about)
    torch.save(snapshot.optimizer, folder / OPTIMIZER_FILE)
    write_state(folder, state, config)


def write_state(folder: Path, state: State, config: TrainConfig) -> None:
    """Write state.json, also over an older one."""
    content = {"state": asdict(state), "config": config.to_dict()}
    atomic.write_text(folder / STATE_FILE, json.dumps(content, indent=2) + "\n")


def read_state(folder: Path) -> tuple[State, TrainConfig]:
    """What `write_state` wrote.

    Raises:
        ValueError: the file is damaged or of another version.
    """
    path = folder / STATE_FILE
    try:
        content = json.loads(path.read_text())
        return State(**content["state"]), from_dict(content["config"], str(path))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or of another version of globalvit: {error}") from error


def restore(folder: Path, task: Task, ema: Task | None, optimizer: Optimizer) -> None:
    """Load a checkpoint's tensors into what was built for the same config."""
    load_full_state(task, load_file(folder / MODEL_FILE))
    if ema is not None:
        load_full_state(ema, load_file(folder / EMA_FILE))
    saved = torch.load(folder / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
    load_optimizer_state(optimizer, parameter_names(task), saved)


def seed_pass(seed: int, step: int, number: int, rank: int) -> None:
    """Seed torch for one pass, so that its drop paths are a function of these numbers alone."""
    digest = blake2b(f"{seed} {step} {number} {rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest) >> 1)


def adopt(config: TrainConfig, saved: TrainConfig) -> TrainConfig:
    """The config of a resumed run, with what it leaves open as it was settled before."""
    settled = (
        "img_size",
        "crop_pct",
        "crop_mode",
        "interpolation",
        "mean",
        "std",
        "precision",
        "kernels",
        "num_classes",
    )
    filled = {name: getattr(saved, name) for name in settled if getattr(config, name) in (None, "auto")}
    return replace(adopt_split(config, saved), **filled, weights=saved.weights, auto_batch=saved.auto_batch)


def adopt_split(config: TrainConfig, saved: TrainConfig) -> TrainConfig:
    """The config of a resumed run with the images held out for validation that it had before."""
    return replace(config, val_fraction=saved.val_fraction) if config.val_fraction is None else config

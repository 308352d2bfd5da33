"""What a checkpoint holds, and what a run counts.

`model.safetensors`, `ema.safetensors`, `optimizer.pt`, their `checksums.json`, and `state.json`. Learning rates, data
order and random numbers are functions of the step and need no saving.
"""

import json
import math
import zlib
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
from globalvit.train.integrity import DamagedError, explained, read_json, verify, write_checksums
from globalvit.weights.load import EMA_FILE, MODEL_FILE, save_weights
from globalvit.weights.read import read_metadata

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

    def require_sound(self) -> None:
        """Check the values that came from a file.

        Raises:
            ValueError: one is of another type or out of its range.
        """
        for name in ("step", "evaluated", "best_step", "stale", "loss_count", "overflows"):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value < 2**53:
                raise ValueError(f"expected {name} to be a whole number, got {value!r:.40}")
        for name in ("best", "loss_sum", "seconds"):
            value = getattr(self, name)
            if not (name == "best" and value is None) and not _is_finite(value):
                raise ValueError(f"expected {name} to be a finite number, got {value!r:.40}")
        for name in ("scores", "scaler"):
            value = getattr(self, name)
            if not isinstance(value, dict) or not all(isinstance(item, int | float) for item in value.values()):
                raise ValueError(f"expected {name} to hold numbers by name, got {value!r:.40}")
        if max(self.evaluated, self.best_step) > self.step:
            raise ValueError(f"step {self.step} is before the evaluation of step {max(self.evaluated, self.best_step)}")

    def take_mean_loss(self) -> float:
        """The mean loss since the last call."""
        mean = self.loss_sum / self.loss_count
        self.loss_sum, self.loss_count = 0.0, 0
        return mean


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Snapshot:
    """The tensors of a run at one step, whole and on the CPU."""

    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    optimizer: dict[str, Any]

    def require_finite(self, step: int) -> None:
        """Check the weights before they are saved.

        Raises:
            FloatingPointError: some are not finite; the text names the step and a tensor.
        """
        for title, tensors in (("weights", self.model), ("averaged weights", self.ema or {})):
            bad = [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]
            if bad:
                more = f" and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
                raise FloatingPointError(
                    f"the {title} are not finite after step {step}: {bad[0]}{more}; they were not saved; resume from "
                    f"the last checkpoint, or start again with a lower --lr, --clip-grad or --precision fp32"
                )


def take_snapshot(task: Task, ema: Task | None, optimizer: Optimizer) -> Snapshot:
    """Collect the tensors of a run."""
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
    write_checksums(folder)
    write_state(folder, state, config)


def write_state(folder: Path, state: State, config: TrainConfig) -> None:
    """Write state.json, also over an older one."""
    content: dict[str, Any] = {"state": asdict(state), "config": config.to_dict()}
    content["check"] = _check(content)
    atomic.write_text(folder / STATE_FILE, json.dumps(content, indent=2) + "\n")


def read_state(folder: Path) -> tuple[State, TrainConfig]:
    """What `write_state` wrote.

    Raises:
        DamagedError: the file is damaged or of another version; the text names the checkpoint before it.
    """
    path = folder / STATE_FILE
    with explained(path):
        content = read_json(path)
        # Versions before this one wrote no check.
        if content.get("check", _check(content)) != _check(content):
            raise DamagedError("its content has another checksum than when it was written")
        state = State(**content["state"])
        state.require_sound()
        if folder.name.startswith("step-") and folder.name != f"step-{state.step}":
            raise DamagedError(f"expected the state of {folder.name}, got step {state.step}")
        return state, from_dict(content["config"], str(path))


def read_classes(folder: Path) -> tuple[str, ...] | None:
    """The names of the classes that a checkpoint was trained on; None if it has none.

    Raises:
        DamagedError: its weight file is damaged.
    """
    path = folder / MODEL_FILE
    with explained(path):
        classes = read_metadata(path).get("classes")
        return None if classes is None else tuple(map(str, classes))


def read_snapshot(folder: Path, *, has_ema: bool) -> Snapshot:
    """Read a checkpoint's tensors.

    Raises:
        DamagedError: a file is damaged; the text names the checkpoint before it.
    """
    names = (MODEL_FILE, *([EMA_FILE] if has_ema else []), OPTIMIZER_FILE)
    verify(folder, *names)
    states = []
    for name in names[:-1]:
        with explained(folder / name):
            states.append(load_file(folder / name))
    with explained(folder / OPTIMIZER_FILE):
        saved = torch.load(folder / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
        if not (isinstance(saved, dict) and isinstance(saved["state"], dict) and isinstance(saved["groups"], list)):
            raise DamagedError("expected the state and groups of an optimizer")
    return Snapshot(states[0], states[1] if has_ema else None, saved)


def restore(folder: Path, snapshot: Snapshot, task: Task, ema: Task | None, optimizer: Optimizer) -> None:
    """Load a checkpoint's tensors into what was built for the same config.

    Raises:
        DamagedError: they are not those of this model.
    """
    with explained(folder / MODEL_FILE):
        load_full_state(task, snapshot.model)
    if ema is not None and snapshot.ema is not None:
        with explained(folder / EMA_FILE):
            load_full_state(ema, snapshot.ema)
    with explained(folder / OPTIMIZER_FILE):
        load_optimizer_state(optimizer, parameter_names(task), snapshot.optimizer)


def _check(content: dict[str, Any]) -> str:
    text = json.dumps([content["state"], content["config"]], sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x}"


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
        "torch_operations",
        "num_classes",
    )
    filled = {name: getattr(saved, name) for name in settled if getattr(config, name) in (None, "auto")}
    return replace(adopt_split(config, saved), **filled, weights=saved.weights, auto_batch=saved.auto_batch)


def adopt_split(config: TrainConfig, saved: TrainConfig) -> TrainConfig:
    """The config of a resumed run with the images held out for validation that it had before."""
    return replace(config, val_fraction=saved.val_fraction) if config.val_fraction is None else config

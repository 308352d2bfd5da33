"""Everything a run needs before its first step: data, model, optimizer, folder; fresh, or as a checkpoint left it."""

import gc
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from timm.utils.model_ema import ModelEmaV3

from globalvit import atomic
from globalvit.build import create_model
from globalvit.models.ops import unavailable
from globalvit.models.variants import ModelSpec
from globalvit.tasks.task import Preprocessing, Task
from globalvit.train import ranks
from globalvit.train.adapt import fit_batch, fit_size
from globalvit.train.advice import warn_of_rare_classes
from globalvit.train.autobatch import choose_batch
from globalvit.train.checkpoint import Checkpoints, find_checkpoint
from globalvit.train.config import AUTO, check_resumable, scale_lr, share_batch, to_yaml
from globalvit.train.engine import Engine, local_processes
from globalvit.train.fields import TrainConfig
from globalvit.train.identity import (
    Data,
    Fingerprinting,
    compare_data,
    require_classes,
    require_equal_data,
    write_data,
)
from globalvit.train.inputs import Inputs, Splits, evaluation_transform, open_splits, set_up, settle_transform
from globalvit.train.memory import explained
from globalvit.train.optim import Schedule, create_ema, create_optimizer
from globalvit.train.owner import Owner
from globalvit.train.record import cut_metrics, new_folder, read_metrics, write_metrics
from globalvit.train.state import State, adopt, adopt_split, read_classes, read_snapshot, read_state, restore

logger = logging.getLogger(__name__)


@dataclass
class Session:
    """A run that is ready to go on from `state.step`.

    Attributes:
        config: with everything settled that the user left open.
        folder: of the run.
        task: the model in training.
        ema: its moving average, None where there is none.
        schedule: sets the learning rates of a step.
        inputs: batches.
        checkpoints: the run's checkpoint folder.
        state: where the run stands.
    """

    config: TrainConfig
    folder: Path
    task: Task
    ema: ModelEmaV3 | None
    schedule: Schedule
    inputs: Inputs
    checkpoints: Checkpoints
    state: State

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.config.steps or self.config.total_epochs * self.inputs.steps_per_epoch

    @property
    def epoch(self) -> float:
        """Epochs done."""
        return self.state.step / self.inputs.steps_per_epoch

    @property
    def next_pause(self) -> int:
        """The step after `state.step` at which training pauses to evaluate or save: an interval's or the run's end."""
        stretch = self.config.val_steps or self.inputs.steps_per_epoch
        return min((self.state.step // stretch + 1) * stretch, self.total_steps)

    @property
    def is_stale(self) -> bool:
        """Whether early stopping ends the run."""
        return 0 < self.config.early_stop <= self.state.stale

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to train."""
        return self.state.step >= self.total_steps or self.is_stale


def prepare_session(config: TrainConfig, recipe: str, engine: Engine, owner: Owner) -> Session:
    """Start a run, or take up the one that `config.resume` names.

    Args:
        config: as `load_config` gives it.
        recipe: the word that names the folder of a new run without a tag.
        engine: where to train; it takes model and optimizer.
        owner: keeps other processes out of the run's folder.

    Raises:
        ValueError, OSError: a setting, the data or the run to resume cannot be used, or processes differ in them; the
            text says what and why.
    """
    checkpoint = engine.on_main(lambda: _claim(config, owner))
    state, saved, splits = engine.together(lambda: _open(config, checkpoint))
    counts = {"training": len(splits.train), "evaluation": len(splits.val)}
    ranks.require_equal(engine.gather(ranks.facts(config, splits.classes, counts, state.step)))
    with Fingerprinting(splits) as fingerprinting:
        config = engine.together(lambda: _adapt(config, recipe, saved, splits, engine.world))
        config, transform = _settle(config, saved, splits, engine)
        inputs = engine.together(lambda: Inputs(config, splits, transform, engine.device, engine.rank, engine.world))
        with explained(config, "while building the model"):
            task, ema, schedule = _build(config, checkpoint, state, splits, transform, inputs.steps_per_epoch, engine)
        data = engine.together(fingerprinting.result)
    require_equal_data(engine.gather(data))
    opened = engine.on_main(lambda: _open_folder(config, recipe, checkpoint, state, splits, data, owner))
    folder, has_best = opened
    if not has_best:
        # The best checkpoint did not come along: the next evaluation gives a new one.
        state.best = None
    checkpoints = Checkpoints(folder / "checkpoints", config.checkpoint_hist)
    return Session(config, folder, task, ema, schedule, inputs, checkpoints, state)


def keep_choices(config: TrainConfig) -> TrainConfig:
    """Return the config with precision and kernels of the run that it resumes in place of `auto`.

    Raises:
        ValueError: the run was trained with kernels that cannot be used here.
    """
    names = [name for name in ("precision", "kernels") if getattr(config, name) == "auto"]
    if "kernels" in names and config.torch_operations is None:
        names.append("torch_operations")
    checkpoint = resumed_checkpoint(config) if names else None
    if checkpoint is None:
        return config
    saved = read_state(checkpoint)[1]
    if "kernels" in names and saved.kernels in ("c", "triton") and (reason := unavailable(saved.kernels)):
        raise ValueError(
            f"the run was trained with kernels={saved.kernels}, which cannot be used here: {reason}; --kernels torch "
            f"resumes it with PyTorch's operators, equal up to rounding"
        )
    return replace(config, **{name: getattr(saved, name) for name in names})


def resumed_checkpoint(config: TrainConfig) -> Path | None:
    """Return the checkpoint to resume from, or None to begin a new run.

    `auto` is the run of the tag if it has saved something, so that one command both starts a job and restarts it.
    """
    if config.resume is None:
        return None
    if config.resume != AUTO:
        return find_checkpoint(config.resume)
    if config.tag is None:
        raise ValueError("--resume auto goes on with the run of --tag; give a --tag")
    run = Path(config.output) / config.tag
    return find_checkpoint(run) if any(run.glob("checkpoints/step-*")) else None


def _claim(config: TrainConfig, owner: Owner) -> Path | None:
    """Lock the run folder that is to be resumed, and return the checkpoint to resume from."""
    if config.resume == AUTO and config.tag is not None:
        run = Path(config.output) / config.tag
        run.mkdir(parents=True, exist_ok=True)
    else:
        run = _run_of(resumed_checkpoint(config))
    if run is not None:
        owner.take(run)
        Checkpoints(run / "checkpoints", config.checkpoint_hist).recover()
    # Whoever had the lock before may have saved meanwhile.
    return resumed_checkpoint(config)


def _open(config: TrainConfig, checkpoint: Path | None) -> tuple[State, TrainConfig | None, Splits]:
    """State and config of the checkpoint, and the data, whose classes must be the checkpoint's."""
    if checkpoint is None:
        return State(), None, open_splits(config)
    state, saved = read_state(checkpoint)
    before = read_classes(checkpoint)
    # A resumed run holds out the images it held out before, whatever folders there are by now.
    config = adopt_split(config, saved)
    splits = open_splits(replace(config, num_classes=None) if before else config)
    if before is not None:
        require_classes(before, splits.classes, checkpoint)
    return state, saved, splits


def build_task(config: TrainConfig, weights: str | None, splits: Splits, transform: Preprocessing) -> Task:
    """The task of a settled config; the same weights for the same seed."""
    torch.manual_seed(config.seed)
    task = create_model(
        config.model,
        weights,
        num_classes=len(splits.classes),
        in_channels=config.in_chans,
        image_size=config.img_size,
        window=config.window,
        drop_path=config.drop_path,
        ablation=config.ablation,
        classes=splits.classes,
        preprocessing=transform,
        multi_label=splits.is_multi_label,
    )
    if config.grad_checkpointing:
        task.backbone.set_checkpointing(True)
    task.has_frozen_norms = config.freeze_bn
    set_up(task, config)
    return task.to(memory_format=torch.channels_last) if config.channels_last else task


def _adapt(config: TrainConfig, recipe: str, saved: TrainConfig | None, splits: Splits, processes: int) -> TrainConfig:
    """Fit to the data what the recipe leaves open; a resumed run's batch is fitted as it was before."""
    if saved is None:
        if ModelSpec(model=config.model).kind == "classify":
            warn_of_rare_classes(splits.train)
        parts = processes * config.grad_accum_steps
        return fit_batch(fit_size(config, splits.train), len(splits.train), parts, recipe)
    parts = (saved.global_batch or saved.batch_size) // saved.batch_size
    return fit_batch(config, len(splits.train), parts, recipe)


def _settle(
    config: TrainConfig, saved: TrainConfig | None, splits: Splits, engine: Engine
) -> tuple[TrainConfig, Preprocessing]:
    """Write out what the config leaves open; a resumed run takes it from the checkpoint."""
    if saved is not None:
        config = share_batch(adopt(config, saved), saved, engine.world)
    source = config if saved is None else replace(config, weights=None)
    transform = engine.together(lambda: evaluation_transform(source))
    config = replace(settle_transform(config, transform), precision=engine.precision)
    config = replace(config, kernels=engine.kernels, torch_operations=engine.torch_operations)
    config = replace(config, num_classes=len(splits.classes))
    if saved is None:
        config = replace(config, val_fraction=splits.val_fraction)
    if config.auto_batch and saved is None:
        config = replace(config, batch_size=_auto_batch(config, splits, transform, engine))
    config = scale_lr(config, engine.world)
    if saved is not None:
        check_resumable(config, saved)
    return config, transform


def _auto_batch(config: TrainConfig, splits: Splits, transform: Preprocessing, engine: Engine) -> int:
    """The batch size that fits on every process.

    It is bounded by the recipe's global batch, beyond which its learning rate was not meant to be stretched, and by
    the images there are.
    """
    if ModelSpec(model=config.model).kind == "detect":
        raise ValueError("auto_batch is not offered for detectors, whose images differ in size; give --batch-size")
    parts = engine.world * config.grad_accum_steps
    useful = min(config.global_batch or len(splits.train), len(splits.train)) // parts
    trial = build_task(config, None, splits, transform).to(engine.device)
    found = choose_batch(trial, config, engine.device, engine.precision, max(useful, 1), local_processes())
    del trial
    gc.collect()
    # Mixing takes pairs of images.
    fitting = min(engine.gather(found))
    return fitting - fitting % 2 if fitting > 1 else fitting


def _build(
    config: TrainConfig,
    checkpoint: Path | None,
    state: State,
    splits: Splits,
    transform: Preprocessing,
    steps_per_epoch: int,
    engine: Engine,
) -> tuple[Task, ModelEmaV3 | None, Schedule]:
    task = engine.together(lambda: build_task(config, None if checkpoint else config.weights, splits, transform))
    ema = create_ema(task, config)
    engine.place(task, *([ema.module] if ema else []))
    optimizer = create_optimizer(task, config)
    if checkpoint is not None:
        snapshot = engine.together(lambda: read_snapshot(checkpoint, has_ema=ema is not None))
        restore(checkpoint, snapshot, task, ema.module if ema else None, optimizer)
        engine.load_scaler_state(state.scaler)
    if config.torchcompile:
        task.compile()
    engine.prepare(task, optimizer)
    return task, ema, Schedule(optimizer, config, steps_per_epoch)


def _open_folder(
    config: TrainConfig,
    recipe: str,
    checkpoint: Path | None,
    state: State,
    splits: Splits,
    data: Data,
    owner: Owner,
) -> tuple[Path, bool]:
    """The run's folder with config.yaml, classes.json and data.json, and whether it has the best checkpoint."""
    folder = _run_of(checkpoint) or new_folder(Path(config.output), config.tag, recipe, may_exist=config.resume == AUTO)
    owner.take(folder, is_new=config.resume is None)
    if checkpoint is not None:
        compare_data(folder, data, accept=config.accept_changed_data)
    metrics = read_metrics(folder)
    has_best = Checkpoints(folder / "checkpoints", config.checkpoint_hist).rewind(state.step, state.best_step)
    write_metrics(folder, cut_metrics(metrics, state.step, state.evaluated))
    atomic.write_text(folder / "config.yaml", to_yaml(replace(config, resume=None, accept_changed_data=False)))
    atomic.write_text(folder / "classes.json", json.dumps(list(splits.classes), ensure_ascii=False) + "\n")
    write_data(folder, data)
    return folder, has_best


def _run_of(checkpoint: Path | None) -> Path | None:
    """The run folder that a checkpoint lies in; None for one that was copied elsewhere, which begins a new folder."""
    if checkpoint is None or checkpoint.parent.name != "checkpoints":
        return None
    run = checkpoint.parent.parent
    return run if (run / "config.yaml").is_file() else None

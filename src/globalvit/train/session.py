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
from globalvit.train.autobatch import choose_batch
from globalvit.train.checkpoint import Checkpoints, find_checkpoint
from globalvit.train.config import AUTO, check_resumable, scale_lr, share_batch, to_yaml
from globalvit.train.engine import Engine, local_processes
from globalvit.train.fields import TrainConfig
from globalvit.train.inputs import Inputs, Splits, evaluation_transform, open_splits, set_up, settle_transform
from globalvit.train.optim import Schedule, create_ema, create_optimizer
from globalvit.train.record import cut_metrics, new_folder
from globalvit.train.state import State, adopt, adopt_split, read_state, restore

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


def prepare_session(config: TrainConfig, recipe: str, engine: Engine) -> Session:
    """Start a run, or take up the one that `config.resume` names.

    Args:
        config: as `load_config` gives it.
        recipe: the word that names the folder of a new run without a tag.
        engine: where to train; it takes model and optimizer.

    Raises:
        ValueError, OSError: something the user asked for is not to be had; the text says what and why.
    """
    checkpoint = resumed_checkpoint(config) if config.resume != AUTO or engine.is_main else None
    if config.resume == AUTO:
        checkpoint = engine.from_main(checkpoint)
    state, saved = (State(), None) if checkpoint is None else read_state(checkpoint)
    # A resumed run holds out the images it held out before, whatever folders there are by now.
    splits = open_splits(config if saved is None else adopt_split(config, saved))
    config, transform = _settle(config, saved, splits, engine)
    inputs = Inputs(config, splits, transform, engine.device, engine.rank, engine.world)
    task, ema, schedule = _build(config, checkpoint, splits, transform, inputs.steps_per_epoch, engine)
    engine.load_scaler_state(state.scaler)
    folder = _open_folder(config, recipe, checkpoint, state, splits, engine)
    checkpoints = Checkpoints(folder / "checkpoints", config.checkpoint_hist)
    return Session(config, folder, task, ema, schedule, inputs, checkpoints, state)


def keep_choices(config: TrainConfig) -> TrainConfig:
    """Return the config with precision and kernels of the run that it resumes in place of `auto`.

    Raises:
        ValueError: the run was trained with kernels that cannot be used here.
    """
    names = [name for name in ("precision", "kernels") if getattr(config, name) == "auto"]
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
    )
    if config.grad_checkpointing:
        task.backbone.set_checkpointing(True)
    task.has_frozen_norms = config.freeze_bn
    set_up(task, config)
    return task.to(memory_format=torch.channels_last) if config.channels_last else task


def _settle(
    config: TrainConfig, saved: TrainConfig | None, splits: Splits, engine: Engine
) -> tuple[TrainConfig, Preprocessing]:
    """Write out what the config leaves open; a resumed run takes it from the checkpoint."""
    if saved is not None:
        config = share_batch(adopt(config, saved), saved, engine.world)
    transform = evaluation_transform(config if saved is None else replace(config, weights=None))
    config = replace(settle_transform(config, transform), precision=engine.precision, kernels=engine.kernels)
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
    splits: Splits,
    transform: Preprocessing,
    steps_per_epoch: int,
    engine: Engine,
) -> tuple[Task, ModelEmaV3 | None, Schedule]:
    task = build_task(config, None if checkpoint else config.weights, splits, transform)
    ema = create_ema(task, config)
    engine.place(task, *([ema.module] if ema else []))
    optimizer = create_optimizer(task, config)
    if checkpoint is not None:
        restore(checkpoint, task, ema.module if ema else None, optimizer)
    if config.torchcompile:
        task.compile()
    engine.prepare(task, optimizer)
    return task, ema, Schedule(optimizer, config, steps_per_epoch)


def _open_folder(
    config: TrainConfig, recipe: str, checkpoint: Path | None, state: State, splits: Splits, engine: Engine
) -> Path:
    """The run's folder, the same on every process, with config.yaml and classes.json."""
    opened: tuple[Path, bool] | None = None
    if engine.is_main:
        folder = _run_of(checkpoint) or new_folder(
            Path(config.output), config.tag, recipe, may_exist=config.resume == AUTO
        )
        has_best = Checkpoints(folder / "checkpoints", config.checkpoint_hist).rewind(state.step, state.best_step)
        cut_metrics(folder, state.step, state.evaluated)
        atomic.write_text(folder / "config.yaml", to_yaml(replace(config, resume=None)))
        atomic.write_text(folder / "classes.json", json.dumps(list(splits.classes), ensure_ascii=False) + "\n")
        opened = folder, has_best
    opened = engine.from_main(opened)
    assert opened is not None
    if not opened[1]:
        # The best checkpoint did not come along: the next evaluation gives a new one.
        state.best = None
    return opened[0]


def _run_of(checkpoint: Path | None) -> Path | None:
    """The run folder that a checkpoint lies in; None for one that was copied elsewhere, which begins a new folder."""
    if checkpoint is None or checkpoint.parent.name != "checkpoints":
        return None
    run = checkpoint.parent.parent
    return run if (run / "config.yaml").is_file() else None

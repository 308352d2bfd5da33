"""Opening the model for `validate`, `predict` and other commands, with the settings of its training run."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from globalvit.hardware import DeviceChoice, PrecisionChoice, choose_device, computes
from globalvit.models.variants import as_size
from globalvit.train.config import read_run_config
from globalvit.train.fields import AMP, DEVICE_HELP, PRECISION_HELP, TrainConfig
from globalvit.weights import catalog
from globalvit.weights.pointers import follow

if TYPE_CHECKING:
    from globalvit.tasks.task import Task

logger = logging.getLogger(__name__)
MODEL, RUNNING, DEVICE = "model", "running (default: as in the checkpoint's run)", "device and precision"
# Options that override the training setting of the same name.
SETTINGS = (
    *("img_size", "crop_pct", "crop_mode", "interpolation", "batch_size", "precision", "device"),
    *("data_dir", "val_split", "workers", "reduce_zero_label", "ignore_label", "class_file"),
    *("format", "val_annotations"),
    *("short_side", "long_side", "size_multiple", "eval_mode", "eval_stride", "eval_scales", "eval_flip"),
)
CROP = "preprocessing (default: the weights' own)"


def about(group: str, text: str, *aliases: str) -> dict[str, Any]:
    """The metadata of an option's field: its help text, its heading, and its aliases."""
    return {"help": text, "group": group, "aliases": aliases}


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options that choose a model and how it is run."""

    checkpoint: Path | None = field(
        default=None, metadata=about(MODEL, "weight file, checkpoint folder or run folder (its best checkpoint)")
    )
    model: str | None = field(
        default=None, metadata=about(MODEL, "model name, for published weights or a file that does not name its model")
    )
    weights: str = field(
        default=catalog.FIRST, metadata=about(MODEL, "name of published weights of --model (default: the first)")
    )
    ema: bool = field(default=True, metadata=about(MODEL, "use the averaged weights if the checkpoint has them"))
    allow_nonfinite: bool = field(
        default=False, metadata=about(MODEL, "load the checkpoint even if weights are NaN or infinite")
    )

    img_size: int | tuple[int, int] | None = field(
        default=None,
        metadata=about(CROP, "image side length in pixels, or height,width", "image_size"),
    )
    crop_pct: float | None = field(default=None, metadata=about(CROP, "fraction of the image to keep"))
    crop_mode: Literal["center", "squash"] | None = field(
        default=None, metadata=about(CROP, "crop the center, or squash the whole image")
    )
    interpolation: Literal["bilinear", "bicubic"] | None = field(
        default=None, metadata=about(CROP, "interpolation for resizing")
    )

    short_side: int | None = field(
        default=None, metadata=about(CROP, "shorter side of the images in pixels, in segmentation and detection")
    )
    long_side: int | None = field(
        default=None, metadata=about(CROP, "maximum longer side after resizing to --short-side")
    )
    size_multiple: int | None = field(default=None, metadata=about(CROP, "round both sides up to multiples of this"))

    batch_size: int | None = field(default=None, metadata=about(RUNNING, "images per forward pass"))
    precision: PrecisionChoice = field(
        default="auto",
        metadata=about(
            DEVICE, f"{PRECISION_HELP}; for a run, auto uses its precision if this device supports it natively"
        )
        | {"switch": AMP},
    )
    device: DeviceChoice = field(default="auto", metadata=about(DEVICE, f"device to compute on; {DEVICE_HELP}"))

    def __post_init__(self) -> None:
        if self.checkpoint is None and self.model is None:
            raise ValueError(
                "no model given; use --checkpoint PATH for a trained model, or --model NAME for published weights"
            )
        if self.checkpoint is not None and self.weights != catalog.FIRST:
            raise ValueError("--checkpoint and --weights were both given; leave one out")
        if self.weights == "none":
            raise ValueError(
                "--weights none gives a model with random weights; leave it out, or give --checkpoint PATH"
            )
        if self.img_size is not None:
            as_size(self.img_size)
        # Check the ranges now, so that errors are reported as command-line errors.
        TrainConfig(**self._given())

    def settings(self) -> TrainConfig:
        """Return the settings of the checkpoint's run, or the defaults, overridden by the given options.

        Raises:
            FileNotFoundError: the checkpoint does not exist.
        """
        if self.checkpoint is not None and not follow(self.checkpoint).exists():
            raise FileNotFoundError(
                f"{self.checkpoint} does not exist; give a weight file, a checkpoint folder or a run folder"
            )
        run = self.checkpoint and run_folder(self.checkpoint)
        trained = read_run_config(run) if run else TrainConfig()
        given = self._given()
        settings = replace(trained, **given)
        is_other = not _is_same(settings.data_dir, trained.data_dir)
        if is_other:
            # The format and annotation files belong to the run's own data, too.
            own = {name: given.get(name) for name in ("format", "train_annotations", "val_annotations")}
            settings = replace(settings, **own)
        if is_other or "val_split" in given or "val_annotations" in given:
            # Held-out images exist only in the run's own data.
            settings = replace(settings, val_fraction=0.0)
        if self.precision == "auto" and computes(trained.precision, choose_device(self.device)):
            # Reproduces the scores of the run's own evaluation.
            settings = replace(settings, precision=trained.precision)
        return settings

    def _given(self) -> dict[str, Any]:
        named = {name: getattr(self, name) for name in SETTINGS if hasattr(self, name)}
        return {name: value for name, value in named.items() if value is not None}


def open_model(options: ModelOptions) -> "Task":
    """Return the requested model in evaluation mode, with the requested preprocessing.

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        OSError: published weights cannot be downloaded.
        ValueError: a name is unknown, or the file or an option does not fit the model.
    """
    from globalvit import build
    from globalvit.train.inputs import with_settings

    if options.checkpoint is not None:
        task = build.open_checkpoint(
            options.checkpoint, model=options.model, use_ema=options.ema, allow_nonfinite=options.allow_nonfinite
        )
    else:
        assert options.model is not None
        task = build.create_model(options.model, _published(options.model, options.weights))
    _check_crop(task, options)
    task.preprocessing = with_settings(task.preprocessing, options.settings())
    return task.eval()


def _check_crop(task: "Task", options: ModelOptions) -> None:
    from globalvit.data.common.transforms import FitTransform

    is_fitted = isinstance(task.preprocessing, FitTransform)
    meaningless = ("crop_pct", "crop_mode") if is_fitted else ("short_side", "long_side", "size_multiple")
    # For segmenters it is the side of the sliding window.
    for name in (*meaningless, *(("img_size",) if task.kind == "detect" else ())):
        if getattr(options, name) is not None:
            flag, remedy = f"--{name.replace('_', '-')}", "--short-side" if is_fitted else "--img-size"
            raise ValueError(f"{flag} has no effect on {task.spec.model}; leave it out, or give {remedy}")


def place(task: "Task", settings: TrainConfig) -> Callable[[], AbstractContextManager[Any]]:
    """Move a model to the device of `settings`; return a factory for the autocast context of their precision.

    Raises:
        ValueError: the device or precision is not available.
    """
    from globalvit.hardware import autocast, choose_precision

    device = choose_device(settings.device)
    precision = choose_precision(settings.precision, device)
    logger.info("precision %s (%s)", precision.name, precision.reason)
    task.to(device)
    return lambda: autocast(device, precision.name)


@contextmanager
def explained_memory(text: str) -> Iterator[None]:
    """Turn out-of-memory errors into a MemoryError that says which option to lower.

    Raises:
        MemoryError: the code inside ran out of memory.
    """
    from globalvit.train.memory import is_out_of_memory

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(text) from error


def too_many(batch_size: int) -> str:
    """Return the message for a batch that does not fit into memory."""
    if batch_size == 1:
        return "out of memory with one image; make the model's input smaller with --img-size or --short-side"
    return f"out of memory with {batch_size} images per batch; lower --batch-size"


def run_folder(checkpoint: Path) -> Path | None:
    """Return the run that a weight file, a checkpoint folder or a run folder belongs to."""
    # RUN/checkpoints/step-1/model.safetensors is three folders deep.
    checkpoint = follow(checkpoint).resolve()
    candidates = [checkpoint, *checkpoint.parents[:3]]
    return next((folder for folder in candidates if (folder / "config.yaml").is_file()), None)


def _is_same(one: str | None, other: str | None) -> bool:
    """Return whether two data folders are the same."""
    return one == other or (one is not None and other is not None and Path(one).resolve() == Path(other).resolve())


def _published(model: str, weights: str) -> str:
    from globalvit.build import resolve_name

    name = resolve_name(model)
    if not catalog.records(name):
        raise ValueError(f"no weights are published for {model}; use --checkpoint PATH for a trained model")
    return catalog.find(name, weights).weights if weights == catalog.FIRST else weights

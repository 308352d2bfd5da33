"""The commands as Python functions: `train`, `validate`, `predict`, `export` and `explain`.

A setting has the name of the command's flag with underscores: `--batch-size 8` is `batch_size=8`, and `--image-size` is
`image_size` everywhere. What a function computes is what the command computes, to the last bit. Mistakes are Python
exceptions with the text that the command prints; nothing here ends the process.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_type_hints

from globalvit.closest import name_here, suggest
from globalvit.console import Progress, start_logging_by_default
from globalvit.hardware import DeviceChoice, PrecisionChoice
from globalvit.jobs import train as training
from globalvit.jobs.explain import Explained, Explainer, ExplainOptions
from globalvit.jobs.export import ExportOptions
from globalvit.jobs.images import Missing, Reader, Source, StrictReader, sources_of
from globalvit.jobs.predict import PredictOptions, Predictor, results, words_of
from globalvit.jobs.validate import Result, ValidateOptions
from globalvit.train.callbacks import Callbacks
from globalvit.train.config import convert, recipe_name
from globalvit.train.fields import TrainConfig
from globalvit.train.run import Run

if TYPE_CHECKING:
    from globalvit.export import ExportReport

Options = TypeVar("Options")
Item = TypeVar("Item")
AnyPath = str | PathLike[str]
Size = int | tuple[int, int]
# Names of functions that take images, beside the flags of their commands.
OF_IMAGES = ("images", "skip_unreadable")


def train(
    *, config: AnyPath | None = None, resume: AnyPath | None = None, callbacks: Sequence[object] = (), **settings: Any
) -> Run:
    """Train or fine-tune a model, as `globalvit train` does; the same under torchrun.

    Example::

        run = gv.train(data_dir="photos", model="gcvit_tiny", epochs=10)
        run.scores, run.plot(), gv.validate(run), gv.predict("holiday", checkpoint=run)

    In a script, put calls under `if __name__ == "__main__":`.

    Args:
        config: a shipped recipe or a YAML file (default: fine-tuning for the model's kind of task).
        resume: run or checkpoint to go on from; its settings are taken over. `"auto"` is the run of `tag`, if there is
            one.
        callbacks: objects with some of the methods `on_step`, `on_epoch`, `on_evaluate`, `on_checkpoint`, `on_end`; see
            `globalvit.train.callbacks`.
        **settings: any setting of `globalvit train`, such as `model`, `data_dir`, `weights` (None starts at random),
            `image_size`, `epochs`, `batch_size`, `lr`, `precision`, `device`, `workers`, `seed`, `output`, `tag`.

    Returns:
        The run: its folder, scores, records and curves. It serves as `checkpoint` of the other functions.

    Raises:
        TypeError: no setting has this name; the text gives the right or the closest one.
        ValueError: a setting or the data cannot be used.
        FileNotFoundError: the data, a file or the run to resume are not there.
        FloatingPointError: a loss or gradient is not finite.
        MemoryError: a batch is too large.
        CallbackError: a callback failed; its exception is the cause.
        KeyboardInterrupt: the run was interrupted; it saved a checkpoint first.
    """
    _begin("train")
    _check_names("train", settings, {*_fields_by_name(TrainConfig), "config", "callbacks"})
    Callbacks(callbacks)
    given = settings if resume is None else {**settings, "resume": os.fspath(resume)}
    names, hints = _fields_by_name(TrainConfig), get_type_hints(TrainConfig)
    given = {name: convert(name, value, hints[names[name]], "train()") for name, value in given.items()}
    source, chosen = training.configure(None if config is None else os.fspath(config), given, "train()")
    if chosen.data_dir is None:
        raise ValueError(f"train {training.needed_data(chosen)}")
    from globalvit.train import loop
    from globalvit.train.signals import StopSignal

    stop = StopSignal()
    folder = loop.train(chosen, recipe_name(source, chosen.model), stop, callbacks)
    if stop.ended_by and not chosen.exit_0_on_signal:
        # It was only put off: what runs after this call would else take an unfinished run for a finished one.
        signal.raise_signal(stop.ended_by)
    return Run(folder)


def validate(
    checkpoint: AnyPath | None = None,
    *,
    data_dir: AnyPath | None = None,
    split: str | None = None,
    model: str | None = None,
    weights: str | None = None,
    image_size: Size | None = None,
    batch_size: int | None = None,
    precision: PrecisionChoice = "auto",
    device: DeviceChoice = "auto",
    workers: int | None = None,
    output: AnyPath | None = None,
    **settings: Any,
) -> Result:
    """Measure accuracy, mIoU or AP on labeled images, as `globalvit validate` does; the same under torchrun.

    Args:
        checkpoint: a run, a run folder (its best checkpoint), a checkpoint folder or a weight file.
        data_dir: folder of the data (default: that of the checkpoint's run).
        split: of the data (default: `val`, `valid` or `validation`, or what the run held out).
        model: name of a model, for its published weights or for a file that does not say it.
        weights: published weights of `model` by name (default: its first).
        image_size: side in pixels, or height and width.
        batch_size: images at a time (default: the run's).
        precision: `auto`, `fp32`, `tf32`, `bf16` or `fp16`; `auto` takes the run's own if that is native here.
        device: `auto`, `cpu`, `cuda` or `mps`.
        workers: processes that read images.
        output: folder for the scores as files.
        **settings: any other flag of `globalvit validate`, such as `suite` or `eval_flip`.

    Returns:
        What was measured: `scores`, `rows` by class, `confusion_matrix` and `plot()`.

    Raises:
        TypeError: no setting has this name; the text gives the right or the closest one.
        ValueError: the model, the data or a setting cannot be used.
        FileNotFoundError: the checkpoint or the data are not there.
    """
    from globalvit.jobs.validate import validate as measure

    _begin("validate")
    given = {
        "checkpoint": checkpoint,
        "data_dir": data_dir,
        "split": split,
        "model": model,
        "weights": weights,
        "image_size": image_size,
        "batch_size": batch_size,
        "precision": precision,
        "device": device,
        "workers": workers,
        "output": output,
    }
    return measure(_options(ValidateOptions, "validate", given | settings))


def predict(
    images: Any = None,
    *,
    checkpoint: AnyPath | None = None,
    model: str | None = None,
    weights: str | None = None,
    image_size: Size | None = None,
    batch_size: int | None = None,
    precision: PrecisionChoice = "auto",
    device: DeviceChoice = "auto",
    skip_unreadable: bool = False,
    **settings: Any,
) -> list[dict[str, Any]] | Iterator[dict[str, Any]]:
    """Say what is in images, as `globalvit predict` does.

    Args:
        images: a path of an image or folder, a pattern such as `"photos/**/*.jpg"`, an http(s) address, a PIL image, an
            RGB uint8 array (H, W, 3), a preprocessed float tensor (C, H, W), or a list of these. A generator of these
            is read as its predictions are asked for, `batch_size` images at a time.
        checkpoint: a run, a run folder (its best checkpoint), a checkpoint folder or a weight file.
        model: name of a model, for its published weights or for a file that does not say it.
        weights: published weights of `model` by name (default: its first).
        image_size: side in pixels, or height and width.
        batch_size: images at a time (default: the run's).
        precision: `auto`, `fp32`, `tf32`, `bf16` or `fp16`; `auto` takes the run's own if that is native here.
        device: `auto`, `cpu`, `cuda` or `mps`.
        skip_unreadable: log and leave out images that cannot be read, in place of an error.
        **settings: any other flag of `globalvit predict`: `top_k`, `score_threshold`, `max_detections`, `split`,
            `data_dir`, `output`, `draw`, `json`, `csv`, ….

    Returns:
        For each image what `model.predict` gives, and `image`, its path or its place in the list: a list, or of a
        generator an iterator.

    Raises:
        TypeError: no setting has this name; the text gives the right or the closest one.
        ValueError: an image, the model or a setting cannot be used.
        FileNotFoundError: an image or the checkpoint is not there.
    """
    _begin("predict")
    given = {
        "checkpoint": checkpoint,
        "model": model,
        "weights": weights,
        "image_size": image_size,
        "batch_size": batch_size,
        "precision": precision,
        "device": device,
    }
    options = _options(PredictOptions, "predict", given | settings, OF_IMAGES)
    if images is None and options.split is None:
        raise ValueError("predict needs images=, or split= and the checkpoint of a run")
    found = sources_of(words_of(options) if images is None else images)
    predictor = Predictor(options)
    return _each(found, skip_unreadable, "predicting", lambda ready, reader: results(predictor, ready, reader))


def export(
    checkpoint: AnyPath | None = None,
    *,
    output: AnyPath,
    model: str | None = None,
    weights: str | None = None,
    format: Literal["onnx", "torch"] | None = None,  # noqa: A002 - the name of the flag
    precision: Literal["fp32", "fp16", "bf16"] = "fp32",
    image_size: Size | None = None,
    force: bool = False,
    **settings: Any,
) -> "ExportReport":
    """Write a model as ONNX or torch.export, checked against the model, as `globalvit export` does.

    Args:
        checkpoint: a run, a run folder (its best checkpoint), a checkpoint folder or a weight file.
        output: file to write, `.onnx` or `.pt2`.
        model: name of a model, for its published weights or for a file that does not say it.
        weights: published weights of `model` by name (default: its first); `"none"` leaves them fresh.
        format: `onnx` or `torch` (default: as the file's name says).
        precision: of weights and arithmetic: `fp32`, `fp16` or `bf16`.
        image_size: bind the file to images of one size.
        force: replace the file if it exists.
        **settings: any other flag of `globalvit export`, such as `dynamic`, `preprocessing` or `postprocessing`.

    Returns:
        What was written and how it compared with the model.

    Raises:
        TypeError: no setting has this name; the text gives the right or the closest one.
        FileExistsError: the file exists and `force` is false.
        ValueError: the model cannot be exported in this form, or a setting cannot be used.
    """
    from globalvit.jobs.export import export as write

    _begin("export")
    given = {
        "checkpoint": checkpoint,
        "output": output,
        "model": model,
        "weights": weights,
        "format": format,
        "precision": precision,
        "image_size": image_size,
        "force": force,
    }
    return write(_options(ExportOptions, "export", given | settings))


def explain(
    images: Any,
    *,
    checkpoint: AnyPath | None = None,
    model: str | None = None,
    weights: str | None = None,
    kind: Literal["local", "global", "groups", "propagation", "rollout", "grad_cam", "all"] | None = None,
    target: str | int | None = None,
    image_size: Size | None = None,
    precision: PrecisionChoice = "auto",
    device: DeviceChoice = "auto",
    output: AnyPath | None = None,
    skip_unreadable: bool = False,
    **settings: Any,
) -> list[Explained] | Iterator[Explained]:
    """Show what a model looks at in images, as `globalvit explain` does; files are written only to `output`.

    Args:
        images: as in `predict`, but no tensors.
        checkpoint: a run, a run folder (its best checkpoint), a checkpoint folder or a weight file.
        model: name of a model, for its published weights or for a file that does not say it.
        weights: published weights of `model` by name (default: its first).
        kind: what to look at (default: Grad-CAM, and global attention or groups).
        target: class by name or number, for Grad-CAM (default: the model's answer).
        image_size: side in pixels, or height and width.
        precision: `auto`, `fp32`, `tf32`, `bf16` or `fp16`; `auto` takes the run's own if that is native here.
        device: `auto`, `cpu`, `cuda` or `mps`.
        output: folder for overlays and contact sheets.
        skip_unreadable: log and leave out images that cannot be read, in place of an error.
        **settings: any other flag of `globalvit explain`, such as `stage`, `head` or `pixel`.

    Returns:
        For each image its `explanations` and their `rows`, and by `plot()` the contact sheet: a list, or of a generator
        an iterator.

    Raises:
        TypeError: no setting has this name; the text gives the right or the closest one.
        ValueError: an image, the model or a setting cannot be used, or the model has no such view.
        FileNotFoundError: an image or the checkpoint is not there.
    """
    _begin("explain")
    given = {
        "checkpoint": checkpoint,
        "model": model,
        "weights": weights,
        "kind": kind,
        "image_size": image_size,
        "precision": precision,
        "device": device,
        "target": target,
    }
    files = output and Path(output)
    options = _options(ExplainOptions, "explain", given | settings, OF_IMAGES, images=(), output=files)
    found = sources_of(images)
    explainer = Explainer(options)
    return _each(found, skip_unreadable, "explaining", explainer.explain)


def _begin(function: str) -> None:
    """Set up the log, and refuse to run in a process that only imports the caller's script.

    Raises:
        RuntimeError: a process that was started by the script is importing it.
    """
    # Where processes are spawned, each of them first imports the script that started it. Python refuses to start a
    # process from there by the same attribute.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            f"{function}() was called while a new process imports this script; put the call under "
            f'if __name__ == "__main__":'
        )
    start_logging_by_default()


def _options(
    kind: Callable[..., Options], function: str, given: Mapping[str, Any], more: Iterable[str] = (), **preset: Any
) -> Options:
    """Make the options of a command of what was given by name; None leaves a default."""
    known, hints = _fields_by_name(kind), get_type_hints(kind)
    _check_names(function, given, {*known, *more})
    values = {
        known[name]: convert(name, value, hints[known[name]], f"{function}()")
        for name, value in given.items()
        if value is not None
    }
    return kind(**values, **preset)


@lru_cache
def _fields_by_name(kind: Any) -> dict[str, str]:
    """Each name of a command's flags → the field of its options; the size of images has one name everywhere."""
    names = {name: item.name for item in fields(kind) for name in (item.name, *item.metadata.get("aliases", ()))}
    return {name: field for name, field in names.items() if name != "img_size"}


def _check_names(function: str, given: Iterable[str], known: Iterable[str]) -> None:
    known = set(known)
    for name in given:
        if name not in known:
            meant = name_here(name, known)
            near = f" Did you mean {meant!r}?" if meant else suggest(name, sorted(known))
            raise TypeError(f"unknown setting {name!r} of {function}().{near or f' See globalvit {function} --help'}")


def _each(
    sources: Iterator[Source] | list[Source],
    skip_unreadable: bool,
    description: str,
    work: Callable[[Iterable[Source], Reader], Iterator[Item]],
) -> list[Item] | Iterator[Item]:
    """What `work` makes of each image: a list of those of a list, and an iterator of those of an iterator."""
    kind = Reader if skip_unreadable else StrictReader
    if isinstance(sources, list) and not skip_unreadable:
        for source in sources:
            if isinstance(source, Missing):
                # Before anything is computed.
                raise source.error
    if not isinstance(sources, list):
        return work(sources, kind((), Progress(0, description, is_shown=False)))
    with Progress(len(sources), description) as progress:
        return list(work(sources, kind((), progress)))

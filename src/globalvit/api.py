"""The commands as Python functions: `train`, `validate`, `predict`, `export` and `explain`.

Each setting is named after the command's flag, with underscores: `--batch-size 8` is `batch_size=8`, and `--image-size`
is `image_size` everywhere. Results are bit-identical to those of the commands. Errors are Python exceptions with the
text that the command prints; nothing here ends the process.
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
# Names that functions taking images accept in addition to the flags of their commands.
OF_IMAGES = ("images", "skip_unreadable")


def train(
    *, config: AnyPath | None = None, resume: AnyPath | None = None, callbacks: Sequence[object] = (), **settings: Any
) -> Run:
    """Train or fine-tune a model, as `globalvit train` does; also works under torchrun.

    Example::

        run = gv.train(data_dir="photos", model="gcvit_tiny", epochs=10)
        run.scores, run.plot(), gv.validate(run), gv.predict("holiday", checkpoint=run)

    In a script, put calls under `if __name__ == "__main__":`.

    Args:
        config: a shipped recipe or a YAML file (default: fine-tuning for the model's task).
        resume: run or checkpoint to resume from, with its settings. `"auto"` resumes the run of `tag` if it exists.
        callbacks: objects with any of the methods `on_step`, `on_epoch`, `on_evaluate`, `on_checkpoint`, `on_end`; see
            `globalvit.train.callbacks`.
        **settings: any setting of `globalvit train`, such as `model`, `data_dir`, `weights` (None trains from scratch),
            `image_size`, `epochs`, `batch_size`, `lr`, `precision`, `device`, `workers`, `seed`, `output`, `tag`.

    Returns:
        The run: its folder, scores, records and curves. Pass it as `checkpoint` to the other functions.

    Raises:
        TypeError: a setting is unknown; the message suggests the closest name.
        ValueError: a setting or the data is invalid.
        FileNotFoundError: the data, a file or the run to resume does not exist.
        FloatingPointError: a loss or gradient is not finite.
        MemoryError: a batch does not fit into memory.
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
    folder = loop.train(chosen, recipe_name(source, chosen), stop, callbacks)
    if stop.ended_by and not chosen.exit_0_on_signal:
        # The signal was only deferred: without it, code after this call would take the run for a finished one.
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
    """Measure accuracy, mIoU or AP on labeled images, as `globalvit validate` does; also works under torchrun.

    Args:
        checkpoint: a run, a run folder (its best checkpoint), a checkpoint folder or a weight file.
        data_dir: data folder (default: the one that the checkpoint was trained on).
        split: split to measure on (default: `val`, `valid` or `validation`, or the images that the run held out).
        model: model name, for published weights or for a file that does not name its model.
        weights: name of published weights of `model` (default: the first).
        image_size: side length in pixels, or height and width.
        batch_size: images per forward pass (default: the run's).
        precision: `auto`, `fp32`, `tf32`, `bf16` or `fp16`; `auto` uses the run's precision if it is native here.
        device: `auto`, `cpu`, `cuda` or `mps`.
        workers: number of processes that read images.
        output: folder to write the scores to.
        **settings: any other flag of `globalvit validate`, such as `suite` or `eval_flip`.

    Returns:
        The result, with `scores`, `rows` by class, `confusion_matrix` and `plot()`.

    Raises:
        TypeError: a setting is unknown; the message suggests the closest name.
        ValueError: the model, the data or a setting is invalid.
        FileNotFoundError: the checkpoint or the data does not exist.
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
    """Predict classes, masks or boxes of images, as `globalvit predict` does.

    Args:
        images: path of an image or folder, a pattern such as `"photos/**/*.jpg"`, an http(s) URL, a PIL image, an RGB
            uint8 array (H, W, 3), a preprocessed float tensor (C, H, W), or a list of these. A generator of these is
            read lazily, `batch_size` images at a time.
        checkpoint: a run, a run folder (its best checkpoint), a checkpoint folder or a weight file.
        model: model name, for published weights or for a file that does not name its model.
        weights: name of published weights of `model` (default: the first).
        image_size: side length in pixels, or height and width.
        batch_size: images per forward pass (default: the run's).
        precision: `auto`, `fp32`, `tf32`, `bf16` or `fp16`; `auto` uses the run's precision if it is native here.
        device: `auto`, `cpu`, `cuda` or `mps`.
        skip_unreadable: log and skip images that cannot be read instead of raising an error.
        **settings: any other flag of `globalvit predict`: `top_k`, `score_threshold`, `max_detections`, `split`,
            `data_dir`, `output`, `draw`, `json`, `csv`, ….

    Returns:
        One result per image: the output of `model.predict`, and `image`, its path or its index in the list. A list, or
        an iterator if `images` is a generator.

    Raises:
        TypeError: a setting is unknown; the message suggests the closest name.
        ValueError: an image, the model or a setting is invalid.
        FileNotFoundError: an image or the checkpoint does not exist.
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
        raise ValueError("predict requires images=, or split= and the checkpoint of a run")
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
    """Export a model to ONNX or torch.export and compare the file with the model, as `globalvit export` does.

    Args:
        checkpoint: a run, a run folder (its best checkpoint), a checkpoint folder or a weight file.
        output: file to write, `.onnx` or `.pt2`.
        model: model name, for published weights or for a file that does not name its model.
        weights: name of published weights of `model` (default: the first); `"none"` exports random weights.
        format: `onnx` or `torch` (default: from the file extension).
        precision: of weights and computation: `fp32`, `fp16` or `bf16`.
        image_size: fix the image size of the exported model.
        force: replace the file if it exists.
        **settings: any other flag of `globalvit export`, such as `dynamic`, `preprocessing` or `postprocessing`.

    Returns:
        A report of what was written and how it compares with the model.

    Raises:
        TypeError: a setting is unknown; the message suggests the closest name.
        FileExistsError: the file exists and `force` is false.
        ValueError: the model cannot be exported in this format, or a setting is invalid.
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
        model: model name, for published weights or for a file that does not name its model.
        weights: name of published weights of `model` (default: the first).
        kind: kind of explanation (default: Grad-CAM, and global attention or group tokens).
        target: class name or index, for Grad-CAM (default: the predicted class).
        image_size: side length in pixels, or height and width.
        precision: `auto`, `fp32`, `tf32`, `bf16` or `fp16`; `auto` uses the run's precision if it is native here.
        device: `auto`, `cpu`, `cuda` or `mps`.
        output: folder for overlays and contact sheets.
        skip_unreadable: log and skip images that cannot be read instead of raising an error.
        **settings: any other flag of `globalvit explain`, such as `stage`, `head` or `pixel`.

    Returns:
        One result per image, with its `explanations`, their `rows`, and `plot()` for the contact sheet. A list, or an
        iterator if `images` is a generator.

    Raises:
        TypeError: a setting is unknown; the message suggests the closest name.
        ValueError: an image, the model or a setting is invalid, or the model does not have the requested view.
        FileNotFoundError: an image or the checkpoint does not exist.
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
    """Set up logging, and refuse to run in a process that only imports the caller's script.

    Raises:
        RuntimeError: a process spawned by the script is importing it.
    """
    # Each spawned process first imports the script that started it. Python checks the same attribute before it
    # refuses to start a process during that import.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            f"{function}() was called while a new process imports this script; put the call under "
            f'if __name__ == "__main__":'
        )
    start_logging_by_default()


def _options(
    kind: Callable[..., Options], function: str, given: Mapping[str, Any], more: Iterable[str] = (), **preset: Any
) -> Options:
    """Build a command's options from keyword arguments; None keeps the default."""
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
    """Map each flag name of a command to its options field; the image size has one name everywhere."""
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
    """Return the results of `work` for all images: a list for a list, an iterator for an iterator."""
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

"""`globalvit validate`: how well a model does on labelled pictures, exactly, on one process or under torchrun."""

import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from globalvit.cli import tables
from globalvit.cli.opening import ModelOptions, about, explained_memory, open_model
from globalvit.cli.options import UsageError, parse
from globalvit.cli.progress import Progress
from globalvit.data.imagenet import readable
from globalvit.train.fields import TrainConfig

if TYPE_CHECKING:
    from globalvit.data.image_folder import Source
    from globalvit.tasks.task import Task
    from globalvit.train.engine import Engine

logger = logging.getLogger(__name__)
SUMMARY = "Measure top-1, top-5 and loss on labelled pictures, class by class"
DATA = "data; as in the checkpoint's run unless given"
# More rows than this are not read on a screen; files hold them all.
MOST_ROWS = 40


@dataclass(frozen=True, kw_only=True)
class ValidateOptions(ModelOptions):
    """What `globalvit validate` is asked for."""

    data_dir: str | None = field(
        default=None, metadata=about(DATA, "folder that holds val/CLASS/PICTURE, or digits or shapes, built in")
    )
    val_split: str | None = field(
        default=None, metadata=about(DATA, "name of the folder to measure on; val, validation or test unless given")
    )
    workers: int | None = field(default=None, metadata=about(DATA, "loader processes of each process"))
    output: Path | None = field(
        default=None,
        metadata=about("answers", "folder for summary.json, per_class.csv and the confusion matrix (PNG, JSON, CSV)"),
    )


@dataclass(frozen=True)
class Result:
    """Scores of a model by name, the rows and matrix behind them, and the pictures left out (name → reason)."""

    model: str
    scores: dict[str, float]
    report: dict[str, Any]
    skipped: dict[str, str]


def run(argv: Sequence[str], prog: str) -> int:
    """Measure a model; return the exit status."""
    options = parse(ValidateOptions, argv, prog, SUMMARY)
    settings = options.settings()
    if settings.data_dir is None:
        raise UsageError(f"{prog} needs --data-dir; only a run folder knows the data it was trained on")
    from globalvit.train.engine import start_engine

    # Sharding is for training: a model that could be trained fits a device without its optimiser.
    with start_engine(replace(settings, fsdp=False)) as engine:
        task = open_model(options)
        source = open_source(task, settings)
        result = measure(task, source, settings, engine)
        if engine.is_main:
            show(result)
            if options.output:
                write(options.output, result, options.checkpoint)
    return 0


def open_source(task: "Task", settings: TrainConfig) -> "Source":
    """The validation pictures, labelled as the model's outputs are.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: its classes are not the model's; the text names those that differ.
    """
    from globalvit.data.image_folder import open_split

    assert settings.data_dir is not None
    source = open_split(settings.data_dir, settings.val_split or "val", task.classes)
    if len(source.classes) != task.spec.num_classes:
        raise ValueError(
            f"the model has {task.spec.num_classes} outputs and {settings.data_dir} has {len(source.classes)} classes; "
            "give the data it was trained on"
        )
    task.classes = readable(source.classes)
    return source


def measure(task: "Task", source: "Source", settings: TrainConfig, engine: "Engine") -> Result:
    """Score the model on all pictures of `source`, each counted once over all processes."""
    from globalvit.data.loading import eval_loader
    from globalvit.train.evaluate import evaluate

    _lay_out(task, settings)
    engine.place(task)
    loader = eval_loader(
        source,
        task.preprocessing,
        batch_size=settings.batch_size,
        rank=engine.rank,
        world=engine.world,
        workers=settings.workers,
    )
    with (
        closing(loader),
        Progress(len(loader), "validating", is_shown=engine.is_main) as progress,
        explained_memory(settings.batch_size),
    ):
        metric = evaluate(
            task,
            loader,
            task.preprocessing,
            engine.device,
            engine.precision,
            gather=engine.gather,
            on_batch=lambda _: progress.advance(),
        )
    skipped = {name: reason for share in engine.gather(loader.skipped.reasons) for name, reason in share.items()}
    return Result(task.spec.model, metric.compute(), metric.report(), skipped)


def _lay_out(task: "Task", settings: TrainConfig) -> None:
    """Compute as the run did, so that its scores come out to the last digit."""
    import torch

    if settings.channels_last:
        task.to(memory_format=torch.channels_last)
    # The average, where the run kept one, was never compiled.
    if settings.torchcompile and not settings.model_ema:
        task.compile()


def show(result: Result) -> None:
    """Print the classes' rows, worst first where there are many, then the scores."""
    rows = result.report["per_class"]
    if len(rows) > MOST_ROWS:
        rows = sorted(rows, key=lambda row: 101 if row["recall"] is None else row["recall"])[:MOST_ROWS]
        logger.info("the %d worst of %d classes; --output writes all", MOST_ROWS, len(result.report["per_class"]))
    tables.show([_shown(row) for row in rows])
    scores = result.scores
    tables.write_line(
        f"top1 {scores['top1']:.3f} %  top5 {scores['top5']:.3f} %  loss {scores['loss']:.5f}  "
        f"on {scores['count']:.0f} pictures" + (f", {len(result.skipped)} left out" if result.skipped else "")
    )


def write(folder: Path, result: Result, checkpoint: Path | None) -> None:
    """Write scores, rows and the confusion matrix to `folder`."""
    from globalvit.train.plots import plot_confusion

    rows, matrix = result.report["per_class"], result.report["confusion_matrix"]
    classes = [row["name"] for row in rows]
    origin = {"model": result.model, "checkpoint": checkpoint and str(checkpoint)}
    tables.write_json(folder / "summary.json", result.scores | origin | {"skipped": result.skipped})
    tables.write_csv(folder / "per_class.csv", list(rows[0]), [row.values() for row in rows])
    tables.write_json(folder / "confusion_matrix.json", {"classes": classes, "counts": matrix})
    named_rows = [[name, *counts] for name, counts in zip(classes, matrix, strict=True)]
    tables.write_csv(folder / "confusion_matrix.csv", ["true class", *classes], named_rows)
    plot_confusion(folder / "confusion_matrix.png", matrix, classes)


def _shown(row: dict[str, Any]) -> dict[str, str]:
    return {
        "class": row["name"],
        "pictures": str(row["images"]),
        "recall %": tables.number(row["recall"], 1),
        "precision %": tables.number(row["precision"], 1),
    }

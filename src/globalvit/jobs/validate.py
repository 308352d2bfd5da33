"""Exact evaluation of a model on labeled images, on one process or under torchrun."""

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from globalvit.console import Progress
from globalvit.data.classification.imagenet import readable
from globalvit.detectors.limits import LEAST_SCORE, check_limit
from globalvit.jobs import files
from globalvit.jobs.opening import RUNNING, ModelOptions, about, explained_memory, open_model, too_many
from globalvit.models.variants import Kind, ModelSpec
from globalvit.train.fields import TrainConfig

if TYPE_CHECKING:
    from PIL import Image

    from globalvit.data.classification.suites import SuiteImages
    from globalvit.metrics.curves import ClassCurve
    from globalvit.metrics.metric import Metric
    from globalvit.tasks.task import Task
    from globalvit.train.engine import Engine

logger = logging.getLogger(__name__)
SEGMENTATION = "segmentation (default: as in the checkpoint's run)"
DATA = "data (default: as in the checkpoint's run)"
# Metrics of each kind of task, by the names that GPViT's commands use.
MEASURED: dict[Kind, tuple[str, ...]] = {
    "classify": ("accuracy", "precision", "recall"),
    "segment": ("mIoU",),
    "detect": ("bbox", "segm"),
}
NEEDS_DATA = "requires --data-dir, since only a run folder records the data it was trained on"


@dataclass(frozen=True, kw_only=True)
class ValidateOptions(ModelOptions):
    """Options of `globalvit validate`."""

    data_dir: str | None = field(
        default=None, metadata=about(DATA, "folder with val/CLASS/IMAGE, or a built-in data set: digits or shapes")
    )
    val_split: str | None = field(
        default=None,
        metadata=about(
            DATA,
            "split to measure on, such as test (default: val, valid or validation, or the run's held-out images)",
            "split",
        ),
    )
    format: str | None = field(
        default=None,
        metadata=about(
            DATA,
            "coco, yolo, voc, folders, table, masks, class-masks, shards, huggingface (default: detected)",
        ),
    )
    val_annotations: str | None = field(
        default=None,
        metadata=about(DATA, "COCO annotation file for evaluation; may be outside --data-dir (default: detected)"),
    )
    max_detections: int | None = field(
        default=None,
        metadata=about(DATA, "maximum objects per image, best first, that a detector is scored on (default: 100)"),
    )
    suite: Literal["imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-sketch", "imagenet-real"] | None = field(
        default=None,
        metadata=about(
            DATA,
            "ImageNet test set in --data-dir, for models with its 1000 classes: folders are matched by WordNet id, "
            "index or class name, and only the set's classes are scored",
        ),
    )
    real_labels: Path | None = field(
        default=None, metadata=about(DATA, "real.json of ImageNet-ReaL (default: the copy in timm)")
    )
    workers: int | None = field(default=None, metadata=about(DATA, "data loading workers per process"))
    output: Path | None = field(
        default=None,
        metadata=about(
            "answers",
            "folder for report.html, summary.json, per_class.csv, the confusion matrix (PNG, JSON, CSV) and COCO's "
            "results.json",
        ),
    )
    report: bool = field(
        default=True,
        metadata=about(
            "answers", "write report.html to --output: scores, curves, confusion matrix and the worst images"
        ),
    )
    reduce_zero_label: bool | None = field(
        default=None, metadata=about(DATA, "label 0 marks pixels that are not scored, as in ADE20K")
    )
    crowd_as_instances: bool | None = field(
        default=None,
        metadata=about(DATA, "treat COCO annotations with iscrowd 1 as single objects, as CVAT writes them"),
    )
    ignore_label: int | None = field(default=None, metadata=about(DATA, "label to ignore, in addition to 255"))
    class_file: str | None = field(default=None, metadata=about(DATA, "file with class names and colors"))

    eval: tuple[str, ...] = field(
        default=(),
        metadata=about(
            DATA,
            "metrics as GPViT's commands name them, accepted for compatibility (also --metrics); they must fit the "
            "model's task",
        )
        | {"aliases": ("metrics",), "takes_words": True, "metavar": "WORD ..."},
    )

    eval_mode: Literal["whole", "slide"] | None = field(
        default=None,
        metadata=about(SEGMENTATION, "score whole images, or slide a window of the training crop size"),
    )
    eval_stride: int | None = field(
        default=None,
        metadata=about(SEGMENTATION, "stride of the sliding window in pixels (default: two thirds of its side)"),
    )
    eval_scales: tuple[float, ...] | None = field(
        default=None, metadata=about(SEGMENTATION, "scale factors to average predictions over")
    )
    eval_flip: bool | None = field(
        default=None, metadata=about(RUNNING, "average predictions with those of the flipped image")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_detections is not None:
            check_limit(self.max_detections, "--max-detections")
        if self.real_labels is not None and self.suite != "imagenet-real":
            raise ValueError("--real-labels requires --suite imagenet-real")
        if self.suite is not None and self.data_dir is None:
            raise ValueError(f"--suite {self.suite} requires --data-dir, the folder that contains it")
        if self.suite is not None and self.val_split is not None:
            raise ValueError("--suite and --val-split were both given; --data-dir may be the split's folder itself")


@dataclass(frozen=True)
class Result:
    """Result of an evaluation, identical on every process.

    Attributes:
        kind: kind of task: `classify`, `segment` or `detect`.
        model: name of the model.
        metric: the metric, updated on all images.
        skipped: name → reason of each skipped image.
        noted: position in the data of each image → what its evaluation noted, if a report is written.
        category_ids: in detection, the data set's category id of each label; None for classes that it does not list.
    """

    kind: Kind
    model: str
    metric: "Metric" = field(repr=False)
    skipped: dict[str, str] = field(repr=False)
    category_ids: tuple[int | None, ...] | None = field(default=None, repr=False)
    noted: dict[int, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def scores(self) -> dict[str, float]:
        """Return the scores by name: accuracies in percent, the loss as is; `count` is the number of images."""
        return self.metric.compute()

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Return one row per class, with its name and its scores in percent; None if a score is undefined."""
        rows = self.metric.report()["per_class"]
        for row, curve in zip(rows, self.curves or (), strict=False):
            best = curve.best(LEAST_SCORE)
            row["f1"], row["score_threshold"] = (100 * best[1], best[0]) if best else (None, None)
        return rows

    @cached_property
    def curves(self) -> "list[ClassCurve] | None":
        """Return each class's precision, recall and F1 of boxes at IoU 0.5 over the score; None in other tasks."""
        return self.metric.curves() if self.kind == "detect" else None  # pyright: ignore[reportAttributeAccessIssue]

    @cached_property
    def confusion_matrix(self) -> list[list[int]] | None:
        """Return counts of images, pixels or boxes by true class (rows) and predicted class (columns).

        None if images have several labels, which are not confused with each other.

        In detection, the last row and column are the background: false and missed boxes, at IoU 0.5 and each class's
        best score threshold.
        """
        if self.kind == "detect":
            return self.metric.confusion_matrix(LEAST_SCORE)  # pyright: ignore[reportAttributeAccessIssue]
        return self.metric.report().get("confusion_matrix")

    @property
    def matrix_names(self) -> list[str]:
        """Return the names of the confusion matrix's rows and columns."""
        return [row["name"] for row in self.rows] + ["background"] * (self.kind == "detect")

    def plot(self) -> "Image.Image":
        """Draw the confusion matrix, or in detection the AP of each class."""
        from globalvit.train.plots import confusion_figure, row_figure, to_image

        if self.kind != "detect" and self.confusion_matrix is not None:
            return to_image(confusion_figure(self.confusion_matrix, self.matrix_names))
        keys = [key for key in ("ap", "ap_box", "ap_mask") if key in self.rows[0]]
        return to_image(
            row_figure(self.rows, {key.replace("ap_", "").replace("ap", "image") + " AP": key for key in keys})
        )

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in self.scores.items())
        return f"<{self.model}: {shown}>"


def validate(options: ValidateOptions) -> Result:
    """Evaluate a model; every process returns the same result, and rank 0 writes the files.

    Raises:
        FileNotFoundError: the checkpoint or the data does not exist.
        ValueError: the model, the data or a setting is invalid, or no data was given.
    """
    settings = options.settings()
    if settings.data_dir is None:
        raise ValueError(f"validate {NEEDS_DATA}")
    from globalvit.train.engine import start_engine

    with start_engine(settings) as engine:
        task = open_model(options)
        check_words(options.eval, task.spec)
        settings = replace(settings, model=task.spec.model)
        if options.max_detections is not None:
            limit(task, options.max_detections)
        make_metric = None
        if options.suite is None:
            source = open_source(task, replace(settings, multi_label=task.spec.multi_label))
        else:
            source, make_metric = open_suite(task, options)
        is_reported = options.report and options.output is not None
        result = measure(task, source, settings, engine, make_metric, is_noted=is_reported and make_metric is None)
        if engine.is_main and options.output:
            write(options.output, result, options.checkpoint)
            if is_reported:
                _report(options, result, task, source, settings, engine)
    return result


def check_words(words: Sequence[str], spec: ModelSpec) -> None:
    """Check that metric names of other tools fit the model's kind of task.

    Raises:
        ValueError: they do not; the message lists the metrics.
    """
    from globalvit.train.feed_detect import BOXES_ONLY

    measured = MEASURED[spec.kind][:1] if spec.head in BOXES_ONLY else MEASURED[spec.kind]
    foreign = [word for word in words if word not in measured]
    if foreign:
        raise ValueError(
            f"--eval {' '.join(foreign)}: {spec.model} is measured by {', '.join(measured)}; leave --eval out"
        )


def limit(task: "Task", max_detections: int) -> None:
    """Limit the number of objects per image that a detector is scored on.

    Raises:
        ValueError: the model is not a detector.
    """
    from globalvit.tasks.detect import Detector

    if not isinstance(task, Detector):
        raise ValueError(f"--max-detections requires a detector; {task.spec.model} is not one")
    task.max_detections = max_detections


def open_source(task: "Task", settings: TrainConfig) -> Any:
    """Return the validation images, with labels that match the model's outputs.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: the classes are not the model's; the message lists those that differ.
    """
    from globalvit.data.common.orientation import warn_of_frames
    from globalvit.train.feeds import feed_for
    from globalvit.train.inputs import open_held_out

    if settings.val_fraction:
        source = open_held_out(settings, task.classes)
        logger.info("evaluating on the %d images that the run held out of %r", len(source), settings.train_split)
    else:
        source = feed_for(settings).open_split(settings.val_split or "val", task.classes)
    if len(source.classes) != task.spec.num_classes:
        raise ValueError(
            f"the model has {task.spec.num_classes} outputs and {settings.data_dir} has {len(source.classes)} classes; "
            "give the data it was trained on"
        )
    task.classes = readable(source.classes)
    warn_of_frames(source)
    return source


def open_suite(task: "Task", options: ValidateOptions) -> "tuple[SuiteImages, Callable[[], Metric]]":
    """Open an ImageNet test set; return it with a factory for its metric.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: the model does not have ImageNet's classes, or the folder does not contain that set.
    """
    from globalvit.data.classification.suites import SUITES, match_outputs, open_suite
    from globalvit.metrics.suites import RealAccuracy, SubsetAccuracy

    assert options.suite is not None
    assert options.data_dir is not None
    suite = SUITES[options.suite]
    if task.kind != "classify" or task.spec.multi_label:
        raise ValueError(f"--suite {options.suite} requires a single-label classifier; {task.spec.model} is not one")
    outputs = match_outputs(task.classes, task.spec.num_classes, suite.title)
    source = open_suite(options.suite, Path(options.data_dir), options.real_labels)
    allowed = source.allowed
    if allowed is not None:
        return source, lambda: RealAccuracy(source.classes, outputs, allowed)
    chosen = [outputs[index] for index in suite.classes]
    return source, lambda: SubsetAccuracy(source.classes, chosen)


def measure(
    task: "Task",
    source: Any,
    settings: TrainConfig,
    engine: "Engine",
    make_metric: "Callable[[], Metric] | None" = None,
    *,
    is_noted: bool = False,
) -> Result:
    """Score the model on all images of `source`, each counted once over all processes.

    With `is_noted`, also note how it does on each image.
    """
    from globalvit.train.evaluate import evaluate
    from globalvit.train.feeds import feed_for

    noted: dict[int, Any] = {}
    if is_noted:
        make_metric = lambda: _noting(task.metric(), noted)  # noqa: E731
    feed = feed_for(settings)
    feed.set_up(task)
    _lay_out(task, settings)
    engine.place(task)
    logger.info("precision %s (%s)", engine.precision, engine.precision_reason)
    loader = feed.eval_loader(
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
        explained_memory(too_many(settings.batch_size)),
    ):
        metric = evaluate(
            task,
            loader,
            task.preprocessing,
            engine.device,
            engine.precision,
            gather=engine.gather,
            on_batch=lambda _: progress.advance(),
            make_metric=make_metric,
        )
    skipped = {name: reason for share in engine.gather(loader.skipped.reasons) for name, reason in share.items()}
    noted = {at: note for share in engine.gather(noted) for at, note in share.items()} if is_noted else {}
    return Result(task.kind, task.spec.model, metric, skipped, getattr(source, "category_ids", None), noted)


def _noting(metric: "Metric", noted: dict[int, Any]) -> "Metric":
    metric.noted = noted
    return metric


def _report(
    options: ValidateOptions, result: Result, task: "Task", source: Any, settings: TrainConfig, engine: "Engine"
) -> None:
    """Write report.html."""
    from globalvit.hardware import autocast
    from globalvit.jobs.gallery import worst
    from globalvit.jobs.report import write_report

    gallery = worst(result, task, source, result.noted, lambda: autocast(engine.device.type, engine.precision))
    names = ("data_dir", "val_split", "batch_size", "img_size", "short_side", "long_side", "eval_mode")
    shown = {"checkpoint": options.checkpoint, "model": result.model}
    shown |= {name: getattr(settings, name) for name in (*names, "eval_scales", "eval_flip")}
    shown |= {"max_detections": options.max_detections, "precision": engine.precision, "device": engine.device}
    assert options.output is not None
    write_report(options.output / "report.html", result, gallery, {k: v for k, v in shown.items() if v is not None})


def _lay_out(task: "Task", settings: TrainConfig) -> None:
    """Compute as the training run did, so that its scores are reproduced exactly."""
    import torch

    if settings.channels_last:
        task.to(memory_format=torch.channels_last)
    # The averaged model, if the run kept one, was not compiled.
    if settings.torchcompile and not settings.model_ema:
        task.compile()


def write(folder: Path, result: Result, checkpoint: Path | None) -> None:
    """Write scores, rows, and the task's confusion matrix or detections to `folder`."""
    rows = result.rows
    origin = {"model": result.model, "checkpoint": checkpoint and str(checkpoint)}
    files.write_json(folder / "summary.json", result.scores | origin | {"skipped": result.skipped})
    files.write_csv(folder / "per_class.csv", list(rows[0]), [row.values() for row in rows])
    if result.confusion_matrix is not None:
        _write_matrix(folder, result.matrix_names, result.confusion_matrix)
    if result.kind == "detect":
        from globalvit.metrics.coco_ap import CocoAP

        assert isinstance(result.metric, CocoAP)
        ids = result.category_ids or tuple(range(len(rows)))
        if None in ids:
            logger.info("results.json omits classes that the annotations do not list, since they have no category_id")
        files.write_json(folder / "results.json", result.metric.results(ids))


def _write_matrix(folder: Path, classes: Sequence[str], matrix: Sequence[Sequence[int]]) -> None:
    from globalvit.train.plots import plot_confusion

    files.write_json(folder / "confusion_matrix.json", {"classes": classes, "counts": matrix})
    named_rows = [[name, *counts] for name, counts in zip(classes, matrix, strict=True)]
    files.write_csv(folder / "confusion_matrix.csv", ["true class", *classes], named_rows)
    plot_confusion(folder / "confusion_matrix.png", matrix, classes)

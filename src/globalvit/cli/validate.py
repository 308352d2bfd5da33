"""`globalvit validate`: how well a model does on labeled images, exactly, on one process or under torchrun."""

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from globalvit.cli import tables
from globalvit.cli.opening import ModelOptions, about, explained_memory, open_model, too_many
from globalvit.cli.options import UsageError, parse
from globalvit.cli.progress import Progress
from globalvit.cli.scores import LAYOUTS
from globalvit.data.classification.imagenet import readable
from globalvit.detectors.limits import check_limit
from globalvit.models.variants import Kind
from globalvit.train.fields import TrainConfig

if TYPE_CHECKING:
    from globalvit.data.classification.suites import SuiteImages
    from globalvit.metrics.metric import Metric
    from globalvit.tasks.task import Task
    from globalvit.train.engine import Engine

logger = logging.getLogger(__name__)
SUMMARY = "Measure accuracy, mIoU or AP on labeled images, class by class"
SEGMENTATION = "segmentation (default: as in the checkpoint's run)"
DATA = "data (default: as in the checkpoint's run)"
# More rows than this are not read on a screen; files hold them all.
MOST_ROWS = 40


@dataclass(frozen=True, kw_only=True)
class ValidateOptions(ModelOptions):
    """What `globalvit validate` is asked for."""

    data_dir: str | None = field(
        default=None, metadata=about(DATA, "folder that holds val/CLASS/IMAGE, or digits or shapes, built in")
    )
    val_split: str | None = field(
        default=None,
        metadata=about(
            DATA,
            "split to measure on, such as test (default: val, valid or validation, or what the run held out)",
            "split",
        ),
    )
    format: str | None = field(
        default=None,
        metadata=about(
            DATA, "format of the data: coco, yolo, voc, folders or table (default: the one that the folder fits)"
        ),
    )
    val_annotations: str | None = field(
        default=None,
        metadata=about(DATA, "COCO annotations to measure with, below --data-dir or anywhere (default: found)"),
    )
    max_detections: int | None = field(
        default=None,
        metadata=about(DATA, "objects of each image that a detector is scored with, the best ones (default: 100)"),
    )
    suite: Literal["imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-sketch", "imagenet-real"] | None = field(
        default=None,
        metadata=about(
            DATA,
            "test set of ImageNet in --data-dir, for models with its 1000 classes: folders are matched by WordNet id, "
            "index or class name, and only the set's classes are scored",
        ),
    )
    real_labels: Path | None = field(
        default=None, metadata=about(DATA, "real.json of ImageNet-ReaL (default: the copy that timm has)")
    )
    workers: int | None = field(default=None, metadata=about(DATA, "workers of each process"))
    output: Path | None = field(
        default=None,
        metadata=about(
            "answers",
            "folder for summary.json, per_class.csv, the confusion matrix (PNG, JSON, CSV) and COCO's results.json",
        ),
    )
    reduce_zero_label: bool | None = field(
        default=None, metadata=about(DATA, "label 0 stands for what is not to be scored, as in ADE20K")
    )
    crowd_as_instances: bool | None = field(
        default=None, metadata=about(DATA, "read COCO annotations with iscrowd 1 as single objects, as CVAT means them")
    )
    ignore_label: int | None = field(
        default=None, metadata=about(DATA, "value of label maps that is to be ignored, in addition to 255")
    )
    class_file: str | None = field(default=None, metadata=about(DATA, "file with the classes' names and colors"))

    eval_mode: Literal["whole", "slide"] | None = field(
        default=None,
        metadata=about(SEGMENTATION, "score whole images, or by a window as large as training's crops"),
    )
    eval_stride: int | None = field(
        default=None, metadata=about(SEGMENTATION, "pixels between windows (default: two thirds of their side)")
    )
    eval_scales: tuple[float, ...] | None = field(
        default=None, metadata=about(SEGMENTATION, "sizes to average, as factors")
    )
    eval_flip: bool | None = field(
        default=None, metadata=about(SEGMENTATION, "average each image and its mirror image")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_detections is not None:
            check_limit(self.max_detections, "--max-detections")
        if self.real_labels is not None and self.suite != "imagenet-real":
            raise ValueError("--real-labels requires --suite imagenet-real")
        if self.suite is not None and self.data_dir is None:
            raise ValueError(f"--suite {self.suite} requires --data-dir, the folder that holds it")
        if self.suite is not None and self.val_split is not None:
            raise ValueError("--suite and --val-split were both given; --data-dir may be the split's folder itself")


@dataclass(frozen=True)
class Result:
    """What was measured.

    Attributes:
        kind: of the task.
        model: its name.
        metric: over all images.
        skipped: the images left out, name → reason.
        category_ids: of detection, the data set's own id of each label.
    """

    kind: Kind
    model: str
    metric: "Metric"
    skipped: dict[str, str]
    category_ids: tuple[int, ...] | None = None


def run(argv: Sequence[str], prog: str) -> int:
    """Measure a model; return the exit status."""
    options = parse(ValidateOptions, argv, prog, SUMMARY)
    settings = options.settings()
    if settings.data_dir is None:
        raise UsageError(f"{prog} needs --data-dir; only a run folder knows the data it was trained on")
    from globalvit.train.engine import start_engine

    # Sharding is for training: a model that could be trained fits a device without its optimizer.
    with start_engine(replace(settings, fsdp=False)) as engine:
        task = open_model(options)
        settings = replace(settings, model=task.spec.model)
        if options.max_detections is not None:
            _limit(task, options.max_detections)
        make_metric = None
        if options.suite is None:
            source = open_source(task, settings)
        else:
            source, make_metric = open_suite(task, options)
        result = measure(task, source, settings, engine, make_metric)
        if engine.is_main:
            show(result)
            if options.output:
                write(options.output, result, options.checkpoint)
    return 0


def _limit(task: "Task", max_detections: int) -> None:
    from globalvit.tasks.detect import Detector

    if not isinstance(task, Detector):
        raise ValueError(f"--max-detections requires a detector; {task.spec.model} is not one")
    task.max_detections = max_detections


def open_source(task: "Task", settings: TrainConfig) -> Any:
    """The validation images, labeled as the model's outputs are.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: its classes are not the model's; the text names those that differ.
    """
    from globalvit.train.feeds import feed_for
    from globalvit.train.inputs import open_held_out

    if settings.val_fraction:
        source = open_held_out(settings, task.classes)
        logger.info("measured on the %d images that the run held out of %r", len(source), settings.train_split)
    else:
        source = feed_for(settings).open_split(settings.val_split or "val", task.classes)
    if len(source.classes) != task.spec.num_classes:
        raise ValueError(
            f"the model has {task.spec.num_classes} outputs and {settings.data_dir} has {len(source.classes)} classes; "
            "give the data it was trained on"
        )
    task.classes = readable(source.classes)
    return source


def open_suite(task: "Task", options: ValidateOptions) -> "tuple[SuiteImages, Callable[[], Metric]]":
    """Open a test set of ImageNet, and what makes the metric for it.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: the model does not have ImageNet's classes, or the folder is not that set.
    """
    from globalvit.data.classification.suites import SUITES, match_outputs, open_suite
    from globalvit.metrics.suites import RealAccuracy, SubsetAccuracy

    assert options.suite is not None
    assert options.data_dir is not None
    suite = SUITES[options.suite]
    if task.kind != "classify":
        raise ValueError(f"--suite {options.suite} requires a classifier; {task.spec.model} is not one")
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
) -> Result:
    """Score the model on all images of `source`, each counted once over all processes."""
    from globalvit.train.evaluate import evaluate
    from globalvit.train.feeds import feed_for

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
    return Result(task.kind, task.spec.model, metric, skipped, getattr(source, "category_ids", None))


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
    layout, scores = LAYOUTS[result.kind], result.metric.compute()
    rows = all_rows = result.metric.report()["per_class"]
    if len(rows) > MOST_ROWS:
        rows = sorted(rows, key=lambda row: 101 if row[layout.judged] is None else row[layout.judged])[:MOST_ROWS]
        logger.info("the %d worst of %d classes; --output writes all", MOST_ROWS, len(all_rows))
    tables.show([layout.cells(row) for row in rows])
    left_out = f", {len(result.skipped)} left out" if result.skipped else ""
    tables.write_line(f"{layout.summary(scores)}  on {scores['count']:.0f} images{left_out}")


def write(folder: Path, result: Result, checkpoint: Path | None) -> None:
    """Write scores, rows, the confusion matrix and detections to `folder`, as far as the task has them."""
    report = result.metric.report()
    rows = report["per_class"]
    origin = {"model": result.model, "checkpoint": checkpoint and str(checkpoint)}
    tables.write_json(folder / "summary.json", result.metric.compute() | origin | {"skipped": result.skipped})
    tables.write_csv(folder / "per_class.csv", list(rows[0]), [row.values() for row in rows])
    if "confusion_matrix" in report:
        _write_matrix(folder, [row["name"] for row in rows], report["confusion_matrix"])
    if result.kind == "detect":
        from globalvit.metrics.coco_ap import CocoAP

        assert isinstance(result.metric, CocoAP)
        ids = result.category_ids or tuple(range(len(rows)))
        tables.write_json(folder / "results.json", result.metric.results(ids))


def _write_matrix(folder: Path, classes: Sequence[str], matrix: Sequence[Sequence[int]]) -> None:
    from globalvit.train.plots import plot_confusion

    tables.write_json(folder / "confusion_matrix.json", {"classes": classes, "counts": matrix})
    named_rows = [[name, *counts] for name, counts in zip(classes, matrix, strict=True)]
    tables.write_csv(folder / "confusion_matrix.csv", ["true class", *classes], named_rows)
    plot_confusion(folder / "confusion_matrix.png", matrix, classes)

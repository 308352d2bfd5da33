"""`globalvit data`: look a data folder over, see what training makes of it, and pack it."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from globalvit.atomic import replace_with
from globalvit.cli import data_lmdb, data_shapes, data_split, tables
from globalvit.cli.options import UsageError, choose, parse, parse_flags
from globalvit.closest import suggest
from globalvit.console import Progress
from globalvit.jobs import files
from globalvit.models.variants import ModelSpec
from globalvit.train.config import TrainConfig, load_config
from globalvit.train.fields import AUGMENTATION, DETECTION, LAYOUTS, SEGMENTATION

if TYPE_CHECKING:
    from PIL import Image

    from globalvit.data.common.checks import Problem, Report

SUMMARY = "Check a data folder, preview what training sees, pack images into LMDB databases, or draw a small set"
COMMANDS = {
    "check": "Find unreadable images, empty or differing classes, and images that lie in two splits",
    "preview": "Draw a sheet of augmented training images, as a recipe makes them",
    "split": data_split.SUMMARY,
    "lmdb": data_lmdb.SUMMARY,
    "shapes": data_shapes.SUMMARY,
}
# Files of like problems that are printed beside the first; --json writes all.
MOST_EXAMPLES = 3
# Kinds of problems whose text does not name the files.
UNNAMED = ("leak", "two labels")
# Settings of training, beside augmentation, that decide about its images.
SHOWN = (
    *("model", "weights", "img_size", "in_chans", "data_dir", "train_split", "num_classes", "format"),
    *("short_side", "long_side", "mean", "std", "seed"),
)


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """What `globalvit data check` is asked for."""

    data_dir: Path = field(
        metadata={"help": "folder with a folder for each split, or with images/ and annotations/ of them"}
    )
    split: str | None = field(default=None, metadata={"help": "the only split to check (default: all)"})
    nested_classes: bool = field(
        default=False, metadata={"help": "every folder that directly holds images is a class, at any depth"}
    )
    num_classes: int | None = field(
        default=None, metadata={"help": "classes of label maps, where no class file names them"}
    )
    reduce_zero_label: bool = field(
        default=False, metadata={"help": "label 0 of label maps stands for what is not to be learned"}
    )
    ignore_label: int | None = field(
        default=None, metadata={"help": "value of label maps that is to be ignored, in addition to 255"}
    )
    class_file: str | None = field(
        default=None, metadata={"help": "file with the names of label maps' classes (default: that of the data)"}
    )
    crowd_as_instances: bool = field(
        default=False, metadata={"help": "read COCO annotations with iscrowd 1 as single objects, as CVAT means them"}
    )
    format: str | None = field(
        default=None,
        metadata={
            "help": "format of the data: coco, yolo, voc, folders or table (default: the one that the folder fits)"
        },
    )
    train_annotations: str | None = field(
        default=None, metadata={"help": "COCO annotations of the images to train on (default: found)"}
    )
    val_annotations: str | None = field(
        default=None, metadata={"help": "COCO annotations of the images to evaluate on (default: found)"}
    )
    workers: int | None = field(
        default=None, metadata={"help": "processes that read (default: one per processor), 0 reads in this one"}
    )
    json: Path | None = field(default=None, metadata={"help": "write everything found to this file"})


@dataclass(frozen=True, kw_only=True)
class PreviewOptions:
    """What `globalvit data preview` is asked for, beside settings of training.

    Raises:
        ValueError: a number is out of its range.
    """

    config: str | None = field(
        default=None,
        metadata={"help": "a shipped recipe or a YAML file (default: fine-tuning for the model's kind of task)"},
    )
    output: Path = field(default=Path("preview.png"), metadata={"help": "PNG file to write"})
    images: int = field(default=32, metadata={"help": "images to draw"})
    epoch: int = field(default=0, metadata={"help": "epoch to look at"})

    def __post_init__(self) -> None:
        if self.images < 1 or self.epoch < 0:
            raise ValueError(f"--images {self.images} must be 1 or more, --epoch {self.epoch} 0 or more")


def run(argv: Sequence[str], prog: str) -> int:
    """Run one of the commands; return the exit status."""
    name, rest = choose(COMMANDS, argv, prog, SUMMARY)
    runs = {
        "check": run_check,
        "preview": run_preview,
        "split": data_split.run,
        "lmdb": data_lmdb.run,
        "shapes": data_shapes.run,
    }
    return runs[name](rest, f"{prog} {name}")


def run_check(argv: Sequence[str], prog: str) -> int:
    """Look a folder over; the exit status is 1 if anything is wrong."""
    options = parse(CheckOptions, argv, prog, COMMANDS["check"])
    reports = {title: _run_check(check, options) for title, check in _checks(options).items()}
    for title, report in reports.items():
        tables.show([_row(split) for split in report.to_dict()["splits"]], title if len(reports) > 1 else None)
    report = _joined(list(reports.values()))
    _tell(report)
    if options.json:
        files.write_json(options.json, report.to_dict())
    return 1 if report.problems else 0


def run_preview(argv: Sequence[str], prog: str) -> int:
    """Draw a sheet of images as training sees them."""
    given = parse_flags(_preview_flags(), argv, prog, COMMANDS["preview"])
    own = [item.name for item in fields(PreviewOptions)]
    try:
        options = PreviewOptions(**{name: given.pop(name) for name in own if name in given})
    except ValueError as error:
        raise UsageError(str(error)) from error
    config = load_config(options.config, given)
    if config.data_dir is None:
        layout = LAYOUTS[ModelSpec(model=config.model).kind]
        raise UsageError(f"{prog} needs --data-dir FOLDER with {layout}; see {prog} --help")
    sheet = draw(config, options)
    with replace_with(options.output) as temporary:
        sheet.save(temporary, format="PNG")
    tables.write_line(f"{options.output}: {sheet.width}×{sheet.height} pixels")
    return 0


def draw(config: TrainConfig, options: PreviewOptions) -> "Image.Image":
    """The first images of an epoch, augmented, erased and mixed as the config says."""
    import torch

    from globalvit.train.feeds import feed_for
    from globalvit.train.inputs import Inputs, Splits, evaluation_transform

    source = feed_for(config).open_split(config.train_split)
    # An even number, since images are mixed in pairs.
    count = min(options.images + options.images % 2, len(source) // 2 * 2) or 1
    config = replace(config, batch_size=count, grad_accum_steps=1, workers=0, channels_last=False)
    inputs = Inputs(config, Splits(source, source), evaluation_transform(config), torch.device("cpu"), 0, 1)
    (batch,) = next(inputs.steps(options.epoch, 0))
    return inputs.sheet(inputs.ready(batch, options.epoch, options.epoch * inputs.steps_per_epoch))


def _preview_flags() -> type:
    """The preview's own flags, and those settings of training that decide about its images."""
    groups = (AUGMENTATION, SEGMENTATION, DETECTION)
    shown = [item for item in fields(TrainConfig) if item.metadata["group"] in groups or item.name in SHOWN]
    flags: list[Any] = [(item.name, item.type, field(default=item.default, metadata=item.metadata)) for item in shown]
    return make_dataclass("PreviewFlags", flags, bases=(PreviewOptions,), frozen=True, kw_only=True)


def _checks(options: CheckOptions) -> dict[str, "Callable[..., Report]"]:
    """What looks the folder over, by the kind of data it holds; one folder may serve several tasks."""
    from globalvit.data.classification.checks import check_folder
    from globalvit.data.classification.dataset import FORMATS
    from globalvit.data.detection.registry import FORMATS as OBJECT_FORMATS
    from globalvit.data.detection.registry import holds_objects
    from globalvit.data.segmentation.checks import check_masks, is_mask_set

    checks: dict[str, Callable[..., Report]] = {}
    if options.format is None and options.data_dir.is_dir() and is_mask_set(options.data_dir):
        names = ("num_classes", "reduce_zero_label", "class_file", "ignore_label")
        checks["label maps"] = partial(check_masks, **{name: getattr(options, name) for name in names})
    names = [one.name for one in (*FORMATS, *OBJECT_FORMATS)]
    if options.format is not None and options.format not in names:
        raise ValueError(
            f"unknown format {options.format!r};{suggest(options.format, names)} expected one of {', '.join(names)}"
        )
    given = {"train": options.train_annotations, "val": options.val_annotations}
    annotations = {split: name for split, name in given.items() if name is not None}
    if annotations or (options.data_dir.is_dir() and holds_objects(options.data_dir, options.format)):
        from globalvit.data.detection.checks import check_detection

        checks["objects"] = partial(
            check_detection,
            form=options.format,
            annotations=annotations,
            crowd_as_instances=options.crowd_as_instances,
        )
    return checks or {"class folders": partial(check_folder, form=options.format, nested=options.nested_classes)}


def _run_check(check: "Callable[..., Report]", options: CheckOptions) -> "Report":
    """Check with a progress bar, which starts once the images are counted."""
    from globalvit.data.common.checks import default_workers

    with ExitStack() as stack:
        bars: list[Progress] = []
        return check(
            options.data_dir,
            split=options.split,
            workers=default_workers() if options.workers is None else options.workers,
            on_start=lambda total: bars.append(stack.enter_context(Progress(total, "reading"))),
            on_image=lambda: bars[0].advance(),
        )


def _joined(reports: "Sequence[Report]") -> "Report":
    """Everything that several checks found."""
    from globalvit.data.common.checks import Report

    return Report(
        [split for report in reports for split in report.splits],
        [problem for report in reports for problem in report.problems],
        [note for report in reports for note in report.notes],
        sum(report.repeated for report in reports),
    )


def _row(split: dict[str, Any]) -> dict[str, str]:
    return {key.replace("_", " "): str(value) for key, value in split.items()}


def _tell(report: "Report") -> None:
    """Print one line per group of like problems and notes, then one that sums up."""
    for note in report.notes:
        tables.write_line(f"note: {note.kind}: {note.text}")
    if report.repeated:
        tables.write_line(f"note: {report.repeated} images lie more than once in their class")
    groups: dict[tuple[str, str], list[Problem]] = {}
    for problem in report.problems:
        groups.setdefault((problem.kind, _without_details(problem)), []).append(problem)
    for (kind, _), problems in groups.items():
        first = problems[0]
        # Other texts name their files.
        where = f": {', '.join(first.files)}" if kind in UNNAMED else ""
        more = f" (and {len(problems) - 1} more like it{_examples(problems[1:])})" if len(problems) > 1 else ""
        tables.write_line(f"{kind}: {first.text}{where}{more}")
    if any(len(problems) > 1 + MOST_EXAMPLES for problems in groups.values()):
        tables.write_line("--json FILE writes all problems with their files")
    counts = ", ".join(f"{number} × {kind}" for kind, number in Counter(one.kind for one in report.problems).items())
    tables.write_line(f"problems: {counts}" if counts else "nothing is wrong")


def _without_details(problem: "Problem") -> str:
    """The text without files and numbers, which like problems share."""
    text = problem.text
    for path in sorted(problem.files, key=len, reverse=True):
        text = text.replace(path, "")
    return re.sub(r"\d+(, \d+)*", "0", text) if problem.files else text


def _examples(problems: "Sequence[Problem]") -> str:
    """The files of the first of some problems."""
    names = [problem.files[0] for problem in problems[:MOST_EXAMPLES] if problem.files]
    return f": {', '.join(names)}{', …' if len(problems) > len(names) else ''}" if names else ""

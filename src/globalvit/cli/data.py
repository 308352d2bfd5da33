"""`globalvit data`: check a data folder, preview its augmented images, split it, and pack it."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from globalvit.atomic import replace_with
from globalvit.cli import data_lmdb, data_pack, data_shapes, data_split, tables
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

SUMMARY = "Check a data folder, preview training images, pack images into LMDB databases, or draw a small data set"
COMMANDS = {
    "check": "Find unreadable images, empty or differing classes, and images that occur in two splits",
    "preview": "Draw a sheet of training images, augmented as a recipe does it",
    "split": data_split.SUMMARY,
    "pack": data_pack.SUMMARY,
    "lmdb": data_lmdb.SUMMARY,
    "shapes": data_shapes.SUMMARY,
}
# Further files printed per kind of problem; --json writes all.
MOST_EXAMPLES = 3
# Kinds of problems whose message does not name the files.
UNNAMED = ("leak", "two labels")
# Training settings other than augmentation that affect the images.
SHOWN = (
    *("model", "weights", "img_size", "in_chans", "data_dir", "train_split", "num_classes", "format"),
    *("short_side", "long_side", "mean", "std", "seed"),
)


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """Options of `globalvit data check`."""

    data_dir: Path = field(
        metadata={"help": "folder with one folder per split, or with images/SPLIT and annotations/SPLIT"}
    )
    split: str | None = field(default=None, metadata={"help": "split to check (default: all)"})
    multi_label: bool | Literal["auto"] = field(
        default="auto", metadata={"help": "whether images of a table may have any number of labels"}
    )
    nested_classes: bool = field(
        default=False, metadata={"help": "treat every folder that directly contains images as a class, at any depth"}
    )
    num_classes: int | None = field(
        default=None, metadata={"help": "number of classes in label maps, if there is no class file"}
    )
    reduce_zero_label: bool = field(
        default=False, metadata={"help": "label 0 of label maps marks pixels that are not learned"}
    )
    ignore_label: int | None = field(
        default=None, metadata={"help": "label to ignore in label maps, in addition to 255"}
    )
    class_file: str | None = field(
        default=None, metadata={"help": "file with the class names of label maps (default: the data folder's)"}
    )
    crowd_as_instances: bool = field(
        default=False, metadata={"help": "treat COCO annotations with iscrowd 1 as single objects, as CVAT writes them"}
    )
    format: str | None = field(
        default=None,
        metadata={
            "help": "coco, yolo, voc, folders, table, masks, class-masks, shards, huggingface (default: detected)"
        },
    )
    train_annotations: str | None = field(
        default=None, metadata={"help": "COCO annotation file for training (default: detected)"}
    )
    val_annotations: str | None = field(
        default=None, metadata={"help": "COCO annotation file for evaluation (default: detected)"}
    )
    workers: int | None = field(
        default=None, metadata={"help": "worker processes (default: one per CPU); 0 reads in the main process"}
    )
    json: Path | None = field(default=None, metadata={"help": "write all problems and notes to this file"})


@dataclass(frozen=True, kw_only=True)
class PreviewOptions:
    """Options of `globalvit data preview` in addition to the training settings.

    Raises:
        ValueError: a number is out of range.
    """

    config: str | None = field(
        default=None,
        metadata={"help": "a shipped recipe or a YAML file (default: fine-tuning for the model's task)"},
    )
    output: Path = field(default=Path("preview.png"), metadata={"help": "PNG file to write"})
    images: int = field(default=32, metadata={"help": "number of images to draw"})
    epoch: int = field(default=0, metadata={"help": "epoch whose images are drawn"})

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
        "pack": data_pack.run,
        "lmdb": data_lmdb.run,
        "shapes": data_shapes.run,
    }
    return runs[name](rest, f"{prog} {name}")


def run_check(argv: Sequence[str], prog: str) -> int:
    """Check a folder; return exit status 1 if there are problems."""
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
    """Draw a sheet of images as the model gets them in training."""
    given = parse_flags(_preview_flags(), argv, prog, COMMANDS["preview"])
    own = [item.name for item in fields(PreviewOptions)]
    try:
        options = PreviewOptions(**{name: given.pop(name) for name in own if name in given})
    except ValueError as error:
        raise UsageError(str(error)) from error
    config = load_config(options.config, given)
    if config.data_dir is None:
        layout = LAYOUTS[ModelSpec(model=config.model).kind]
        raise UsageError(f"{prog} requires --data-dir FOLDER with {layout}; see {prog} --help")
    sheet = draw(config, options)
    with replace_with(options.output) as temporary:
        sheet.save(temporary, format="PNG")
    tables.write_line(f"{options.output}: {sheet.width}×{sheet.height} pixels")
    return 0


def draw(config: TrainConfig, options: PreviewOptions) -> "Image.Image":
    """Return the first images of an epoch, augmented, erased and mixed according to the config."""
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
    """Return the preview's own flags, and the training settings that affect its images."""
    groups = (AUGMENTATION, SEGMENTATION, DETECTION)
    shown = [item for item in fields(TrainConfig) if item.metadata["group"] in groups or item.name in SHOWN]
    flags: list[Any] = [(item.name, item.type, field(default=item.default, metadata=item.metadata)) for item in shown]
    return make_dataclass("PreviewFlags", flags, bases=(PreviewOptions,), frozen=True, kw_only=True)


def _checks(options: CheckOptions) -> dict[str, "Callable[..., Report]"]:
    """Return the checks for the kinds of data in the folder; one folder may serve several tasks."""
    from globalvit.data.classification.checks import check_folder
    from globalvit.data.classification.dataset import FORMATS
    from globalvit.data.detection.registry import FORMATS as OBJECT_FORMATS
    from globalvit.data.detection.registry import holds_objects
    from globalvit.data.segmentation.checks import check_masks, is_mask_set
    from globalvit.data.segmentation.registry import FORMATS as MASK_FORMATS

    checks: dict[str, Callable[..., Report]] = {}
    # Objects that are drawn as label maps are checked as objects.
    of_masks = [one.name for one in MASK_FORMATS if one.is_automatic]
    if options.format in (None, *of_masks) and options.data_dir.is_dir() and is_mask_set(options.data_dir):
        names = ("num_classes", "reduce_zero_label", "class_file", "ignore_label")
        given_options = {name: getattr(options, name) for name in names}
        checks["label maps"] = partial(check_masks, form=options.format, **given_options)
    names = [*(one.name for one in (*FORMATS, *OBJECT_FORMATS)), *of_masks]
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
    return checks or {
        "class folders": partial(
            check_folder, form=options.format, nested=options.nested_classes, multi_label=options.multi_label
        )
    }


def _run_check(check: "Callable[..., Report]", options: CheckOptions) -> "Report":
    """Run a check with a progress bar, which starts once the images are counted."""
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
    """Merge the reports of several checks."""
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
    """Print one line per note and per group of similar problems, then a summary."""
    for note in report.notes:
        tables.write_line(f"note: {note.kind}: {note.text}")
    if report.repeated:
        tables.write_line(f"note: {report.repeated} images occur more than once in their class")
    groups: dict[tuple[str, str], list[Problem]] = {}
    for problem in report.problems:
        groups.setdefault((problem.kind, _without_details(problem)), []).append(problem)
    for (kind, _), problems in groups.items():
        first = problems[0]
        # Other messages name their files.
        where = f": {', '.join(first.files)}" if kind in UNNAMED else ""
        more = f" (and {len(problems) - 1} more like it{_examples(problems[1:])})" if len(problems) > 1 else ""
        tables.write_line(f"{kind}: {first.text}{where}{more}")
    if any(len(problems) > 1 + MOST_EXAMPLES for problems in groups.values()):
        tables.write_line("use --json FILE to write all problems with their files")
    counts = ", ".join(f"{number} × {kind}" for kind, number in Counter(one.kind for one in report.problems).items())
    tables.write_line(f"problems: {counts}" if counts else "no problems found")


def _without_details(problem: "Problem") -> str:
    """Return the message without files and numbers, which similar problems share."""
    text = problem.text
    for path in sorted(problem.files, key=len, reverse=True):
        text = text.replace(path, "")
    return re.sub(r"\d+(, \d+)*", "0", text) if problem.files else text


def _examples(problems: "Sequence[Problem]") -> str:
    """Return the files of the first few problems."""
    names = [problem.files[0] for problem in problems[:MOST_EXAMPLES] if problem.files]
    return f": {', '.join(names)}{', …' if len(problems) > len(names) else ''}" if names else ""

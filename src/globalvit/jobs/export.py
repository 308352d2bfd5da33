"""Export of a trained model for other programs, compared with the model before the file is kept."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from globalvit.detectors.limits import LEAST_SCORE, MOST_DETECTIONS
from globalvit.jobs.opening import MODEL, about
from globalvit.weights import catalog

if TYPE_CHECKING:
    from globalvit.export import ExportReport
    from globalvit.tasks.task import Task

logger = logging.getLogger(__name__)
FILE, GRAPH = "file", "contents of the file"
NONE = "none"


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of `globalvit export`."""

    checkpoint: Path | None = field(
        default=None, metadata=about(MODEL, "weight file, checkpoint folder or run folder (its best checkpoint)")
    )
    model: str | None = field(
        default=None, metadata=about(MODEL, "model name, for published weights or a file that does not name its model")
    )
    weights: str = field(
        default=catalog.FIRST,
        metadata=about(MODEL, "name of published weights of --model; none exports random weights"),
    )
    ema: bool = field(default=True, metadata=about(MODEL, "use the averaged weights if the checkpoint has them"))
    allow_nonfinite: bool = field(
        default=False, metadata=about(MODEL, "load the checkpoint even if weights are NaN or infinite")
    )

    output: Path = field(metadata=about(FILE, "file to write, .onnx or .pt2") | {"metavar": "FILE"})
    format: Literal["onnx", "torch"] | None = field(
        default=None, metadata=about(FILE, "onnx or torch (torch.export) (default: from the file extension)")
    )
    precision: Literal["fp32", "fp16", "bf16"] = field(
        default="fp32", metadata=about(FILE, "precision of weights and computation; inputs and outputs are float32")
    )
    opset: int = field(default=18, metadata=about(FILE, "ONNX opset version, 18 to 23"))
    force: bool = field(default=False, metadata=about(FILE, "replace the file if it exists"))

    image_size: int | tuple[int, int] | None = field(
        default=None,
        metadata=about(GRAPH, "fix the image size: side length in pixels, or height,width")
        | {"aliases": ("img_size",)},
    )
    dynamic: str = field(
        default="",
        metadata=about(GRAPH, "dynamic axes: batch,size; batch; size; or none (default: both; batch with --image-size)")
        | {"metavar": "WORDS"},
    )
    preprocessing: Literal["none", "nchw", "nhwc"] = field(
        default=NONE, metadata=about(GRAPH, "accept uint8 images in this layout and normalize them in the graph")
    )
    postprocessing: bool = field(
        default=False, metadata=about(GRAPH, "return probabilities, label maps or boxes instead of raw outputs")
    )
    score_threshold: float = field(
        default=LEAST_SCORE, metadata=about(GRAPH, "return objects with a score above this, with --postprocessing")
    )
    max_detections: int = field(
        default=MOST_DETECTIONS, metadata=about(GRAPH, "maximum objects per image, with --postprocessing")
    )

    def __post_init__(self) -> None:
        if self.checkpoint is None and self.model is None:
            raise ValueError("no model given; use --checkpoint PATH for a trained model, or --model NAME")
        if self.checkpoint is not None and self.weights != catalog.FIRST:
            raise ValueError("--checkpoint and --weights were both given; leave one out")
        if self.score_threshold != LEAST_SCORE and not self.postprocessing:
            raise ValueError("--score-threshold requires --postprocessing; add it")
        if self.max_detections != MOST_DETECTIONS and not self.postprocessing:
            raise ValueError("--max-detections requires --postprocessing; add it")
        self._check_plan()

    def _check_plan(self) -> None:
        """Reject options that no model could be exported with, before the model is opened."""
        from globalvit.export.plan import Plan, choose_format, choose_sizes

        choose_sizes(self.image_size, self.open_sizes, own=(1, 1))
        Plan(
            format=choose_format(self.output, self.format),
            precision=self.precision,
            opset=self.opset,
            score_threshold=self.score_threshold,
            max_detections=self.max_detections,
        )

    @property
    def open_sizes(self) -> tuple[str, ...] | None:
        """Return `dynamic` split into words, or None if it was not given."""
        if not self.dynamic:
            return None
        return () if self.dynamic == NONE else tuple(self.dynamic.split(","))


def export(options: ExportOptions) -> "ExportReport":
    """Write the file and compare it with the model before renaming it to its final name.

    Raises:
        FileExistsError: the file exists and `force` was not given.
        FileNotFoundError: the checkpoint does not exist.
        ValueError: the model cannot be exported in this format, or the file's outputs differ from the model's.
    """
    if options.output.is_dir():
        raise IsADirectoryError(f"{options.output} is a folder; give a file name with --output")
    if options.output.exists() and not options.force:
        raise FileExistsError(f"{options.output} already exists; use --force to replace it, or give another name")
    task, license = _open(options)
    from globalvit.export import export_model

    return export_model(
        task,
        options.output,
        format=options.format,
        precision=options.precision,
        image_size=options.image_size,
        dynamic=options.open_sizes,
        preprocessing=None if options.preprocessing == NONE else options.preprocessing,
        postprocessing=options.postprocessing,
        opset=options.opset,
        score_threshold=options.score_threshold,
        max_detections=options.max_detections,
        license=license,
        progress=logger.info,
    )


def _open(options: ExportOptions) -> "tuple[Task, str | None]":
    """Return the model and the license of its weights, if known."""
    from globalvit import build
    from globalvit.weights.load import find_file
    from globalvit.weights.read import read_metadata

    if options.checkpoint is not None:
        task = build.open_checkpoint(
            options.checkpoint, model=options.model, use_ema=options.ema, allow_nonfinite=options.allow_nonfinite
        )
        file = find_file(options.checkpoint, use_ema=options.ema)
        record = catalog.find_file(file)
        return task, read_metadata(file).get("license") or (record.license if record else None)
    assert options.model is not None
    model = build.resolve_name(options.model)
    if options.weights == NONE:
        logger.warning("exporting %s with random weights, since --weights none was given", model)
        return build.create_model(model).eval(), "none: random weights"
    if not catalog.records(model):
        raise ValueError(
            f"no weights are published for {model}; use --checkpoint PATH for a trained model, or --weights none for "
            f"random weights"
        )
    record = catalog.find(model, options.weights)
    return build.create_model(model, record.weights).eval(), record.license

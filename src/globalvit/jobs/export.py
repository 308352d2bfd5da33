"""A trained model as a file for other programs, compared with the model before it is kept."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from globalvit.detectors.limits import MOST_DETECTIONS
from globalvit.jobs.opening import MODEL, about
from globalvit.weights import catalog

if TYPE_CHECKING:
    from globalvit.export import ExportReport
    from globalvit.tasks.task import Task

logger = logging.getLogger(__name__)
FILE, GRAPH = "file", "what stands in the file"
NONE, LEAST_SCORE = "none", 0.05


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What `globalvit export` is asked for."""

    checkpoint: Path | None = field(
        default=None, metadata=about(MODEL, "weight file, checkpoint folder or run folder (its best)")
    )
    model: str | None = field(
        default=None, metadata=about(MODEL, "name of the model, for published weights or a file that does not say it")
    )
    weights: str = field(
        default=catalog.FIRST, metadata=about(MODEL, "published weights of --model by name; none leaves them fresh")
    )
    ema: bool = field(default=True, metadata=about(MODEL, "take the averaged weights where the checkpoint has some"))
    allow_nonfinite: bool = field(
        default=False, metadata=about(MODEL, "open the checkpoint even if weights are NaN or infinite")
    )

    output: Path = field(metadata=about(FILE, "file to write, .onnx or .pt2") | {"metavar": "FILE"})
    format: Literal["onnx", "torch"] | None = field(
        default=None, metadata=about(FILE, "onnx or torch (torch.export) (default: as the file's name says)")
    )
    precision: Literal["fp32", "fp16", "bf16"] = field(
        default="fp32", metadata=about(FILE, "of weights and arithmetic; images and answers are float32")
    )
    opset: int = field(default=18, metadata=about(FILE, "of ONNX, 18 to 23"))
    force: bool = field(default=False, metadata=about(FILE, "replace the file if it exists"))

    image_size: int | tuple[int, int] | None = field(
        default=None,
        metadata=about(GRAPH, "bind the file to images of one size: side in pixels, or height,width")
        | {"aliases": ("img_size",)},
    )
    dynamic: str = field(
        default="",
        metadata=about(GRAPH, "what stays open: batch,size; batch; size; or none. Both unless --image-size is given")
        | {"metavar": "WORDS"},
    )
    preprocessing: Literal["none", "nchw", "nhwc"] = field(
        default=NONE, metadata=about(GRAPH, "take uint8 images in this layout and normalize them inside")
    )
    postprocessing: bool = field(
        default=False, metadata=about(GRAPH, "answer with probabilities, label maps or boxes instead of raw maps")
    )
    score_threshold: float = field(
        default=LEAST_SCORE, metadata=about(GRAPH, "score that an object has to exceed, with --postprocessing")
    )
    max_detections: int = field(
        default=MOST_DETECTIONS, metadata=about(GRAPH, "objects of each image at most, with --postprocessing")
    )

    def __post_init__(self) -> None:
        if self.checkpoint is None and self.model is None:
            raise ValueError("say which model: --checkpoint PATH of a trained one, or --model NAME")
        if self.checkpoint is not None and self.weights != catalog.FIRST:
            raise ValueError("--checkpoint and --weights were both given; leave one out")
        if self.score_threshold != LEAST_SCORE and not self.postprocessing:
            raise ValueError("--score-threshold belongs to --postprocessing; add it")
        if self.max_detections != MOST_DETECTIONS and not self.postprocessing:
            raise ValueError("--max-detections requires --postprocessing; add it")
        self._check_plan()

    def _check_plan(self) -> None:
        """Refuse now, while a mistake is still one of the command line, what no model could be exported as."""
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
        """`dynamic` as its words; None where it was not given."""
        if not self.dynamic:
            return None
        return () if self.dynamic == NONE else tuple(self.dynamic.split(","))


def export(options: ExportOptions) -> "ExportReport":
    """Write the file and compare it with the model before it gets its name.

    Raises:
        FileExistsError: the file exists and `force` was not given.
        FileNotFoundError: the checkpoint is not there.
        ValueError: the model cannot be exported in this form, or the file differs from it.
    """
    if options.output.is_dir():
        raise IsADirectoryError(f"{options.output} is a folder; give --output the name of a file")
    if options.output.exists() and not options.force:
        raise FileExistsError(f"{options.output} exists; give --force to replace it, or another name")
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
    """The model and the license of its weights, as far as it is known."""
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
        logger.warning("the weights of %s are fresh: the file knows nothing", model)
        return build.create_model(model).eval(), "none: fresh weights"
    if not catalog.records(model):
        raise ValueError(
            f"no weights are published for {model}; give a trained model with --checkpoint, or fresh ones with "
            f"--weights none"
        )
    record = catalog.find(model, options.weights)
    return build.create_model(model, record.weights).eval(), record.license

"""From a task to a file that was run and compared before it got its name."""

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from globalvit import __version__
from globalvit.atomic import replace_with
from globalvit.data.common.transforms import FitTransform
from globalvit.deploy.deploying import is_deployed
from globalvit.detectors.limits import MOST_DETECTIONS
from globalvit.export.capture import capture, describe
from globalvit.export.check import Check, check
from globalvit.export.files import require_onnx, run_onnx, run_torch, write_onnx, write_torch
from globalvit.export.graph import Graph
from globalvit.export.plan import OPSETS, Format, Layout, Plan, Precision, choose_format, choose_sizes
from globalvit.models.gcvit_ablated import ShiftedWindowAttention
from globalvit.tasks.classify import MultiLabelClassifier
from globalvit.tasks.task import Preprocessing, Task

UNKNOWN_LICENSE = "not stated in the checkpoint"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """What was written and how it compared.

    Attributes:
        path: the file.
        format: `onnx` or `torch`.
        size: of the file in bytes.
        inside: what the file does, in words.
        sizes: what is left open, in words.
        outputs: names of the outputs.
        checks: every run of the file beside the model.
        metadata: what the file says of itself.
    """

    path: Path
    format: Format
    size: int
    inside: str
    sizes: str
    outputs: tuple[str, ...]
    checks: tuple[Check, ...]
    metadata: dict[str, Any]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row per check: batch, height, width, largest difference, seconds of the file and of the model."""
        return [asdict(one) for one in self.checks]

    @property
    def difference(self) -> float:
        """The largest of all checks."""
        return max(one.difference for one in self.checks)

    @property
    def objects(self) -> int | None:
        """Detections that were compared in all checks; None where the file gives none."""
        counts = [one.objects for one in self.checks if one.objects is not None]
        return sum(counts) if counts else None


def export_model(
    model: Task,
    path: str | PathLike[str],
    *,
    format: str | None = None,  # noqa: A002 - the word of the command line
    precision: Precision = "fp32",
    image_size: int | tuple[int, int] | None = None,
    dynamic: Collection[str] | None = None,
    preprocessing: Layout | None = None,
    postprocessing: bool = False,
    opset: int = OPSETS[0],
    score_threshold: float = 0.05,
    max_detections: int = MOST_DETECTIONS,
    license: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> ExportReport:
    """Write a model as ONNX or as torch.export's `.pt2`, run the file and compare it with the model.

    Args:
        model: what `create_model` or `open_checkpoint` returned; nothing of it changes.
        path: ends in `.onnx` or `.pt2`; it appears only when all checks have passed.
        format: `onnx` or `torch`, where the name of the file is not to say it.
        precision: `fp32`, `fp16`, or in `.pt2` `bf16`; images and answers are float32 all the same.
        image_size: side or (height, width) that the file is bound to; None leaves the size open.
        dynamic: what stays open, of `batch` and `size`; by default both, with an `image_size` the batch.
        preprocessing: `nchw` or `nhwc` takes uint8 images in this layout and normalizes them inside; None takes float32
            NCHW, normalized outside. Resizing always stays outside.
        postprocessing: the file answers with probabilities (B, K), labels (B, H, W) uint8, or the N best objects of
            each image: boxes (B, N, 4) xyxy in pixels of the image that went in, scores (B, N), 0 where there are
            fewer, labels (B, N), and masks (B, N, 28, 28) within the boxes from detectors that have them.
        opset: of ONNX, 18 to 23.
        score_threshold: the score that an object has to exceed, with `postprocessing`.
        max_detections: N, from 1 to 1000, with `postprocessing`.
        license: of the weights, for the file's metadata.
        progress: is called with the name of each step.

    Raises:
        ValueError: a value does not fit, or the file does not give what the model gives; nothing is written then.
        ImportError: a package that ONNX needs is missing; the text says how to get it.
        OSError: the disk is full or the folder cannot be written.
    """
    path, chosen = Path(path), choose_format(Path(path), format)
    size, has_open_batch = choose_sizes(image_size, dynamic, own_size(model))
    _check(model, size)
    plan = Plan(
        format=chosen,
        precision=precision,
        image_size=size,
        has_open_batch=has_open_batch,
        preprocessing=preprocessing,
        has_postprocessing=postprocessing,
        opset=opset,
        score_threshold=score_threshold,
        max_detections=max_detections,
    )
    if chosen == "onnx":
        require_onnx()
    graph = Graph(model, plan)
    metadata = _metadata(model, graph, license or UNKNOWN_LICENSE)
    return _report(path, graph, _write_checked(path, model, graph, metadata, progress), metadata)


def _check(model: Task, size: tuple[int, int] | None) -> None:
    """Refuse models that no file, or none for any size, could hold."""
    if is_deployed(model):
        raise ValueError("a deployed copy runs only inside this package; export the model it came from")
    if size is None and any(isinstance(module, ShiftedWindowAttention) for module in model.modules()):
        raise ValueError(
            "shifted windows, of the ablations, are shifted where an image has more than one of them, which a file for "
            "any size cannot decide; bind it to one size with image_size"
        )


def _report(path: Path, graph: Graph, checks: tuple[Check, ...], metadata: dict[str, Any]) -> ExportReport:
    return ExportReport(
        path=path,
        format=graph.plan.format,
        size=path.stat().st_size,
        inside=graph.inside,
        sizes=describe(graph),
        outputs=graph.names,
        checks=checks,
        metadata=metadata,
    )


def _write_checked(
    path: Path, model: Task, graph: Graph, metadata: dict[str, Any], progress: Callable[[str], None]
) -> tuple[Check, ...]:
    """Write the file under another name, run it, and give it its name when it answers as the model in fp32 does."""
    plan = graph.plan
    reference = graph if plan.precision == "fp32" else Graph(model, replace(plan, precision="fp32"))
    is_onnx = plan.format == "onnx"
    with replace_with(path) as temporary:
        progress("tracing the model")
        program = capture(graph)
        progress("writing")
        if is_onnx:
            write_onnx(temporary, program, graph, metadata)
        else:
            write_torch(temporary, program, metadata)
        progress("checking")
        run = run_onnx(temporary) if is_onnx else run_torch(temporary)
        return tuple(check(graph, run, reference))


def own_size(model: Task) -> tuple[int, int]:
    """The size that a model's images have unless another is asked for; a square where sides follow the image."""
    transform = model.preprocessing
    if isinstance(transform, FitTransform):
        side = transform.short_side or 512
        return side, side
    return transform.image_size


def _bound(transform: Preprocessing, size: tuple[int, int] | None) -> Preprocessing:
    """The transform for images of the one size that a file takes; a detector's or segmenter's cannot promise any."""
    if size is None or isinstance(transform, FitTransform):
        return transform
    return replace(transform, image_size=size)


def _metadata(model: Task, graph: Graph, license: str) -> dict[str, Any]:
    """What a file says of itself, as plain values."""
    plan = graph.plan
    size = plan.image_size or own_size(model)
    return {
        "globalvit": __version__,
        "model": model.spec.model,
        "task": model.kind,
        **(
            {"multi_label": True, "thresholds": list(model.thresholds)}
            if isinstance(model, MultiLabelClassifier)
            else {}
        ),
        "classes": list(model.class_names),
        "preprocessing": asdict(_bound(model.preprocessing, plan.image_size)),
        "mean": list(model.preprocessing.mean),
        "std": list(model.preprocessing.std),
        "image_size": list(size),
        "input": f"uint8 {plan.preprocessing.upper()}, 0 … 255" if plan.preprocessing else "float32 NCHW, normalized",
        "outputs": list(graph.names),
        "inside": graph.inside,
        "sizes": describe(graph),
        "precision": plan.precision,
        "weights_license": license,
    }

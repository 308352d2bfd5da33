"""`globalvit convert`: convert checkpoints between the globalvit, official, timm and Keras formats."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from globalvit.cli.options import parse
from globalvit.cli.tables import write_line
from globalvit.models.variants import GPVIT, ModelSpec
from globalvit.weights import catalog, gcvit_official, gpvit_official, keras, openmmlab, timm
from globalvit.weights.heads import head_of
from globalvit.weights.report import kinds

if TYPE_CHECKING:
    from torch import Tensor

    from globalvit.tasks.task import Task
    from globalvit.weights.load import Resolved, Weights

SUMMARY = "Convert a checkpoint to another format: ours (safetensors), official, timm or keras"
LICENSE_NOTE = (
    "License: the GC ViT weights that NVIDIA published are CC-BY-NC-SA-4.0 (non-commercial), and remain "
    "so after conversion. Weights that you trained from scratch are yours."
)
SAFETENSORS = ".safetensors"
KERAS_WEIGHTS = ".weights.h5"
SUFFIXES = (SAFETENSORS, ".pth", ".pt", ".pth.tar")
SUFFIXES_OF = {"ours": (SAFETENSORS,), "keras": (KERAS_WEIGHTS,)}


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Options of `globalvit convert`."""

    source: Path = field(
        metadata={
            "help": "weight file in any format, checkpoint folder or run folder (its best checkpoint)",
            "metavar": "SRC",
        }
    )
    target: Path = field(
        metadata={
            "help": "file to write: .safetensors; .weights.h5 for keras; or .pth, .pt, .pth.tar for official and timm",
            "metavar": "DST",
        }
    )
    to: Literal["ours", "official", "timm", "keras"] = field(metadata={"help": "format to write"})
    model: str | None = field(default=None, metadata={"help": "model name, if it cannot be inferred from the weights"})
    ema: bool = field(default=True, metadata={"help": "use the averaged weights if the checkpoint has them"})
    allow_nonfinite: bool = field(
        default=False, metadata={"help": "convert the checkpoint even if weights are NaN or infinite"}
    )
    force: bool = field(default=False, metadata={"help": "replace DST if it exists"})


def run(argv: Sequence[str], prog: str) -> int:
    """Convert a checkpoint and print a report; return the exit status."""
    options = parse(ConvertOptions, argv, prog, SUMMARY, positional=("source", "target"))
    _check_target(options)
    found, weights = _open(options)
    if found.spec.ablation and options.to != "ours":
        raise ValueError(
            f"{options.source} has ablation={','.join(found.spec.ablation)}, which only --to ours supports"
        )
    task = _expected(found, weights)
    if not options.allow_nonfinite:
        _check_finite(weights)
    if options.to == "ours":
        written = _write_ours(options.target, weights, found, task)
    elif options.to == "keras":
        written = _write_keras(options.target, weights, found)
    else:
        written = _write_foreign(options, weights, found.spec)
    for line in _report(options, weights, found, written):
        write_line(line)
    return 0


def _open(options: ConvertOptions) -> "tuple[Resolved, Weights]":
    from globalvit.build import resolve_name
    from globalvit.weights.forms import infer_spec
    from globalvit.weights.load import Resolved, read_weights, resolve_checkpoint

    model = options.model and resolve_name(options.model)
    if options.source.name.endswith(KERAS_WEIGHTS):
        _choose_backend()
        from globalvit.keras.files import read_file

        weights = replace(read_weights(read_file(options.source)), source=str(options.source))
        spec = infer_spec(weights.state, model)
        return Resolved(file=options.source, weights=weights, spec=spec), weights
    found = resolve_checkpoint(options.source, use_ema=options.ema, model=model)
    return found, found.weights


def _check_finite(weights: "Weights") -> None:
    from globalvit.weights.load import require_finite

    require_finite(weights.state, weights.source)


def _choose_backend() -> None:
    """Let Keras use PyTorch, which is always installed, unless the user chose another backend."""
    os.environ.setdefault("KERAS_BACKEND", "torch")


def _check_target(options: ConvertOptions) -> None:
    allowed = SUFFIXES_OF.get(options.to, SUFFIXES)
    if not options.target.name.endswith(allowed):
        raise ValueError(f"{options.target} must end in {' or '.join(allowed)} for the format {options.to!r}")
    if options.target.exists() and not options.force:
        raise FileExistsError(f"{options.target} already exists; use --force to replace it, or give another name")


def _expected(found: "Resolved", weights: "Weights") -> "Task":
    """Return the model of the weights on the meta device, after checking that the weights are complete and fit it."""
    import torch

    from globalvit.build import create_backbone, create_model
    from globalvit.weights.load import require_match

    spec = found.spec
    shared: dict[str, Any] = {"in_channels": spec.in_channels, "image_size": spec.image_size, "window": spec.window}
    shared["ablation"] = spec.ablation
    with torch.device("meta"):
        task = create_model(spec.model, num_classes=spec.num_classes, **shared)
        own = task.state_dict()
        if head_of(weights.state) is None and "backbone.norms.0.weight" in weights.state:
            backbone = create_backbone(spec.model, form="detection", **shared)
            own = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    require_match(weights.state, own, source=weights.source, model=spec.model)
    return task


def _write_ours(target: Path, weights: "Weights", found: "Resolved", task: "Task") -> dict[str, "Tensor"]:
    from globalvit.data.classification.imagenet import imagenet_names
    from globalvit.weights.load import save_weights

    record, saved = found.record, weights.opened.metadata
    save_weights(
        target,
        weights.state,
        found.spec,
        found.classes or (imagenet_names() if record else None),
        found.preprocessing or task.preprocessing,
        license=saved.get("license") or (record.license if record else None),
        origin=saved.get("origin") or (record.address if record else found.file.name),
    )
    return weights.state


def _write_keras(target: Path, weights: "Weights", found: "Resolved") -> dict[str, Any]:
    _choose_backend()
    from globalvit.keras.write import write_weights

    return write_weights(target, {name: value.numpy() for name, value in weights.state.items()}, found.spec)


def _write_foreign(options: ConvertOptions, weights: "Weights", spec: ModelSpec) -> dict[str, "Tensor"]:
    from globalvit.weights.load import write_tensors

    if options.to == "timm" and spec.head is not None:
        raise ValueError(f"timm has no {spec.model}; use --to ours or --to official")
    if options.to == "timm" and spec.model in GPVIT:
        raise ValueError(f"timm has no {spec.model}; use --to ours, which globalvit.timm_plugin loads in timm")
    state = _foreign_form(options.to, spec).from_ours(weights.state)
    if options.target.suffix == SAFETENSORS:
        write_tensors(options.target, state, {})
    else:
        # The official loader expects the weights under this key; timm's accepts this key or the top level.
        _write_pickle(options.target, {"state_dict": state})
    return state


def _foreign_form(to: str, spec: ModelSpec) -> ModuleType:
    """Return the converter of a format."""
    if to == "timm":
        return timm
    if spec.head is not None:
        return openmmlab
    return gpvit_official if spec.model in GPVIT else gcvit_official


def _title(to: str, spec: ModelSpec) -> str:
    own = {"ours": "our form", "keras": keras.TITLE}
    return own.get(to) or _foreign_form(to, spec).TITLE


def _write_pickle(target: Path, content: dict[str, Any]) -> None:
    import torch

    from globalvit.atomic import replace_with

    with replace_with(target) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:
            raise OSError(f"cannot write {target}: {error}; the previous file is unchanged") from error


def _report(options: ConvertOptions, weights: "Weights", found: "Resolved", written: dict[str, Any]) -> Iterator[str]:
    opened, spec = weights.opened, found.spec
    entry = f", its {opened.entry}" if opened.entry else ""
    others = f" ({', '.join(opened.passed_over)} skipped)" if opened.passed_over else ""
    yield f"source: {found.file}, {weights.form.title}{entry}{others}, {len(opened.state)} entries"
    yield f"target: {options.target}, {_title(options.to, spec)}, {len(written)} entries"
    yield f"model: {spec.model}, {spec.num_classes} classes, {spec.in_channels} input channels"
    if weights.dropped:
        yield f"dropped: {kinds(weights.dropped)}"
    added = [name for name in written if gcvit_official.dropped(name)]
    if added:
        yield f"recomputed: {kinds(added)}"
    if options.to == "timm" and not any(record.form == "timm" for record in catalog.records(spec.model)):
        yield f"timm has no {spec.model}; `import globalvit.timm_plugin` registers globalvit_{spec.model}"
    if spec.backbone not in GPVIT:
        yield LICENSE_NOTE

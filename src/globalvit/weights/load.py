"""Load and save weights: published files, checkpoints of a run, state dicts."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from globalvit.atomic import replace_with
from globalvit.models.variants import ModelSpec, model_names, split_name
from globalvit.weights import catalog, forms
from globalvit.weights.adapt import Adapted, adapt
from globalvit.weights.catalog import (
    Fit,
    Preprocessing,
    WeightRecord,
    preprocessing_from_dict,
    preprocessing_of,
)
from globalvit.weights.download import download
from globalvit.weights.find import EMA_FILE, MODEL_FILE, config_beside, find_file
from globalvit.weights.forms import Form, detect_form, infer_model, infer_spec
from globalvit.weights.heads import BACKBONE, CLASSIFIER, head_of
from globalvit.weights.names import MOST_SHOWN, RefusedError, listed, say_nonfinite, shape, shown
from globalvit.weights.read import METADATA_KEY, Opened, open_weights, read_metadata, unwrap
from globalvit.weights.report import LoadReport
from globalvit.weights.thresholds import KEY

# The parts of this folder that other folders use, gathered here.
__all__ = [
    "EMA_FILE",
    "MODEL_FILE",
    "LoadReport",
    "Resolved",
    "Weights",
    "detect_form",
    "download",
    "find_file",
    "infer_model",
    "infer_spec",
    "load_weights",
    "matching_spec",
    "read_weights",
    "require_finite",
    "require_match",
    "resolve_checkpoint",
    "save_weights",
    "write_tensors",
]

logger = logging.getLogger(__name__)
# Counters of batch norms, the only whole numbers among weights.
COUNTER = "num_batches_tracked"


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Weights in our names, and their source.

    Attributes:
        state: our names, the backbone's under `backbone.`, → tensors.
        form: whose names they had.
        opened: as they were in the file.
        source: the file, in words.
        others: the source's names of entries beside the model's, such as a criterion's.
    """

    state: dict[str, Tensor]
    form: Form
    opened: Opened
    source: str
    others: tuple[str, ...] = ()

    @property
    def dropped(self) -> tuple[str, ...]:
        """Return the source's names of the dropped entries."""
        return (*self.others, *(name for name in self.opened.state if self.form.dropped(name)))


Source = str | PathLike[str] | Mapping[str, Any] | WeightRecord | Weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """A weight file, and what was saved with it.

    Attributes:
        file: the weight file.
        weights: what it holds.
        spec: the model it belongs to: saved with it, or recognized by its entries.
        classes: names of the labels 0 … K−1 saved with it, None where none were.
        preprocessing: the evaluation transform saved with it, or that of the published file, None for any other.
        record: the published file that it is by its name, None for any other.
        config: the run's `config.yaml`, None outside a run.
    """

    file: Path
    weights: Weights
    spec: ModelSpec
    classes: tuple[str, ...] | None = None
    preprocessing: Preprocessing | Fit | None = None
    record: WeightRecord | None = None
    config: dict[str, Any] | None = None


def read_weights(source: Source, *, model: str | None = None, use_ema: bool = True) -> Weights:
    """Open weights and convert them to our names.

    Args:
        source: a record or name of the catalog, a weight file, a checkpoint or run folder, or a state dict in any
            form that `detect_form` knows; weights that were read already are returned as they are.
        model: the model's name, which a name of the catalog belongs to.
        use_ema: take the averaged weights where a checkpoint has both.

    Raises:
        ValueError: the file is damaged, holds code, or its entries belong to no known network.
        OSError: the file is missing or cannot be fetched.
    """
    if isinstance(source, Weights):
        return source
    if isinstance(source, Mapping):
        opened, title = unwrap(source, use_ema=use_ema), "the given state dict"
    else:
        file = _find(source, model, use_ema)
        opened, title = open_weights(file, use_ema=use_ema), str(file)
    form, entries, others = forms.recognize(opened.state, use_ema=use_ema, source=title)
    state = forms.convert(form, entries, title)
    for name, value in state.items():
        # PyTorch packs numbers of four bits and cannot unpack them.
        is_number = value.is_floating_point() and not str(value.dtype).startswith("torch.float4")
        if not is_number and not name.endswith(COUNTER):
            raise RefusedError(
                f"{title} has {shown(name)} as {str(value.dtype).removeprefix('torch.')}; expected floating point: "
                f"save the weights as float32"
            )
    opened = replace(opened, state=entries)
    return Weights(state=state, form=form, opened=opened, source=title, others=others)


def load_weights(
    model: nn.Module, source: Source, *, use_ema: bool = True, allow_nonfinite: bool = False
) -> LoadReport:
    """Load weights into a task or a backbone; nothing is changed unless everything fits.

    Weights of another task give their backbone and leave the head fresh; another number of classes leaves a
    classifier's head fresh and the last layers of other heads; other windows, other input channels and the backbone's
    form are adapted to; anything else that differs is an error.

    Args:
        model: a task (names `backbone.*` and those of its head) or a backbone.
        source: as in `read_weights`.
        use_ema: take the averaged weights where a checkpoint has both; false takes the raw ones.
        allow_nonfinite: take weights with NaN or infinity too.

    Raises:
        ValueError: the weights do not fit, or are not finite; the text lists at most ten names and their number.
        OSError: the file is missing or cannot be fetched.
    """
    entries = model.state_dict()
    if any(value.is_meta for value in entries.values()):
        raise ValueError(
            "the model is on the meta device, where parameters have no values; create it without torch.device('meta'), "
            "or give it values first with model.to_empty(device='cpu')"
        )
    prefix = "" if any(name.startswith(BACKBONE) for name in entries) else BACKBONE
    own = {prefix + name: value for name, value in entries.items()}
    name = _name_of(model, own)
    weights = read_weights(source, model=name, use_ema=use_ema)
    _require_design(weights, model)
    adapted = adapt(weights.state, own)
    require_match(adapted.state, own, source=weights.source, model=name, fresh=adapted.fresh)
    if not allow_nonfinite:
        require_finite(adapted.state, weights.source)
    model.load_state_dict({name.removeprefix(prefix): value for name, value in (own | adapted.state).items()})
    return _report(weights, adapted, own)


def require_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Check that no weight is NaN or infinite.

    Raises:
        ValueError: some are; the text lists at most ten and their number.
    """
    # Not every dtype of eight bits knows the question.
    bad = [name for name, value in state.items() if not torch.isfinite(value.float()).all()]
    if bad:
        text = say_nonfinite(source, bad)
        raise RefusedError(f"{text}, or use allow_nonfinite=True (--allow-nonfinite) to read them all the same")


def require_match(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], *, source: str, model: str | None, fresh: Sequence[str] = ()
) -> None:
    """Check that every parameter has an entry or is fresh, and that every entry fits a parameter.

    Raises:
        ValueError: some do not; the text lists at most ten and their number.
    """
    differing = [f"{shown(key)} is missing" for key in own if key not in state and key not in fresh]
    differing += [f"{shown(key)} is not in the model" for key in state if key not in own]
    shapes = {key: (shape(value), shape(own[key])) for key, value in state.items() if key in own}
    differing += [
        f"{shown(key)} is {there} there and {here} here" for key, (there, here) in shapes.items() if there != here
    ]
    if not differing:
        return
    text = "; ".join(differing[:MOST_SHOWN]) + ("; …" if len(differing) > MOST_SHOWN else "")
    holds = infer_model(state)
    is_other = holds is not None and (model is None or split_name(holds)[0] != split_name(model)[0])
    remedy = f"; it holds {holds}, so create that model" if is_other else ""
    raise ValueError(
        f"{source} is a checkpoint of another model than {model or 'this one'}: {len(differing)} "
        f"{'entry differs' if len(differing) == 1 else 'entries differ'}: {text}{remedy}"
    )


def _require_design(weights: Weights, model: nn.Module) -> None:
    """Check that the ablations saved with weights are the model's; some share names and shapes."""
    spec = getattr(model, "spec", None)
    about = weights.opened.metadata.get("spec")
    saved = about.get("ablation", []) if isinstance(about, dict) else []
    own = list(spec.ablation) if isinstance(spec, ModelSpec) else saved
    if saved != own:
        raise ValueError(
            f"{weights.source} has {_design(saved)} and the model {_design(own)}; create the model with the same"
        )


def _design(ablation: Sequence[str]) -> str:
    return f"ablation={','.join(ablation)}" if ablation else "no ablation"


def resolve_checkpoint(
    path: str | PathLike[str], which: str = "best", use_ema: bool = True, model: str | None = None
) -> Resolved:
    """Find the weight file of a path, and what was saved with the weights.

    Args:
        path: a weight file, a checkpoint folder or a run folder.
        which: checkpoint of a run folder: `best`, `last` or `step-N`.
        use_ema: take the averaged weights where a folder has them.
        model: the model's name, for files of others whose entries do not tell it.

    Raises:
        FileNotFoundError: nothing is there, or the run has no such checkpoint; the text says what it has.
        ValueError: the file is damaged, of another model than `model`, or of another version of this package.
    """
    file = find_file(path, which=which, use_ema=use_ema)
    saved = _saved(file)
    weights = read_weights(file, use_ema=use_ema)
    spec = saved.pop("spec", None)
    if spec is None:
        spec, saved["classes"] = _inferred(weights, model), weights.opened.classes
    elif model not in (None, spec.model):
        raise ValueError(f"{file} holds {spec.model}, not {model}; leave the model's name out, or give its own file")
    else:
        spec = matching_spec(spec, weights.state, str(file))
    record = catalog.find_file(file)
    if record is not None:
        saved.setdefault("preprocessing", record.preprocessing)
    saved["classes"] = fitting_classes(saved["classes"], spec, str(file))
    return Resolved(file=file, weights=weights, spec=spec, record=record, config=config_beside(file), **saved)


def _inferred(weights: Weights, model: str | None) -> ModelSpec:
    try:
        return infer_spec(weights.state, model)
    except ValueError as error:
        raise RefusedError(f"{weights.source}: {error}") from error


def matching_spec(spec: ModelSpec, state: Mapping[str, Any], source: str) -> ModelSpec:
    """Return a model's `ModelSpec` with the number of classes that its entries have.

    Raises:
        ValueError: the entries are those of another head, of other input channels or of other windows.
    """
    head = head_of(state)
    others = [name for name in state if not name.startswith(BACKBONE)]
    if others and (head is None or head.name != (spec.head or CLASSIFIER)):
        raise RefusedError(
            f"{source} has another head than {spec.model}'s own (its entries: {listed(others)}); save the "
            f"state_dict() with torch.save, and load it with load_state_dict() into a model with the same head"
        )
    found = infer_spec(state, spec.model)
    if found.in_channels != spec.in_channels:
        raise RefusedError(
            f"{source} says in_channels={spec.in_channels}, but its stem takes {found.in_channels}; create the model "
            f"with in_channels={found.in_channels}, and load its state_dict()"
        )
    if spec.window is not None and forms.windows(state) not in ((), tuple(spec.window)):
        raise RefusedError(
            f"{source} says window={spec.window}, but its tables have {forms.windows(state)}; fetch it again"
        )
    return spec if head is None else replace(spec, num_classes=found.num_classes)


def fitting_classes(classes: Sequence[str] | None, spec: ModelSpec, source: str) -> tuple[str, ...] | None:
    """Return the class names, or None with a warning if their number differs from the head's outputs."""
    if classes is None or len(classes) == spec.num_classes:
        return None if classes is None else tuple(classes)
    logger.warning(
        "%s has %d class names for %d outputs of its head; the names are left out",
        source,
        len(classes),
        spec.num_classes,
    )
    return None


def save_weights(
    path: str | PathLike[str],
    weights: nn.Module | Mapping[str, Tensor],
    spec: ModelSpec,
    classes: Sequence[str] | None,
    preprocessing: Any,
    *,
    license: str | None = None,
    origin: str | None = None,
    score_thresholds: Sequence[float | None] | None = None,
) -> None:
    """Write a safetensors file with a description of the model, atomically.

    Args:
        path: ends in `.safetensors`.
        weights: a task, or its state dict.
        spec: what builds the model again.
        classes: names of the labels 0 … K−1, None where they are not known.
        preprocessing: the evaluation transform, anything with the fields of `Preprocessing` or `Fit`.
        license: of the weights, where somebody else's stand behind them.
        origin: the file they come from.
        score_thresholds: of the classes, if they are known.

    Raises:
        OSError: the disk is full or the folder cannot be written; a file that was there is kept.
    """
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    metadata = {
        "spec": spec.to_dict(),
        "classes": None if classes is None else list(classes),
        "preprocessing": preprocessing_of(preprocessing).to_dict(),
        "license": license,
        "origin": origin,
    }
    if score_thresholds is not None:
        metadata[KEY] = list(score_thresholds)
    write_tensors(path, state, {METADATA_KEY: json.dumps(metadata)})


def write_tensors(path: str | PathLike[str], state: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically.

    Raises:
        OSError: the disk is full or the folder cannot be written; a file that was there is kept.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    with replace_with(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"format": "pt", **metadata})
        except SafetensorError as error:
            raise OSError(f"cannot write {path}: {error}; what was there before is kept") from error


def _find(source: str | PathLike[str] | WeightRecord, model: str | None, use_ema: bool) -> Path:
    if isinstance(source, str) and catalog.is_name(source):
        if model is None:
            raise ValueError(f"weights {source!r} exist for several models; name the model, or give a file")
        source = catalog.find(split_name(model)[0], source)
    if isinstance(source, WeightRecord):
        return download(source)
    return find_file(source, use_ema=use_ema)


def _name_of(model: nn.Module, own: Mapping[str, Tensor]) -> str | None:
    spec = getattr(model, "spec", None)
    return spec.model if isinstance(spec, ModelSpec) else infer_model(own)


def _report(weights: Weights, adapted: Adapted, own: Mapping[str, Tensor]) -> LoadReport:
    return LoadReport(
        source=weights.source,
        form=weights.form.title,
        entry=weights.opened.entry,
        passed_over=weights.opened.passed_over,
        loaded=len(adapted.state),
        resized_tables=tuple(adapted.resized),
        windows=(forms.windows(weights.state), forms.windows(own)),
        input_channels=adapted.input_channels,
        classes=adapted.classes,
        heads=adapted.heads,
        fresh=tuple(adapted.fresh),
        dropped=(*weights.dropped, *adapted.dropped),
        is_published=catalog.find_file(weights.source) is not None,
    )


def _saved(file: Path) -> dict[str, Any]:
    """Return `spec`, `classes` and `preprocessing` as `save_weights` wrote them; empty for other files."""
    metadata = read_metadata(file)
    try:
        if not metadata:
            return {}
        spec, classes = ModelSpec.from_dict(metadata["spec"]), metadata["classes"]
        if spec.model not in model_names():
            raise ValueError(f"model {spec.model!r} is not known")
        if classes is not None and not (isinstance(classes, list) and all(isinstance(one, str) for one in classes)):
            raise TypeError("classes are not names")
        return {"spec": spec, "classes": classes, "preprocessing": preprocessing_from_dict(metadata["preprocessing"])}
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise RefusedError(
            f"{file} was written by another version of globalvit ({reason}); use that version"
        ) from error

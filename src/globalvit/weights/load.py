"""Weights into models and out of them: published files, checkpoints of a run, state dicts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from globalvit.atomic import replace_with
from globalvit.models.variants import ModelSpec, split_name
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
from globalvit.weights.forms import Form, detect_form, infer_model, infer_spec
from globalvit.weights.heads import BACKBONE
from globalvit.weights.names import MOST_SHOWN
from globalvit.weights.pointers import follow
from globalvit.weights.read import METADATA_KEY, Opened, open_weights, read_metadata, unwrap
from globalvit.weights.report import LoadReport

# The parts of this folder that other folders use, gathered here.
__all__ = [
    "LoadReport",
    "Resolved",
    "Weights",
    "detect_form",
    "download",
    "find_file",
    "infer_model",
    "infer_spec",
    "load_weights",
    "read_weights",
    "require_match",
    "resolve_checkpoint",
    "save_weights",
    "write_tensors",
]

Source = str | PathLike[str] | Mapping[str, Any] | WeightRecord
MODEL_FILE, EMA_FILE = "model.safetensors", "ema.safetensors"
CHECKPOINTS, CONFIG = "checkpoints", "config.yaml"


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Weights in our names, and where they are from.

    Attributes:
        state: our names, the backbone's under `backbone.`, → tensors.
        form: whose names they had.
        opened: as they were in the file.
        source: the file, in words.
    """

    state: dict[str, Tensor]
    form: Form
    opened: Opened
    source: str

    @property
    def dropped(self) -> tuple[str, ...]:
        """The source's names of the entries that the conversion leaves out."""
        return tuple(name for name in self.opened.state if self.form.dropped(name))


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """A weight file and what is known of it.

    Attributes:
        file: the weight file.
        spec: the model it belongs to: saved with it, or told from its entries.
        classes: names of the labels 0 … K−1 saved with it, None where none were.
        preprocessing: the evaluation transform saved with it, or that of the published file, None for any other.
        record: the published file that it is by its name, None for any other.
        config: the run's `config.yaml`, None outside a run.
    """

    file: Path
    spec: ModelSpec
    classes: tuple[str, ...] | None = None
    preprocessing: Preprocessing | Fit | None = None
    record: WeightRecord | None = None
    config: dict[str, Any] | None = None


def read_weights(source: Source, *, model: str | None = None, use_ema: bool = True) -> Weights:
    """Open weights and put them into our names.

    Args:
        source: a record or name of the catalog, a weight file, a checkpoint or run folder, or a state dict in any
            form that `detect_form` knows.
        model: the model's name, which a name of the catalog belongs to.
        use_ema: take the averaged weights where a checkpoint has both.

    Raises:
        ValueError: the file is damaged, holds code, or its entries belong to no known network.
        OSError: the file is missing or cannot be fetched.
    """
    if isinstance(source, Mapping):
        opened, title = unwrap(source, use_ema=use_ema), "the given state dict"
    else:
        file = _find(source, model, use_ema)
        opened, title = open_weights(file, use_ema=use_ema), str(file)
    form = detect_form(opened.state)
    return Weights(state=form.to_ours(opened.state), form=form, opened=opened, source=title)


def load_weights(model: nn.Module, source: Source, *, use_ema: bool = True) -> LoadReport:
    """Load weights into a task or a backbone; nothing is changed unless everything fits.

    Weights of another task give their backbone and leave the head fresh; another number of classes leaves a
    classifier's head fresh and the last layers of other heads; other windows, other input channels and the backbone's
    form are adapted to; anything else that differs is an error.

    Args:
        model: a task (names `backbone.*` and those of its head) or a backbone.
        source: as in `read_weights`.
        use_ema: take the averaged weights where a checkpoint has both.

    Raises:
        ValueError: the weights do not fit; the text lists at most ten differing names and their number.
        OSError: the file is missing or cannot be fetched.
    """
    entries = model.state_dict()
    prefix = "" if any(name.startswith(BACKBONE) for name in entries) else BACKBONE
    own = {prefix + name: value for name, value in entries.items()}
    name = _name_of(model, own)
    weights = read_weights(source, model=name, use_ema=use_ema)
    _require_design(weights, model)
    adapted = adapt(weights.state, own)
    require_match(adapted.state, own, source=weights.source, model=name, fresh=adapted.fresh)
    model.load_state_dict({name.removeprefix(prefix): value for name, value in (own | adapted.state).items()})
    return _report(weights, adapted, own)


def require_match(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], *, source: str, model: str | None, fresh: Sequence[str] = ()
) -> None:
    """Check that every parameter of a model has an entry or is fresh, and every entry its place and shape.

    Raises:
        ValueError: some do not; the text lists at most ten and their number.
    """
    differing = [f"{key!r} is missing" for key in own if key not in state and key not in fresh]
    differing += [f"{key!r} is not in the model" for key in state if key not in own]
    shapes = {key: (tuple(value.shape), tuple(own[key].shape)) for key, value in state.items() if key in own}
    differing += [f"{key!r} is {there} there and {here} here" for key, (there, here) in shapes.items() if there != here]
    if not differing:
        return
    shown = "; ".join(differing[:MOST_SHOWN]) + ("; …" if len(differing) > MOST_SHOWN else "")
    holds = infer_model(state)
    is_other = holds is not None and (model is None or split_name(holds)[0] != split_name(model)[0])
    remedy = f"; it holds {holds}, so create that model" if is_other else ""
    raise ValueError(
        f"{source} is a checkpoint of another model than {model or 'this one'}: {len(differing)} "
        f"{'entry differs' if len(differing) == 1 else 'entries differ'}: {shown}{remedy}"
    )


def _require_design(weights: Weights, model: nn.Module) -> None:
    """Check that weights that say their designs go into a model of the same; some designs share names and shapes."""
    spec = getattr(model, "spec", None)
    saved = weights.opened.metadata.get("spec", {}).get("ablation", [])
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
    """Find the weight file that a path means, and what was saved beside the weights.

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
    spec = saved.pop("spec", None)
    if spec is None:
        weights = read_weights(file, use_ema=use_ema)
        spec, classes = infer_spec(weights.state, model), weights.opened.classes
        if classes and len(classes) == spec.num_classes:
            saved["classes"] = classes
    elif model not in (None, spec.model):
        raise ValueError(f"{file} holds {spec.model}, not {model}; leave the model's name out, or give its own file")
    record = catalog.find_file(file.name)
    if record is not None:
        saved.setdefault("preprocessing", record.preprocessing)
    return Resolved(file=file, spec=spec, record=record, config=_config_beside(file), **saved)


def find_file(path: str | PathLike[str], *, which: str = "best", use_ema: bool = True) -> Path:
    """The weight file that a path means: itself, or that of a checkpoint folder or a run folder.

    Raises:
        FileNotFoundError: nothing is there, or the run has no such checkpoint; the text says what it has.
    """
    file = follow(path)
    if not file.exists():
        raise FileNotFoundError(f"{path} does not exist; give a weight file, a checkpoint folder or a run folder")
    if (file / CHECKPOINTS).is_dir():
        file = _checkpoint_of_run(file, which)
    return _file_of_checkpoint(file, use_ema) if file.is_dir() else file


def save_weights(
    path: str | PathLike[str],
    weights: nn.Module | Mapping[str, Tensor],
    spec: ModelSpec,
    classes: Sequence[str] | None,
    preprocessing: Any,
    *,
    license: str | None = None,
    origin: str | None = None,
) -> None:
    """Write a safetensors file that says what it holds, atomically.

    Args:
        path: ends in `.safetensors`.
        weights: a task, or its state dict.
        spec: what builds the model again.
        classes: names of the labels 0 … K−1, None where they are not known.
        preprocessing: the evaluation transform, anything with the fields of `Preprocessing` or `Fit`.
        license: of the weights, where somebody else's stand behind them.
        origin: the file they come from.

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
    )


def _checkpoint_of_run(run: Path, which: str) -> Path:
    folder = follow(run / CHECKPOINTS / which)
    if not folder.is_dir():
        has = ", ".join(sorted(path.name for path in folder.parent.iterdir())) or "none"
        raise FileNotFoundError(f"run {run} has no checkpoint {which!r}; it has {has}: give one's folder")
    return folder


def _file_of_checkpoint(folder: Path, use_ema: bool) -> Path:
    names = (EMA_FILE, MODEL_FILE) if use_ema else (MODEL_FILE,)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} has no {MODEL_FILE}; give a weight file, a checkpoint folder or a run folder")


def _config_beside(file: Path) -> dict[str, Any] | None:
    """The config of the run whose checkpoints hold `file`."""
    config = file.parents[2] / CONFIG if len(file.parents) > 2 and file.parents[1].name == CHECKPOINTS else None
    if config is None or not config.is_file():
        return None
    import yaml

    return yaml.safe_load(config.read_text())


def _saved(file: Path) -> dict[str, Any]:
    """`spec`, `classes` and `preprocessing` as `save_weights` wrote them; nothing for files of others."""
    metadata = read_metadata(file)
    try:
        return metadata and {
            "spec": ModelSpec.from_dict(metadata["spec"]),
            "classes": None if metadata["classes"] is None else tuple(metadata["classes"]),
            "preprocessing": preprocessing_from_dict(metadata["preprocessing"]),
        }
    except (TypeError, KeyError) as error:
        raise ValueError(f"{file} was written by another version of globalvit ({error}); use that version") from error

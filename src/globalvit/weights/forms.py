"""Recognize the naming scheme and the model of a state dict from its entries.

Nothing heavy is imported: entries are anything with a `shape`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from globalvit import extensions
from globalvit.models.variants import DETECTION_WINDOW, GCVIT, GPVIT, GCViTConfig, ModelSpec, Window, heads, split_name
from globalvit.weights import gcvit_official, gpvit_official, openmmlab, timm
from globalvit.weights.heads import full_name, head_of, head_parts
from globalvit.weights.names import RefusedError, listed, shape, shown

State = Mapping[str, Any]
STEMS = ("backbone.stem.conv.weight", "backbone.stem.convs.0.conv.weight")
WRAPPER = "module."
POSITIONS = "backbone.position_embedding"
TABLE_OR_HIDDEN = (".attention.bias_table", ".mlp.fc1.weight")
# Parts of names under which training tools keep an averaged model.
EMA_PARTS = {"ema", "ema_model", "model_ema", "ema_net", "net_ema", "averaged_model", "avg_model", "average_model"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """A family of names.

    Attributes:
        name: as the catalog has it.
        title: in words, for reports.
        marks: entries of which every state dict of this form has one; of forms with the same marks the first is meant.
        to_ours: the conversion.
        dropped: whether the conversion leaves an entry out.
    """

    name: str
    title: str
    marks: tuple[str, ...]
    to_ours: Callable[[State], dict[str, Any]]
    dropped: Callable[[str], bool] = lambda _: False


def _under_backbone(state: State) -> dict[str, Any]:
    return {f"backbone.{name}": value for name, value in state.items()}


_DOWN, _PATCH = "downsample.reduction.weight", "projection.weight"
FORMS = (
    Form(name="ours", title="our form", marks=(f"backbone.stem.{_DOWN}", f"backbone.stem.{_PATCH}"), to_ours=dict),
    Form(
        name="our_backbone",
        title="our form, backbone alone",
        marks=(f"stem.{_DOWN}", f"stem.{_PATCH}"),
        to_ours=_under_backbone,
    ),
    Form(
        name="gcvit_official",
        title=gcvit_official.TITLE,
        marks=("patch_embed.conv_down.reduction.weight",),
        to_ours=gcvit_official.to_ours,
        dropped=gcvit_official.dropped,
    ),
    # Before GPViT's own form, which has the same names for the backbone.
    Form(
        name="mm",
        title=openmmlab.TITLE,
        marks=openmmlab.MARKS,
        to_ours=openmmlab.to_ours,
        dropped=openmmlab.dropped,
    ),
    Form(
        name="gpvit_official",
        title=gpvit_official.TITLE,
        marks=("backbone.patch_embed.projection.weight",),
        to_ours=gpvit_official.to_ours,
    ),
    Form(name="timm", title=timm.TITLE, marks=("stem.down.reduction.weight",), to_ours=timm.to_ours),
)


def _marks(form: Form) -> tuple[str, ...]:
    """A form's marks; the stems of extensions' networks mark our form."""
    prefix = {"ours": "backbone.", "our_backbone": ""}.get(form.name)
    return form.marks if prefix is None else (*form.marks, *(prefix + one.stem for one in extensions.families()))


def detect_form(names: Iterable[str]) -> Form:
    """Return the naming scheme of these entries.

    Raises:
        ValueError: nobody's that is known; the text gives at most ten of the names and their number.
    """
    names = list(names)
    present = set(names)
    for form in FORMS:
        if present.intersection(_marks(form)):
            return form
    titles = ", ".join(form.title for form in FORMS)
    raise ValueError(
        f"checkpoint of another model: none of its {len(names)} entries is known ({listed(names)}); expected {titles}"
    )


def recognize(
    state: State, *, use_ema: bool = True, source: str = "the given state dict"
) -> tuple[Form, dict[str, Any], tuple[str, ...]]:
    """Find a model in a state dict, whatever module of a training tool it was part of.

    Args:
        state: names → tensors.
        use_ema: take the averaged model where there are two.
        source: what the state dict is called in errors.

    Returns:
        Whose names the model has, its entries without the prefix of that module, and the names of all other entries.

    Raises:
        ValueError: no model is known, or there are several; the text names them.
    """
    found = _prefixes(state)
    if "" in found or not found:
        try:
            return detect_form(state), dict(state), ()
        except ValueError as error:
            raise RefusedError(f"{source} is a {error}") from error
    averaged = [prefix for prefix in found if _is_averaged(prefix, state)]
    raw = [prefix for prefix in found if prefix not in averaged]
    wanted = (averaged or raw) if use_ema else raw
    if not wanted:
        raise RefusedError(
            f"{source} has averaged (EMA) weights only, under {listed(found)}; leave out use_ema=False (--no-ema) to "
            f"use them"
        )
    if len(wanted) > 1:
        raise RefusedError(
            f"{source} has more than one model, under {listed(wanted)}; give the state dict of one, without its prefix"
        )
    prefix = wanted[0]
    entries = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return found[prefix], entries, tuple(name for name in state if not name.startswith(prefix))


def convert(form: Form, entries: State, source: str) -> dict[str, Any]:
    """Convert entries to our names and shapes.

    Raises:
        ValueError: they have other names or other numbers of axes than those of `form`.
    """
    try:
        state = form.to_ours(entries)
    except ValueError as error:
        raise RefusedError(f"{source}: {error}") from error
    except (RuntimeError, IndexError, TypeError) as error:
        raise RefusedError(f"{source} has entries of other shapes than {form.title} ({_first_line(error)})") from error
    # What is looked at before every shape is compared with the model's.
    axes = dict.fromkeys(_stems(), (4,)) | {POSITIONS: (3,)} | {head.outputs: (2, 4) for head in head_parts()}
    for name, value in state.items():
        allowed = (2,) if name.endswith(TABLE_OR_HIDDEN) else axes.get(name)
        if allowed and len(value.shape) not in allowed:
            raise RefusedError(
                f"{source} has {shown(name)} in shape {shape(value)}; expected {' or '.join(map(str, allowed))} axes: "
                f"fetch the file again"
            )
    return state


def _prefixes(state: State) -> dict[str, Form]:
    """Return the prefix of each model in a state dict, and its naming scheme."""
    found: dict[str, Form] = {}
    marks_of = [(form, _marks(form)) for form in FORMS]
    for name in state:
        for form, marks in marks_of:
            mark = next((mark for mark in marks if name == mark or name.endswith(f".{mark}")), None)
            if mark is not None:
                found.setdefault(name.removesuffix(mark), form)
    # A backbone inside a model that is known as a whole is not a model of its own.
    return {
        prefix: form
        for prefix, form in found.items()
        if not any(prefix.startswith(other) and prefix != other for other in found)
    }


def _is_averaged(prefix: str, state: State) -> bool:
    # PyTorch's AveragedModel counts its updates beside the model.
    is_counted = f"{prefix.removesuffix(WRAPPER)}n_averaged" in state and prefix.endswith(WRAPPER)
    return is_counted or not EMA_PARTS.isdisjoint(prefix.split("."))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def infer_model(state: State) -> str | None:
    """Return the model whose sizes and head match a state dict in our form, or None.

    Of models that differ in their windows only, the one with the state dict's windows is meant, else the first.
    """
    backbone = _infer_backbone(state)
    return None if backbone is None else full_name(backbone, head_of(state))


def _infer_backbone(state: State) -> str | None:
    if POSITIONS in state:
        return next((name for name, config in GPVIT.items() if config.width == state[POSITIONS].shape[-1]), None)
    sizes = _sizes(state)
    fitting = [name for name, config in GCVIT.items() if _sizes_of(config) == sizes]
    exact = [name for name in fitting if GCVIT[name].window == windows(state)]
    return next(iter(exact or fitting), None)


def infer_spec(state: State, model: str | None = None) -> ModelSpec:
    """Return the `ModelSpec` of a state dict in our form; pass `model` if it is known.

    Raises:
        ValueError: no model has these sizes.
    """
    model = model or infer_model(state)
    if model is None:
        raise ValueError(f"no model has the sizes of these {len(state)} entries; name the model they belong to")
    stem, head = stem_of(state), head_of(state)
    return ModelSpec(
        model=model,
        num_classes=head.num_classes(state) if head else 1000,
        in_channels=state[stem].shape[1] if stem else 3,
        window=_chosen_window(state, model),
    )


def stem_of(state: State) -> str | None:
    """Return the name of the entry whose second axis is the image channels."""
    return next((name for name in _stems() if name in state), None)


def _stems() -> tuple[str, ...]:
    return (*STEMS, *(f"backbone.{family.stem}" for family in extensions.families()))


def windows(state: State) -> tuple[int, ...]:
    """Return the window side of each stage from the bias tables of a state dict in our form; empty without tables."""
    tables = [state.get(f"backbone.stages.{stage}.blocks.0.attention.bias_table") for stage in range(4)]
    return tuple(window_of(table.shape[0]) for table in tables if table is not None)


def window_of(rows: int) -> int:
    """Return the window side w of a table with (2w − 1)² rows."""
    return (round(rows**0.5) + 1) // 2


def _chosen_window(state: State, model: str) -> Window | None:
    """Return the windows if they differ from the model's own."""
    found = windows(state)
    backbone, head = split_name(model)
    if len(found) != 4 or (backbone in GCVIT and found == _own_window(backbone, head)):
        return None
    return found[0], found[1], found[2], found[3]


def _own_window(backbone: str, head: str | None) -> Window:
    return DETECTION_WINDOW if head is not None and heads()[head] == "detect" else GCVIT[backbone].window


def _sizes_of(config: GCViTConfig) -> tuple[Any, ...]:
    hidden = int(config.width * config.mlp_ratio)
    return (config.depths, config.num_heads, config.width, hidden, config.layer_scale is not None)


def _sizes(state: State) -> tuple[Any, ...]:
    blocks = {
        tuple(name.split(".")[2:5:2]) for name in state if ".blocks." in name and name.endswith(".mlp.fc1.weight")
    }
    depths = tuple(sum(stage == str(index) for stage, _ in blocks) for index in range(4))
    first = "backbone.stages.{}.blocks.0.attention.bias_table"
    tables = [state.get(first.format(index)) for index in range(4)]
    heads = tuple(table.shape[1] for table in tables if table is not None)
    hidden = state.get("backbone.stages.0.blocks.0.mlp.fc1.weight")
    scaled = "backbone.stages.0.blocks.0.scale1" in state
    return (depths, heads, *(reversed(hidden.shape) if hidden is not None else (0, 0)), scaled)

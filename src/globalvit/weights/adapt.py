"""Fit weights to a model with another head, other windows, input channels or form."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from globalvit.weights import forms
from globalvit.weights.heads import BACKBONE, Head, head_of

State = dict[str, Tensor]
TABLE = ".attention.bias_table"
LAST_NORM = "backbone.norm."
# What backbones have for some tasks only: the norms of several outputs, detection's side path.
EXTRA_PARTS = ("backbone.norms.", "backbone.adapter.")


@dataclass(kw_only=True, slots=True)
class Adapted:
    """Weights being fitted to a model, and a record of the changes; `state` is in our names.

    Attributes:
        state: what will be loaded.
        fresh: names that keep the model's own values.
        dropped: names left out.
        resized: names of the tables that were resized.
        input_channels: of the source and the model, where they differ.
        classes: of the source (None without such a head) and the model, where the head is fresh or its class-wise
            layers are.
        heads: names of the source's head and the model's, where they are different ones.
    """

    state: State
    fresh: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    input_channels: tuple[int, int] | None = None
    classes: tuple[int | None, int] | None = None
    heads: tuple[str, str] | None = None


def adapt(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Adapted:
    """Fit weights to a model where the rules allow it; leave other differences as they are.

    Args:
        state: the weights, in our names.
        own: the model's state dict, in our names.
    """
    adapted = Adapted(state=dict(state))
    source, model = head_of(state), head_of(own)
    _adapt_parts(adapted, own, is_other_task=source not in (None, model))
    _adapt_head(adapted, own, source, model)
    _adapt_tables(adapted, own)
    _adapt_stem(adapted, own)
    return adapted


def resize_table(table_Lh: Tensor, rows: int) -> Tensor:
    """Resize a table of relative positions ((2w − 1)², h) bicubically on its grid to `rows` = (2v − 1)² rows.

    a = −0.75, half-pixel centers, no antialias, as the published detection backbone does it.
    """
    side, new_side = round(table_Lh.shape[0] ** 0.5), round(rows**0.5)
    grid = table_Lh.float().t().reshape(1, -1, side, side)
    resized = F.interpolate(grid, size=(new_side, new_side), mode="bicubic", align_corners=False)
    return resized.reshape(-1, rows).t().contiguous().to(table_Lh.dtype)


def adapt_channels(kernel: Tensor, channels: int) -> Tensor:
    """Fit the stem's kernel (C', C, 3, 3) to images of another number of channels.

    One channel: the kernel's channels are summed, so that a gray image is answered as the same image in color.
    More: the kernel's channels are repeated in turn and scaled by old/new, so that answers keep their size.
    """
    old = kernel.shape[1]
    if channels == 1:
        return kernel.float().sum(1, keepdim=True).to(kernel.dtype)
    repeated = kernel[:, torch.arange(channels, device=kernel.device) % old]
    return (repeated.float() * (old / channels)).to(kernel.dtype)


def _adapt_parts(adapted: Adapted, own: Mapping[str, Tensor], *, is_other_task: bool) -> None:
    """Drop parts of the backbone that only the source has, and keep those that only the model has fresh.

    From a classifier to other tasks the norm of the last map may go and the others may be new, whatever the source's
    head; from those to a classifier only where the source's head says what it is.
    """
    for part in (LAST_NORM, *EXTRA_PARTS):
        in_source, in_model = (any(name.startswith(part) for name in names) for names in (adapted.state, own))
        if in_model and not in_source and (is_other_task or part != LAST_NORM):
            adapted.fresh += [name for name in own if name.startswith(part)]
        if in_source and not in_model and (is_other_task or part == LAST_NORM):
            _drop(adapted, lambda name, part=part: name.startswith(part))


def _adapt_head(adapted: Adapted, own: Mapping[str, Tensor], source: Head | None, model: Head | None) -> None:
    """Drop the head for a bare backbone; keep it fresh for another task; for other classes, its class-wise layers."""
    if model is None:
        _drop(adapted, _is_head)
    elif source != model:
        _drop(adapted, _is_head)
        adapted.fresh += filter(_is_head, own)
        adapted.classes = (None, model.num_classes(own))
        adapted.heads = None if source is None else (source.name, model.name)
    elif model.num_classes(adapted.state) != model.num_classes(own):
        adapted.classes = (model.num_classes(adapted.state), model.num_classes(own))
        adapted.state = {name: value for name, value in adapted.state.items() if not model.is_class_wise(name)}
        adapted.fresh += filter(model.is_class_wise, own)


def _is_head(name: str) -> bool:
    return not name.startswith(BACKBONE)


def _adapt_tables(adapted: Adapted, own: Mapping[str, Tensor]) -> None:
    for name, table in adapted.state.items():
        model = own.get(name)
        if model is None or not name.endswith(TABLE) or table.ndim != 2 or table.shape[0] == model.shape[0]:
            continue
        if table.shape[1] == model.shape[1] and round(table.shape[0] ** 0.5) ** 2 == table.shape[0]:
            adapted.state[name] = resize_table(table, model.shape[0])
            adapted.resized.append(name)


def _adapt_stem(adapted: Adapted, own: Mapping[str, Tensor]) -> None:
    stem = forms.stem_of(own)
    if stem is None or stem not in adapted.state or adapted.state[stem].shape[1] == own[stem].shape[1]:
        return
    adapted.input_channels = (adapted.state[stem].shape[1], own[stem].shape[1])
    adapted.state[stem] = adapt_channels(adapted.state[stem], own[stem].shape[1])


def _drop(adapted: Adapted, is_dropped: Callable[[str], bool]) -> None:
    adapted.dropped += filter(is_dropped, adapted.state)
    adapted.state = {name: value for name, value in adapted.state.items() if not is_dropped(name)}

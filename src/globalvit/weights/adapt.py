"""Fitting weights to a model that differs in what may differ: head, windows, input channels, form."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from globalvit.weights import forms

State = dict[str, Tensor]
TABLE = ".attention.bias_table"
LAST_NORM = "backbone.norm."
EVERY_NORM = "backbone.norms."
HEAD = "head."


@dataclass(kw_only=True, slots=True)
class Adapted:
    """Weights on their way into a model, and what was done to them; `state` is in our names.

    Attributes:
        state: what will be loaded.
        fresh: names that keep the model's own values.
        dropped: names left out.
        resized: names of the tables that were resized.
        input_channels: of the source and the model, where they differ.
        classes: of the source and the model, where the head is fresh.
    """

    state: State
    fresh: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    input_channels: tuple[int, int] | None = None
    classes: tuple[int | None, int] | None = None


def adapt(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Adapted:
    """Fit weights to a model as far as the rules allow; what differs beyond them is left as it is.

    Args:
        state: the weights, in our names.
        own: the model's state dict, in our names.
    """
    adapted = Adapted(state=dict(state))
    _adapt_norms(adapted, own)
    _adapt_head(adapted, own)
    _adapt_tables(adapted, own)
    _adapt_stem(adapted, own)
    return adapted


def resize_table(table_Lh: Tensor, rows: int) -> Tensor:
    """Resize a table of relative positions ((2w − 1)², h) bicubically on its grid to `rows` = (2v − 1)² rows.

    a = −0.75, half-pixel centres, no antialias, as the published detection backbone does it.
    """
    side, new_side = round(table_Lh.shape[0] ** 0.5), round(rows**0.5)
    grid = table_Lh.float().t().reshape(1, -1, side, side)
    resized = F.interpolate(grid, size=(new_side, new_side), mode="bicubic", align_corners=False)
    return resized.reshape(-1, rows).t().contiguous().to(table_Lh.dtype)


def adapt_channels(kernel: Tensor, channels: int) -> Tensor:
    """Fit the stem's kernel (C', C, 3, 3) to images of another number of channels.

    One channel: the kernel's channels are summed, so that a grey picture is answered as the same picture in colour.
    More: the kernel's channels are repeated in turn and scaled by old/new, so that answers keep their size.
    """
    old = kernel.shape[1]
    if channels == 1:
        return kernel.float().sum(1, keepdim=True).to(kernel.dtype)
    repeated = kernel[:, torch.arange(channels, device=kernel.device) % old]
    return (repeated.float() * (old / channels)).to(kernel.dtype)


def _adapt_norms(adapted: Adapted, own: Mapping[str, Tensor]) -> None:
    """Classification weights in the detection form: their one norm goes, each output's norm is new."""
    source_has, model_has = (any(name.startswith(EVERY_NORM) for name in names) for names in (adapted.state, own))
    if model_has and not source_has:
        _drop(adapted, LAST_NORM)
        adapted.fresh += [name for name in own if name.startswith(EVERY_NORM)]


def _adapt_head(adapted: Adapted, own: Mapping[str, Tensor]) -> None:
    """A model without head takes none; one with another number of classes, or of headless weights, keeps its own."""
    source, model = adapted.state.get(forms.HEAD), own.get(forms.HEAD)
    if model is None:
        _drop(adapted, HEAD)
    elif source is None or source.shape[0] != model.shape[0]:
        adapted.classes = (None if source is None else source.shape[0], model.shape[0])
        adapted.state = {name: value for name, value in adapted.state.items() if not name.startswith(HEAD)}
        adapted.fresh += [name for name in own if name.startswith(HEAD)]


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


def _drop(adapted: Adapted, prefix: str) -> None:
    adapted.dropped += [name for name in adapted.state if name.startswith(prefix)]
    adapted.state = {name: value for name, value in adapted.state.items() if not name.startswith(prefix)}

"""The networks that are measured: ours, and peers from timm."""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import nn

from globalvit.benchmark.cells import OURS, Cell, Entry, Size
from globalvit.build import create_model, list_models, resolve_name
from globalvit.closest import suggest
from globalvit.models.variants import model_names, split_name, unalias, variants

TIMM = "timm"
AUTO = "auto"


def expand(patterns: Sequence[str]) -> list[str]:
    """Names of ours that the patterns mean, each once; a pattern without a head means classifiers.

    Raises:
        ValueError: a pattern means none.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        is_plain = not any(mark in pattern for mark in "*?[")
        matched = [resolve_name(pattern)] if is_plain else list_models(unalias(pattern))
        if not matched:
            raise ValueError(
                f"no model matches {pattern!r}.{suggest(pattern, model_names()) or ' `globalvit models` lists them.'}"
            )
        found |= dict.fromkeys(matched)
    return list(found)


def own_size(model: str) -> Size:
    """The image size that one of ours was made for."""
    side = variants()[split_name(model)[0]].image_size
    return side, side


def peers_of(model: str, wanted: Sequence[str]) -> list[tuple[str, str]]:
    """(source, name) of each peer of a model: `timm:NAME` as it says, `auto` for timm's of the same name, if any.

    Raises:
        ValueError: the word is not understood, timm has no such model, or the model is not a classifier.
    """
    found: dict[tuple[str, str], None] = {}
    for word in wanted:
        source, _, name = word.partition(":")
        if word != AUTO and (source != TIMM or not name):
            raise ValueError(
                f"peer {word!r} is not understood; write timm:NAME, such as timm:swin_tiny_patch4_window7_224, or auto"
            )
        if word != AUTO and not timm.is_model(name):
            near = suggest(name, timm.list_models()) or " timm.list_models() lists them."
            raise ValueError(f"timm {timm.__version__} has no model {name!r}.{near}")
        if word == AUTO and not timm.is_model(model):
            continue
        found[TIMM, model if word == AUTO else name] = None
    if found and split_name(model)[1] is not None:
        raise ValueError(f"peers classify and {model} does not; leave --peer out, or measure {split_name(model)[0]}")
    return list(found)


def create(entry: Entry, cell: Cell, window: str | None = None) -> nn.Module:
    """A network with fresh weights on the CPU.

    In training peers get the drop path of ours, so that both leave out as much.

    Raises:
        ValueError: a peer cannot take the image size, or ours not the windows.
    """
    torch.manual_seed(0)
    if entry.source != OURS:
        drop_path = variants()[split_name(cell.model)[0]].drop_path if cell.mode == "train" else 0.0
        return _peer(entry.model, cell.image_size, drop_path)
    return create_model(entry.model, image_size=cell.image_size, window=window)


def _peer(name: str, size: Size, drop_path: float) -> nn.Module:
    made = timm.get_pretrained_cfg(name)
    is_own_size = made is None or tuple(made.input_size[1:]) == size
    size_argument: dict[str, Any] = {} if is_own_size else {"img_size": size}
    path_argument: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    # Not every network knows both arguments; those without a fixed size take any.
    for arguments in (size_argument | path_argument, size_argument, path_argument):
        try:
            return timm.create_model(name, **arguments)
        except TypeError:
            continue
    return timm.create_model(name)

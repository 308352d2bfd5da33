"""Weights into Keras models and out of them."""

import logging
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np

from globalvit.keras.files import Arrays, read_file
from globalvit.keras.layers import resize_bicubic
from globalvit.keras.untyped import ops
from globalvit.weights import forms
from globalvit.weights import keras as keras_form
from globalvit.weights.catalog import GCVIT_LICENSE, WeightRecord
from globalvit.weights.download import download
from globalvit.weights.names import MOST_SHOWN, RefusedError, say_nonfinite

logger = logging.getLogger(__name__)
TABLE = "/attention/bias_table"
CLASSES = "head_linear/bias"
# Of the blocks of a GPViT that only a backbone gives out.
OUTPUT_NORMS = "norms_"


def load_weights(model: keras.Model, source: WeightRecord | Path, variant: str) -> None:
    """Load published or own weights into a model of this package; nothing is changed unless everything fits.

    Tables of other windows are resized; the head's weights are left out where the model has no head.

    Raises:
        ValueError: the weights do not fit, or are not finite; the text lists at most ten entries and their number.
        OSError: the file is missing or cannot be fetched.
    """
    if isinstance(source, WeightRecord):
        path = download(source)
        if source.license == GCVIT_LICENSE:
            _say_license(source.license)
    else:
        path = source
    load_state(model, read_file(path), variant, source=str(path))


def load_state(model: keras.Model, state: Arrays, variant: str, *, source: str) -> None:
    """Load weights in our names into a model of this package, as `load_weights` does.

    Raises:
        ValueError: the weights do not fit, or are not finite.
    """
    own = variables(model)
    parts = (keras_form.BACKBONE, keras_form.HEAD) if CLASSES in own else keras_form.BACKBONE
    found = keras_form.from_ours({name: value for name, value in state.items() if name.startswith(parts)})
    fitted = {name: _resized(name, value, own.get(name)) for name, value in found.items()}
    _require_match(fitted, own, source, variant, forms.infer_model(state))
    bad = [name for name, value in fitted.items() if not np.isfinite(value).all()]
    if bad:
        raise RefusedError(say_nonfinite(source, bad))
    for name, value in fitted.items():
        own[name].assign(value)


def variables(model: keras.Model) -> dict[str, Any]:
    """The variables of a model of this package by their paths, whatever model it is part of."""
    found = {}
    for layer in model.layers:
        for variable in layer.weights:
            _, _, inside = f"/{variable.path}".partition(f"/{layer.name}/")
            found[f"{layer.name}/{inside}"] = variable
    return found


def state_dict(model: keras.Model) -> Arrays:
    """The weights of a model of this package in our names: `globalvit.load_weights` takes them into PyTorch."""
    return keras_form.to_ours({path: ops.convert_to_numpy(variable) for path, variable in variables(model).items()})


@cache
def _say_license(license: str) -> None:
    """Once, however many models are built."""
    logger.warning("The weights of GC ViT are under %s: for non-commercial use only.", license)


def _resized(name: str, value: np.ndarray, own: Any) -> np.ndarray:
    """A table of relative positions ((2w − 1)², h) resized on its grid to the model's window."""
    if own is None or not name.endswith(TABLE) or len(value) == own.shape[0] or value.shape[1] != own.shape[1]:
        return value
    source, side = (round(rows**0.5) for rows in (len(value), own.shape[0]))
    resized = resize_bicubic(value.reshape(1, source, source, -1), side, side)
    return ops.convert_to_numpy(resized).reshape(side**2, -1)


def _require_match(found: Arrays, own: dict[str, Any], source: str, variant: str, holds: str | None) -> None:
    heads = [tuple(side[CLASSES].shape) for side in (found, own) if CLASSES in side]
    if holds == variant and len(set(heads)) == 2:
        raise ValueError(
            f'If using `weights="{source}"` with `include_top=True`, `classes` should be {heads[0][0]}. '
            f"Received: classes={heads[1][0]}"
        )
    differing = [f"{name!r} is missing" for name in own if name not in found and not name.startswith(OUTPUT_NORMS)]
    differing += [f"{name!r} is not in the model" for name in found if name not in own]
    shapes = {name: (value.shape, tuple(own[name].shape)) for name, value in found.items() if name in own}
    differing += [f"{key!r} is {there} there and {here} here" for key, (there, here) in shapes.items() if there != here]
    if differing:
        shown = "; ".join(differing[:MOST_SHOWN]) + ("; …" if len(differing) > MOST_SHOWN else "")
        raise ValueError(
            f"The weights of {source} should be those of {variant}. Received: {holds or 'a model of other sizes'}, "
            f"{len(differing)} {'entry differs' if len(differing) == 1 else 'entries differ'}: {shown}"
        )

"""Weights in our names as a `.weights.h5` file, for `globalvit convert`."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras

from globalvit.atomic import replace_with
from globalvit.keras import networks
from globalvit.keras.files import KERAS_WEIGHTS, Arrays
from globalvit.keras.load import load_state, variables
from globalvit.models.variants import VARIANTS, GCViTConfig, GPViTConfig, ModelSpec, choose_window
from globalvit.weights import keras as keras_form


def write_weights(path: Path, state: Arrays, spec: ModelSpec) -> dict[str, Any]:
    """Write the file that the application of `spec.model` takes as `weights`; return its variables.

    Args:
        path: ends in `.weights.h5`.
        state: our names → arrays, with or without a head.
        spec: the model they belong to.

    Raises:
        ValueError: the weights are not those of the model.
        OSError: the disk is full or the folder cannot be written; a file that was there is kept.
    """
    config = _config(spec, state)
    images = keras.Input((None, None, spec.in_channels))
    found = networks.maps(images, config)
    scores = [networks.classify(found[-1], config, spec.num_classes, None)] if keras_form.CLASSIFIER in state else []
    model = keras.Model(images, scores or found)
    load_state(model, state, spec.model, source="the weights")
    with tempfile.TemporaryDirectory(dir=path.absolute().parent) as folder, replace_with(path) as temporary:
        # Keras insists on its own ending, which the temporary file has not.
        model.save_weights(Path(folder) / f"model{KERAS_WEIGHTS}")
        (Path(folder) / f"model{KERAS_WEIGHTS}").replace(temporary)
    return variables(model)


def _config(spec: ModelSpec, state: Arrays) -> GCViTConfig | GPViTConfig:
    if spec.model not in VARIANTS:
        raise ValueError(f"globalvit.keras has no {spec.model}; it has classifiers and backbones")
    config = replace(VARIANTS[spec.model], in_channels=spec.in_channels)
    if isinstance(config, GCViTConfig):
        return replace(config, window=choose_window(config, spec.image_size, spec.window))
    outputs = {int(name.split(".")[2]) for name in state if name.startswith("backbone.norms.")}
    return replace(config, outputs=(*sorted(outputs), *config.outputs))

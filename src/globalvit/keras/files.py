"""Weight files as NumPy arrays in our names. PyTorch is imported for a `.pth` alone, which only it can open."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from globalvit.regular import check_regular
from globalvit.weights import forms
from globalvit.weights import keras as keras_form

Arrays = dict[str, np.ndarray]
KERAS_WEIGHTS = ".weights.h5"
# Keras numbers a layer's variables in the order in which the layer makes them.
ENTRIES: list[tuple[str, tuple[str, ...]]] = [
    (r"norm\w*", ("gamma", "beta", "moving_mean", "moving_variance")),
    (r"stages_\d+_blocks_\d+", ("scale1", "scale2")),
    (r"blocks_\d+", ("group_tokens",)),
    (r"attention", ("bias_table",)),
    (r"position_embedding", ("table",)),
    (r"head_pool", ("token",)),
    (r"\w+", ("kernel", "bias")),
]


def read_file(path: Path) -> Arrays:
    """Open a weight file of any form: our names → arrays.

    Raises:
        OSError: the path is missing or not a regular file.
        ValueError: the file is damaged, holds code, or its entries belong to no known network.
    """
    check_regular(path, "give a weight file")
    if path.name.endswith(KERAS_WEIGHTS):
        try:
            return keras_form.to_ours(read_variables(path))
        except (IndexError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} has variables of other shapes than a globalvit.keras model") from error
    state = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
    form, entries, _ = forms.recognize(state, source=str(path))
    return forms.convert(form, entries, str(path))


def read_variables(path: Path) -> Arrays:
    """The variables of a `.weights.h5` file that a model of this package wrote: Keras paths → arrays.

    Raises:
        ValueError: it is not such a file.
    """
    import h5py

    size = path.stat().st_size
    try:
        with h5py.File(path, "r") as file:
            return dict(_variables(file["layers"], "", size))
    except Exception as error:
        # h5py has no class of its own for what it finds in damaged files.
        if isinstance(error, OSError) and error.errno is not None and not path.is_file():
            raise
        reason = " ".join(str(error).split())[:160]
        raise ValueError(
            f"{path} is damaged or holds no variables of a globalvit.keras model ({reason}); expected what its "
            f"save_weights() wrote"
        ) from error


def _variables(group: Any, inside: str, size: int) -> Iterator[tuple[str, np.ndarray]]:
    """The variables of all layers in a group, under the layers' names, which Keras writes beside the numbers.

    Raises:
        ValueError: a layer is not one of ours, or declares more numbers than a file of `size` bytes holds.
    """
    for child in group.values():
        if "vars" not in child:  # a list of layers
            yield from _variables(child, inside, size)
            continue
        name = child["vars"].attrs["name"]
        if name.startswith("seed_generator"):
            continue
        path = f"{inside}{name}/"
        entries = next((entries for pattern, entries in ENTRIES if re.fullmatch(pattern, name)), None)
        if entries is None:
            raise ValueError(f"it has a layer {name[:100]!r}")
        for number, value in child["vars"].items():
            if value.nbytes > size:
                raise ValueError(f"{path} declares {value.nbytes} bytes and the file has {size}")
            yield path + entries[int(number)], value[()]
        yield from _variables({key: part for key, part in child.items() if key != "vars"}, path, size)


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _read_safetensors(path: Path) -> Arrays:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a dict
    except (SafetensorError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is damaged, cut short, or in a dtype such as bfloat16 that NumPy does not know ({error}); fetch "
            f"it again, or write it in float32"
        ) from error


def _read_torch(path: Path) -> Arrays:
    from globalvit.weights.read import open_weights

    opened = open_weights(path).state
    return {name: (value.float() if value.is_floating_point() else value).numpy() for name, value in opened.items()}

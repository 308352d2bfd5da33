"""The variables of `globalvit.keras` models ↔ our names.

Pure dict → dict on NumPy arrays. A variable's name is its Keras path:
`stages_0_blocks_1/attention/qkv/kernel` is `backbone.stages.0.blocks.1.attention.qkv.weight`. Keras counts channels
last in a kernel (rows, columns, in, out), PyTorch first (out, in, rows, columns).
"""

import re
from collections.abc import Mapping
from typing import Any

TITLE = "the form of globalvit.keras"
BACKBONE, HEAD = "backbone.", "head."
CLASSIFIER = "head.linear.weight"
POSITIONS = "position_embedding"
TABLE = f"{POSITIONS}/table"
DROPPED = "num_batches_tracked"
# A batch norm's entries; those of a layer norm are the first two.
NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
NORM_BACK = {there: here for here, there in NORM.items()}
_IS_NORM = re.compile(r"norm(?:\d+|s_\d+|_query|_key)?")
_IS_DEPTHWISE = re.compile(r"(?:depthwise|depthwise/conv|vertical|horizontal)$")
TO_KERAS = {4: (2, 3, 1, 0), 2: (1, 0)}
TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0)}
# (C, 1, rows, columns) ↔ (rows, columns, C, 1): its own inverse.
DEPTHWISE = (2, 3, 0, 1)


def dropped(name: str) -> bool:
    """Return whether `from_ours` drops an entry: the batch norm counters, which Keras does not have."""
    return name.endswith(DROPPED)


def from_ours(state: Mapping[str, Any]) -> dict[str, Any]:
    """Convert our names and shapes to Keras paths and shapes."""
    return dict(_from_ours(name, value) for name, value in state.items() if not dropped(name))


def to_ours(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Convert Keras paths and shapes to our names and shapes, with batch norm counters set to 0."""
    state = dict(_to_ours(path, value) for path, value in variables.items())
    means = [name for name in state if name.endswith(".running_mean")]
    return state | {name.replace("running_mean", DROPPED): _zero() for name in means}


def _zero() -> Any:
    import numpy as np

    return np.zeros((), np.int64)


def _from_ours(name: str, value: Any) -> tuple[str, Any]:
    layer, _, entry = _layer_path(name).rpartition("/")
    if f"{layer}/{entry}" == f"/{POSITIONS}":
        return TABLE, value
    if _IS_NORM.fullmatch(layer.rpartition("/")[2]) and entry in NORM:
        return f"{layer}/{NORM[entry]}", value
    if entry != "weight":
        return f"{layer}/{entry}", value
    axes = DEPTHWISE if _IS_DEPTHWISE.search(layer) else TO_KERAS[value.ndim]
    return f"{layer}/kernel", value.transpose(axes)


def _to_ours(path: str, value: Any) -> tuple[str, Any]:
    layer, _, entry = path.rpartition("/")
    if path == TABLE:
        return BACKBONE + POSITIONS, value
    if entry == "kernel":
        axes = DEPTHWISE if _IS_DEPTHWISE.search(layer) else TO_TORCH[value.ndim]
        entry, value = "weight", value.transpose(axes)
    return _module_name(f"{layer}/{NORM_BACK.get(entry, entry)}"), value


def _layer_path(name: str) -> str:
    """`backbone.stages.0.blocks.1.norm1.weight` → `stages_0_blocks_1/norm1/weight`."""
    name = name.removeprefix(BACKBONE)
    name = re.sub(r"^(stages\.\d+|head)\.", r"\1_", name)
    return re.sub(r"\.(\d+)", r"_\1", name).replace(".", "/")


def _module_name(path: str) -> str:
    """The inverse of `_layer_path`."""
    name = re.sub(r"^(stages_\d+|head)_", r"\1.", path.replace("/", "."))
    name = re.sub(r"_(\d+)(?=\.)", r".\1", name)
    return name if name.startswith(HEAD) else BACKBONE + name

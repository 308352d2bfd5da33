"""GC ViT checkpoints as NVIDIA released them ↔ ours: classification and detection form.

Pure dict → dict on anything with `shape` and `reshape`; nothing heavy is imported until an index has to be written.
"""

from collections.abc import Mapping
from typing import Any

from globalvit.weights.names import Pair, nest, rename_all, renamer, swap

TITLE = "the official GC ViT form"

_BRANCH: list[Pair] = [
    ("conv.0.weight", "depthwise.weight"),
    ("conv.2.fc.0.weight", "squeeze_excite.reduce.weight"),
    ("conv.2.fc.2.weight", "squeeze_excite.expand.weight"),
    ("conv.3.weight", "pointwise.weight"),
]
_DOWNSAMPLE: list[Pair] = [
    ("norm1.{part}", "norm1.{part}"),
    *nest("", "branch.", _BRANCH),
    ("reduction.weight", "reduction.weight"),
    ("norm2.{part}", "norm2.{part}"),
]
_BLOCK = "levels.{n}.blocks.{n}."
_OUR_BLOCK = "backbone.stages.{n}.blocks.{n}."
# The backbones of segmenters and detectors: a norm for every output, no norm of the last map alone, no head.
EVERY_NORM_BACKBONE: list[Pair] = [
    ("patch_embed.proj.{part}", "backbone.stem.conv.{part}"),
    *nest("patch_embed.conv_down.", "backbone.stem.downsample.", _DOWNSAMPLE),
    *nest("levels.{n}.q_global_gen.to_q_global.{n}.", "backbone.stages.{n}.global_query.blocks.{n}.", _BRANCH),
    # Even blocks are local and project to q, k, v; odd ones are global and project to k, v, under the same name there.
    ("levels.{n}.blocks.{even}.attn.qkv.{part}", "backbone.stages.{n}.blocks.{even}.attention.qkv.{part}"),
    ("levels.{n}.blocks.{odd}.attn.qkv.{part}", "backbone.stages.{n}.blocks.{odd}.attention.kv.{part}"),
    (f"{_BLOCK}attn.relative_position_bias_table", f"{_OUR_BLOCK}attention.bias_table"),
    (f"{_BLOCK}attn.proj.{{part}}", f"{_OUR_BLOCK}attention.proj.{{part}}"),
    (f"{_BLOCK}norm{{n}}.{{part}}", f"{_OUR_BLOCK}norm{{n}}.{{part}}"),
    (f"{_BLOCK}mlp.fc{{n}}.{{part}}", f"{_OUR_BLOCK}mlp.fc{{n}}.{{part}}"),
    (f"{_BLOCK}gamma{{n}}", f"{_OUR_BLOCK}scale{{n}}"),
    *nest("levels.{n}.downsample.", "backbone.stages.{n}.downsample.", _DOWNSAMPLE),
    ("norm{n}.{part}", "backbone.norms.{n}.{part}"),
]
PAIRS: list[Pair] = [
    *EVERY_NORM_BACKBONE,
    ("norm.{part}", "backbone.norm.{part}"),
    ("head.{part}", "head.linear.{part}"),
]
INDEX = "relative_position_index"
TABLE = "relative_position_bias_table"

_to_ours, _from_ours = renamer(PAIRS), renamer(swap(PAIRS))


def dropped(name: str) -> bool:
    """Return whether `to_ours` drops an entry: the index buffers, which follow from the window."""
    return name.endswith(f".attn.{INDEX}")


def to_ours(state: Mapping[str, Any]) -> dict[str, Any]:
    """Convert official names to ours.

    Raises:
        ValueError: entries that the official networks do not have.
    """
    return rename_all({name: value for name, value in state.items() if not dropped(name)}, _to_ours, TITLE)


def from_ours(state: Mapping[str, Any]) -> dict[str, Any]:
    """Convert our names to official ones, with the index buffers computed and placed after their tables.

    Raises:
        ValueError: entries that the official networks do not have.
    """
    return with_indices(rename_all(state, _from_ours, TITLE))


def with_indices(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return entries under official names, with the index buffers after their tables."""
    whole: dict[str, Any] = {}
    for name, value in state.items():
        whole[name] = value
        if name.endswith(TABLE):
            whole[name.replace(TABLE, INDEX)] = _like(value, position_index(value.shape[0]))
    return whole


def position_index(rows: int) -> Any:
    """(N, N) int64 array: the row of a bias table with `rows` = (2w − 1)² rows for each pair (query, key), N = w²."""
    import numpy as np

    side = round(rows**0.5)
    window = (side + 1) // 2
    row, column = (axis.ravel() for axis in np.divmod(np.arange(window**2), window))
    delta_row, delta_column = (axis[:, None] - axis[None, :] + window - 1 for axis in (row, column))
    return delta_row * side + delta_column


def _like(table: Any, index: Any) -> Any:
    """Return the index as the table's kind of array."""
    if not hasattr(table, "new_tensor"):
        return index
    import torch

    return torch.from_numpy(index)

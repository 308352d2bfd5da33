"""timm's GC ViT state dicts ↔ ours, classification form.

Pure dict → dict on anything with `shape` and `reshape`. timm puts a downsample at the start of the stage it leads to,
counts the feature-extract blocks from 1, and writes the squeeze-excite's linear layers as 1×1 convolutions.
"""

from collections.abc import Mapping
from typing import Any

from globalvit.weights.names import Pair, nest, rename_all, renamer, swap

TITLE = "timm's GC ViT form"

_BRANCH: list[Pair] = [
    ("conv_dw.weight", "depthwise.weight"),
    ("se.fc1.weight", "squeeze_excite.reduce.weight"),
    ("se.fc2.weight", "squeeze_excite.expand.weight"),
    ("conv_pw.weight", "pointwise.weight"),
]
_DOWNSAMPLE: list[Pair] = [
    ("norm1.{part}", "norm1.{part}"),
    *nest("conv_block.", "branch.", _BRANCH),
    ("reduction.weight", "reduction.weight"),
    ("norm2.{part}", "norm2.{part}"),
]
_QUERY: list[Pair] = [
    pair for block in range(3) for pair in nest(f"blocks.conv{block + 1}.", f"blocks.{block}.", _BRANCH)
]
_BLOCK = "stages.{n}.blocks.{n}."
_OUR_BLOCK = "backbone.stages.{n}.blocks.{n}."
PAIRS: list[Pair] = [
    ("stem.conv1.{part}", "backbone.stem.conv.{part}"),
    *nest("stem.down.", "backbone.stem.downsample.", _DOWNSAMPLE),
    *nest("stages.{n}.global_block.", "backbone.stages.{n}.global_query.", _QUERY),
    ("stages.{n}.blocks.{even}.attn.qkv.{part}", "backbone.stages.{n}.blocks.{even}.attention.qkv.{part}"),
    ("stages.{n}.blocks.{odd}.attn.qkv.{part}", "backbone.stages.{n}.blocks.{odd}.attention.kv.{part}"),
    (f"{_BLOCK}attn.rel_pos.relative_position_bias_table", f"{_OUR_BLOCK}attention.bias_table"),
    (f"{_BLOCK}attn.proj.{{part}}", f"{_OUR_BLOCK}attention.proj.{{part}}"),
    (f"{_BLOCK}norm{{n}}.{{part}}", f"{_OUR_BLOCK}norm{{n}}.{{part}}"),
    (f"{_BLOCK}mlp.fc{{n}}.{{part}}", f"{_OUR_BLOCK}mlp.fc{{n}}.{{part}}"),
    (f"{_BLOCK}ls{{n}}.gamma", f"{_OUR_BLOCK}scale{{n}}"),
    *(
        pair
        for stage in range(3)
        for pair in nest(f"stages.{stage + 1}.downsample.", f"backbone.stages.{stage}.downsample.", _DOWNSAMPLE)
    ),
    ("stages.3.norm.{part}", "backbone.norm.{part}"),
    ("head.fc.{part}", "head.linear.{part}"),
]

_to_ours, _from_ours = renamer(PAIRS), renamer(swap(PAIRS))


def to_ours(state: Mapping[str, Any]) -> dict[str, Any]:
    """Convert timm's names to ours, with squeeze-excite kernels (C, C', 1, 1) as matrices (C, C').

    Raises:
        ValueError: entries that timm's GC ViT does not have.
    """
    renamed = rename_all(state, _to_ours, TITLE)
    return {name: value.reshape(value.shape[:2]) if _is_gate(name) else value for name, value in renamed.items()}


def from_ours(state: Mapping[str, Any]) -> dict[str, Any]:
    """Convert our names to timm's, with squeeze-excite matrices (C, C') as kernels (C, C', 1, 1).

    Raises:
        ValueError: entries that timm's GC ViT does not have, such as the norms of the detection form.
    """
    gates = {name: value.reshape((*value.shape, 1, 1)) for name, value in state.items() if _is_gate(name)}
    return rename_all({**state, **gates}, _from_ours, TITLE)


def _is_gate(name: str) -> bool:
    return name.endswith((".squeeze_excite.reduce.weight", ".squeeze_excite.expand.weight"))

"""GPViT checkpoints as their authors released them (OpenMMLab's style) ↔ ours.

Pure dict → dict on anything with `shape` and `reshape`.
"""

from collections.abc import Mapping
from typing import Any

from globalvit.weights.names import Pair, nest, rename_all, renamer, swap

TITLE = "the official GPViT form"
POSITION_GRID = 28

_MLP: list[Pair] = [
    ("ffn.layers.0.0.{part}", "mlp.fc1.{part}"),
    ("ffn.layers.1.{part}", "mlp.fc2.{part}"),
]
_LOCAL: list[Pair] = [
    ("norm{n}.{part}", "norm{n}.{part}"),
    ("qkv.{part}", "attention.qkv.{part}"),
    ("attns.0.get_v.{part}", "attention.vertical.{part}"),
    ("attns.1.get_v.{part}", "attention.horizontal.{part}"),
    ("proj.{part}", "attention.proj.{part}"),
    *_MLP,
    ("dw.weight", "depthwise.weight"),
]
_GATHER: list[Pair] = [
    ("norm_query.{part}", "norm_query.{part}"),
    ("norm_key.{part}", "norm_key.{part}"),
    ("attn.k_proj.{part}", "key.{part}"),
]
_MIX: list[Pair] = [
    ("norm{n}.{part}", "norm{n}.{part}"),
    ("patch_mixer.0.{part}", "tokens.fc1.{part}"),
    ("patch_mixer.3.{part}", "tokens.fc2.{part}"),
    ("channel_mixer.0.{part}", "channels.fc1.{part}"),
    ("channel_mixer.3.{part}", "channels.fc2.{part}"),
]
_SCATTER: list[Pair] = [
    *_GATHER,
    ("attn.q_proj.{part}", "query.{part}"),
    ("attn.v_proj.{part}", "value.{part}"),
    ("attn.proj.{part}", "proj.{part}"),
    ("proj.{part}", "merge.{part}"),
    ("norm2.{part}", "norm2.{part}"),
    *_MLP,
]
_GROUP: list[Pair] = [
    ("group_token", "group_tokens"),
    *nest("group_layer.", "gather.", _GATHER),
    *nest("mixer.layers.0.", "mix.", _MIX),
    *nest("un_group_layer.", "scatter.", _SCATTER),
    ("dwconv.0.weight", "depthwise.conv.weight"),
    ("dwconv.1.{norm}", "depthwise.norm.{norm}"),
]
# The first convolution has a name of its own there; those after it are convolution, norm, activation in turn.
_STEM: list[Pair] = [
    ("stem.0.weight", "convs.0.conv.weight"),
    ("stem.1.{norm}", "convs.0.norm.{norm}"),
    ("convs.0.weight", "convs.1.conv.weight"),
    ("convs.1.{norm}", "convs.1.norm.{norm}"),
    ("convs.3.weight", "convs.2.conv.weight"),
    ("convs.4.{norm}", "convs.2.norm.{norm}"),
    ("projection.{part}", "projection.{part}"),
]
BACKBONE: list[Pair] = nest(
    "backbone.",
    "backbone.",
    [
        ("pos_embed", "position_embedding"),
        *nest("patch_embed.", "stem.", _STEM),
        *nest("layers.{n}.", "blocks.{n}.", [*_LOCAL, *_GROUP]),
        ("ln1.{part}", "norm.{part}"),
        ("norm{n}.{part}", "norms.{n}.{part}"),
    ],
)
PAIRS: list[Pair] = [
    *BACKBONE,
    ("neck.group_token", "head.pool.token"),
    ("neck.norm_query.{part}", "head.pool.norm.{part}"),
    ("neck.attn.k_proj.weight", "head.pool.key.weight"),
    ("head.fc.{part}", "head.linear.{part}"),
]

_to_ours, _from_ours = renamer(PAIRS), renamer(swap(PAIRS))


def to_ours(state: Mapping[str, Any]) -> dict[str, Any]:
    """Convert official names and shapes to ours.

    Raises:
        ValueError: entries that the official networks do not have.
    """
    return our_shapes(rename_all(state, _to_ours, TITLE))


def from_ours(state: Mapping[str, Any]) -> dict[str, Any]:
    """Convert our names and shapes to official ones.

    Raises:
        ValueError: entries that the official networks do not have.
    """
    return rename_all(official_shapes(state), _from_ours, TITLE)


def our_shapes(state: Mapping[str, Any]) -> dict[str, Any]:
    """Convert entries under our names from official shapes to ours."""
    return {name: _our_shape(name, value) for name, value in state.items()}


def official_shapes(state: Mapping[str, Any]) -> dict[str, Any]:
    """Convert entries under our names from our shapes to official ones."""
    return {name: _official_shape(name, value) for name, value in state.items()}


def _our_shape(name: str, value: Any) -> Any:
    """Drop the batch axis of learned tokens, and reshape positions to a grid."""
    if name.endswith((".group_tokens", ".pool.token")):
        return value.reshape(value.shape[1:])
    if name.endswith(".position_embedding"):
        return value.reshape((POSITION_GRID, POSITION_GRID, -1))
    return value


def _official_shape(name: str, value: Any) -> Any:
    if name.endswith((".group_tokens", ".pool.token")):
        return value.reshape((1, *value.shape))
    if name.endswith(".position_embedding"):
        return value.reshape((1, POSITION_GRID**2, -1))
    return value

"""The graphs: from images to the maps of a backbone, and from the last map to class scores.

Layers have the names of the torch modules with underscores for dots: `stages_0_blocks_1` is `stages.0.blocks.1`.
"""

from typing import Any

import keras

from globalvit.keras import gcvit, gpvit
from globalvit.keras.layers import HostNormal
from globalvit.keras.untyped import layers
from globalvit.models.variants import GCViTConfig, GPViTConfig

# Of the group pool of the two small GPViTs.
POOL_HEADS = 6


def maps(x_BHWC: Any, config: GCViTConfig | GPViTConfig) -> list[Any]:
    """The outputs of a backbone for channels-last images: of the stages (GC ViT) or of chosen blocks (GPViT)."""
    return _gpvit_maps(x_BHWC, config) if isinstance(config, GPViTConfig) else _gcvit_maps(x_BHWC, config)


def classify(x_BHWC: Any, config: GCViTConfig | GPViTConfig, classes: int, activation: Any) -> Any:
    """Pool the last map to a vector, then a linear layer and its activation: (B, H, W, C) → (B, K)."""
    if isinstance(config, GPViTConfig) and config.pooling == "group":
        pool = gpvit.GroupPool(config.width, POOL_HEADS, name="head_pool")
    else:
        pool = layers.GlobalAveragePooling2D(data_format="channels_last", name="head_pool")
    mixed = keras.config.dtype_policy().name.startswith("mixed_")
    linear = layers.Dense(
        classes,
        activation=activation,
        kernel_initializer=HostNormal(),
        name="head_linear",
        # Scores of a mixed-precision model are in full precision, for the loss.
        dtype="float32" if mixed else None,
    )
    return linear(pool(x_BHWC))


def _gcvit_maps(x: Any, config: GCViTConfig) -> list[Any]:
    x = gcvit.Stem(config.width, name="stem")(x)
    rates = iter(_drop_path_rates(config.drop_path, sum(config.depths)))
    found = []
    for stage, depth in enumerate(config.depths):
        x = _stage(x, config, stage, [next(rates) for _ in range(depth)])
        found.append(x)
        if stage < len(config.depths) - 1:
            dim = config.channels[stage]
            x = gcvit.Downsample(dim, 2 * dim, name=f"stages_{stage}_downsample")(x)
    norm = layers.LayerNormalization(epsilon=gcvit.NORM_EPS, name="norm")
    return [*found[:-1], norm(found[-1])]


def _stage(x: Any, config: GCViTConfig, stage: int, rates: list[float]) -> Any:
    """The blocks of a stage, even ones local and odd ones global, with the query that all global ones share."""
    dim, heads, window = config.channels[stage], config.num_heads[stage], config.window[stage]
    query = gcvit.GlobalQuery(
        dim, heads, window, gcvit.QUERY_BLOCKS[stage], config.query_pools[stage], name=f"stages_{stage}_global_query"
    )(x)
    for index, rate in enumerate(rates):
        is_global = bool(index % 2)
        block = gcvit.Block(
            dim,
            heads,
            window,
            config.mlp_ratio,
            config.layer_scale,
            rate,
            is_global,
            name=f"stages_{stage}_blocks_{index}",
        )
        x = block(x, query) if is_global else block(x)
    return x


def _gpvit_maps(x: Any, config: GPViTConfig) -> list[Any]:
    x = gpvit.Stem(config.stem_convs, config.width, name="stem")(x)
    x = gpvit.PositionEmbedding(name="position_embedding")(x)
    found = []
    for index, rate in enumerate(_drop_path_rates(config.drop_path, config.depth)):
        x = _gpvit_block(config, index, rate)(x)
        if index in config.outputs:
            name = "norm" if index == config.depth - 1 else f"norms_{index}"
            found.append(layers.LayerNormalization(epsilon=gpvit.LOCAL_EPS, name=name)(x))
    return found


def _gpvit_block(config: GPViTConfig, index: int, rate: float) -> keras.layers.Layer:
    groups, name = dict(config.group_tokens).get(index), f"blocks_{index}"
    if groups is None:
        return gpvit.LocalBlock(config.width, config.num_heads, config.stripe, config.mlp_ratio, rate, name=name)
    return gpvit.GroupBlock(config.width, config.num_group_heads, groups, config.mlp_ratio, rate, name=name)


def _drop_path_rates(last: float, blocks: int) -> list[float]:
    """Rates growing linearly from 0 to `last` over all blocks."""
    return [last * block / max(1, blocks - 1) for block in range(blocks)]

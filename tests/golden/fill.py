"""Deterministic weights: every parameter is a function of its published name and shape (NumPy Philox, key crc32)."""

import zlib

import numpy as np

TABLES = ("relative_position_bias_table", "pos_embed", "group_token", "level_embed")
BOX_REGRESSION = ("rpn_reg", "retina_reg", "fc_reg")


def normal(key: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32 numbers of a Philox key."""
    return np.asarray(np.random.Generator(np.random.Philox(key=key)).standard_normal(shape, dtype=np.float32))


def value(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 value of the published entry `name`."""
    v = normal(zlib.crc32(name.encode()), shape)
    f = np.float32
    if name.endswith("running_var"):
        return f(1) + f(0.1) * np.abs(v)
    if name.endswith("running_mean"):
        return f(0.1) * v
    if name.rsplit(".", 1)[-1] in ("gamma1", "gamma2"):
        return f(0.5) + f(0.1) * v
    if any(table in name for table in TABLES):
        return f(0.5) * v
    if len(shape) <= 1:
        out = f(1) + f(0.1) * v if name.endswith("weight") else f(0.1) * v
    else:
        out = v * f(1.0 / np.sqrt(float(np.prod(shape[1:]))))
    return out * f(0.1) if any(part in name for part in BOX_REGRESSION) else out


def position_index(window: int) -> np.ndarray:
    """(N, N) int64: the entry of the bias table for each pair (query, key) of a window's tokens."""
    grid = np.stack(np.meshgrid(np.arange(window), np.arange(window), indexing="ij")).reshape(2, -1)
    delta = grid[:, :, None] - grid[:, None, :] + window - 1
    return (delta[0] * (2 * window - 1) + delta[1]).astype(np.int64)


def entry(name: str, shape: list[int], dtype: str) -> np.ndarray:
    """The value of any published entry, buffers of whole numbers included."""
    if name.endswith("relative_position_index"):
        return position_index(round(shape[0] ** 0.5))
    if name.endswith("num_batches_tracked"):
        return np.zeros((), np.int64)
    assert dtype == "float32", (name, dtype)
    return np.ascontiguousarray(value(name, tuple(shape)))

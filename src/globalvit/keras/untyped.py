"""Keras as a type checker should see it: it states no types, and those guessed from its defaults are too narrow."""

from typing import Any

import keras

ops: Any = keras.ops
layers: Any = keras.layers

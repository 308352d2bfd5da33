"""GC ViT and GPViT for Keras 3, on TensorFlow, JAX and PyTorch, with the same weights as the PyTorch package.

    from globalvit.keras import GCViTTiny, preprocess_input

    model = GCViTTiny()

PyTorch is not imported unless it is Keras' backend or a `.pth` file is opened.
"""

try:
    import keras as _keras  # noqa: F401 - tried first, for the message
except ModuleNotFoundError as error:
    raise ImportError(
        f"globalvit.keras needs Keras 3 and a backend ({error}): pip install 'globalvit[keras]', install TensorFlow, "
        f"JAX or PyTorch, and name the one you want in the environment variable KERAS_BACKEND"
    ) from error

from globalvit.keras.load import state_dict
from globalvit.keras.models import (
    GCViTBase,
    GCViTLarge,
    GCViTLarge384,
    GCViTLarge512,
    GCViTSmall,
    GCViTSmall2,
    GCViTTiny,
    GCViTTiny2,
    GCViTXTiny,
    GCViTXXTiny,
    GPViTL1,
    GPViTL2,
    GPViTL3,
    GPViTL4,
    backbone,
)
from globalvit.keras.preprocessing import decode_predictions, preprocess_input

__all__ = [
    "GCViTBase",
    "GCViTLarge",
    "GCViTLarge384",
    "GCViTLarge512",
    "GCViTSmall",
    "GCViTSmall2",
    "GCViTTiny",
    "GCViTTiny2",
    "GCViTXTiny",
    "GCViTXXTiny",
    "GPViTL1",
    "GPViTL2",
    "GPViTL3",
    "GPViTL4",
    "backbone",
    "decode_predictions",
    "preprocess_input",
    "state_dict",
]

"""GC ViT and GPViT for Keras 3, on TensorFlow, JAX and PyTorch, with the same weights as the PyTorch package.

    from globalvit.keras import GCViTTiny, preprocess_input

    model = GCViTTiny()

PyTorch is not imported unless it is Keras' backend or a `.pth` file is opened.
"""

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

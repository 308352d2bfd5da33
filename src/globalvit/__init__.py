"""GC ViT and GPViT: vision transformers with global context, from one permissive package.

Importing this package imports none of its heavy dependencies: names are looked up when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from globalvit.build import (
        create_backbone,
        create_model,
        list_models,
        load_weights,
        model_info,
        open_checkpoint,
        preprocessing,
        save_weights,
    )
    from globalvit.models.ops import set_kernels

__version__ = "0.1.0.dev0"
__all__ = [
    "__version__",
    "create_backbone",
    "create_model",
    "list_models",
    "load_weights",
    "model_info",
    "open_checkpoint",
    "preprocessing",
    "save_weights",
    "set_kernels",
]
# Names that other modules than `globalvit.build` hold.
_ELSEWHERE = {"set_kernels": "globalvit.models.ops"}


def __getattr__(name: str) -> Any:
    """Import a public function when it is first used."""
    if name in __all__:
        return getattr(import_module(_ELSEWHERE.get(name, "globalvit.build")), name)
    raise AttributeError(f"module 'globalvit' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)

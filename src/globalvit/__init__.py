"""GC ViT and GPViT: vision transformers with global context, from one permissive package.

Importing this package imports none of its heavy dependencies: names are looked up when first used.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import inspect

    from globalvit.api import explain, export, predict, train, validate
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
    from globalvit.train.callbacks import StopTraining
    from globalvit.train.run import Run

__version__ = "0.1.0.dev0"
__all__ = [
    "Run",
    "StopTraining",
    "__version__",
    "create_backbone",
    "create_model",
    "explain",
    "export",
    "list_models",
    "load_weights",
    "model_info",
    "open_checkpoint",
    "predict",
    "preprocessing",
    "save_weights",
    "set_kernels",
    "train",
    "validate",
]
# Names that other modules than `globalvit.build` hold.
_ELSEWHERE = {
    "set_kernels": "globalvit.models.ops",
    "StopTraining": "globalvit.train.callbacks",
    "Run": "globalvit.train.run",
    **dict.fromkeys(("train", "validate", "predict", "export", "explain"), "globalvit.api"),
}
# Packages that have the name of a function.
_CALLABLE = ("train", "export", "explain")


def __getattr__(name: str) -> Any:
    """Import a public function when it is first used."""
    if name in _CALLABLE:
        return import_module(f"globalvit.{name}")
    if name in __all__:
        return getattr(import_module(_ELSEWHERE.get(name, "globalvit.build")), name)
    raise AttributeError(f"module 'globalvit' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)


class _Callable(ModuleType):
    """A package that is also a function: `globalvit.train(…)` beside `globalvit.train.config`."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        return self._function(*args, **settings)

    @property
    def _function(self) -> Any:
        return getattr(import_module("globalvit.api"), self.__name__.rpartition(".")[2])

    @property
    def __signature__(self) -> "inspect.Signature":
        return import_module("inspect").signature(self._function)

    @property
    def __doc__(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._function.__doc__


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # Importing `globalvit.train` makes it an attribute of this package.
        if name in _CALLABLE and isinstance(value, ModuleType):
            value.__class__ = _Callable
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

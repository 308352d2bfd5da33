"""Families of networks and heads from outside the package, and loading those that installed packages bring.

An installed package brings some by an entry point of the group `globalvit.extensions` that names a module; importing
that module registers them. No torch here: names are listed without building anything.
"""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from threading import RLock
from typing import Any, Literal

GROUP = "globalvit.extensions"
NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """Networks of one kind, in sizes with names of their own.

    Attributes:
        name: of the family.
        variants: the name of each size → its config, a frozen dataclass with at least `image_size` (side in pixels),
            `in_channels` and `drop_path`.
        build: a config and the form (`classification`, `segmentation`, `detection`, `one_stage`) → a `Backbone` without
            `init_weights` called on it.
        stem: the parameter of the backbone whose second axis is the images' channels, such as `stem.weight`. Weight
            files of the family are recognized by it.
    """

    name: str
    variants: Mapping[str, Any]
    build: Callable[[Any, str], Any]
    stem: str


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadEntries:
    """How weight files of models with a head are recognized, by names of entries in the model's state dict.

    Attributes:
        mark: an entry that every model with this head has, and none with another head.
        outputs: the entry whose rows are the outputs for the classes.
        class_wise: a pattern for the beginnings of names that are left fresh for another number of classes.
        rows_to_classes: from the rows of `outputs` to the number of classes.
    """

    mark: str
    outputs: str
    class_wise: str
    rows_to_classes: Callable[[int], int] = int


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """What can be put on every backbone; `NAME_upernet` is the backbone NAME with the head `upernet`.

    Attributes:
        name: of the head.
        kind: the kind of task it makes.
        form: the form of the backbone it is put on.
        build: a `ModelSpec`, a `Backbone`, the preprocessing and the class names or None → a `Task` with fresh weights.
        entries: how its weight files are recognized.
    """

    name: str
    kind: Literal["classify", "segment", "detect"]
    form: Literal["classification", "segmentation", "detection", "one_stage"]
    build: Callable[[Any, Any, Any, tuple[str, ...] | None], Any]
    entries: HeadEntries


_families: dict[str, Family] = {}
_heads: dict[str, Head] = {}
_lock = RLock()
_is_loaded = False


def register_family(family: Family) -> None:
    """Make a family's networks known to every function and command of this process; one of the same name is replaced.

    Raises:
        ValueError: a name is taken, or is not made of lowercase letters, digits and underscores.
    """
    for name in (family.name, *family.variants):
        _check_name(name)
    _families[family.name] = family


def register_head(head: Head) -> None:
    """Make a head known to every function and command of this process; one of the same name is replaced.

    Raises:
        ValueError: its name is taken, or is not made of lowercase letters, digits and underscores.
    """
    _check_name(head.name)
    _heads[head.name] = head


def families() -> tuple[Family, ...]:
    """Registered families, those of installed packages among them."""
    load()
    return tuple(_families.values())


def heads() -> tuple[Head, ...]:
    """Registered heads, those of installed packages among them."""
    load()
    return tuple(_heads.values())


def family_of(backbone: str) -> Family | None:
    """The registered family of a backbone's name; None for the package's own networks."""
    return next((family for family in families() if backbone in family.variants), None)


def load() -> None:
    """Import the modules that installed packages name, once in a process; one that fails is a warning."""
    global _is_loaded
    with _lock:
        if _is_loaded:
            return
        # First, because the modules import this package.
        _is_loaded = True
        for found in entry_points(group=GROUP):
            try:
                found.load()
            except Exception as error:
                package = found.dist.name if found.dist else found.value
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                logger.warning(
                    "the extension %s of %s is left out: %s; update or remove it", found.name, package, reason
                )


def _check_name(name: str) -> None:
    from globalvit.models.variants import HEADS, VARIANTS

    if not NAME.fullmatch(name):
        raise ValueError(
            f"expected a name of lowercase letters, digits and underscores, such as toynet_small; got {name!r}"
        )
    if name in VARIANTS or name in HEADS:
        raise ValueError(f"the name {name!r} belongs to globalvit itself; choose another")

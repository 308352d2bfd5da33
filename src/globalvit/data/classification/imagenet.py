"""The thousand classes of ImageNet-1K in their usual order: WordNet ids, the names of the folders, and words for them.

The table was taken from timm's (Apache-2.0), which has it from WordNet; the first word of each class is kept, and the
three classes whose first word another class has are kept apart.
"""

from collections.abc import Iterable
from functools import cache
from importlib.resources import files


def imagenet_names() -> tuple[str, ...]:
    """The 1000 class names, such as `goldfish`, in the order of the published weights' outputs."""
    return tuple(_table().values())


def imagenet_synsets() -> tuple[str, ...]:
    """The 1000 WordNet ids, such as `n01443537`, in the same order, which is also the order of their code points."""
    return tuple(_table())


def readable(classes: Iterable[str]) -> tuple[str, ...]:
    """`classes` with the WordNet ids among them replaced by their names: `n01443537` → `goldfish`."""
    table = _table()
    return tuple(table.get(name, name) for name in classes)


@cache
def _table() -> dict[str, str]:
    text = (files("globalvit.data.classification") / "imagenet_classes.txt").read_text(encoding="utf-8")
    return dict(line.split(" ", 1) for line in text.splitlines())

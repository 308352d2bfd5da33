"""The thousand classes of ImageNet-1K in their usual order: WordNet ids, the names of the folders, and words for them.

The table was taken from timm's (Apache-2.0), which has it from WordNet; the first word of each class is kept, and the
three classes whose first word another class has are kept apart. Words for the other 20,841 classes of ImageNet-21K are
read from the table that the installed timm has.
"""

import os
import re
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

WORDNET_ID = re.compile(r"n\d{8}")
VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.\w+")


def imagenet_names() -> tuple[str, ...]:
    """The 1000 class names, such as `goldfish`, in the order of the published weights' outputs."""
    return tuple(_table().values())


def imagenet_synsets() -> tuple[str, ...]:
    """The 1000 WordNet ids, such as `n01443537`, in the same order, which is also the order of their code points."""
    return tuple(_table())


@cache
def imagenet_21k_synsets() -> tuple[str, ...]:
    """The 21,841 WordNet ids of ImageNet-21K as released in fall 2011, in the order of their code points.

    Raises:
        FileNotFoundError: the installed timm does not have them.
    """
    return tuple(timm_file("imagenet22k_synsets.txt").read_text(encoding="utf-8").split())


def readable(classes: Iterable[str]) -> tuple[str, ...]:
    """`classes` with WordNet ids replaced by names: `n01443537` → `goldfish`, `n02084071` → `dog (n02084071)`."""
    table = _table()
    return tuple(table.get(name) or _named(name) for name in classes)


def is_devkit(root: Path) -> bool:
    """Whether a folder holds ImageNet-1K's validation images as they were published: directly, not in class folders."""
    with os.scandir(root) as entries:
        return any(VALIDATION_NAME.fullmatch(entry.name) for entry in entries)


def timm_file(name: str) -> Path:
    """A file of timm's package data; timm itself is not imported.

    Raises:
        FileNotFoundError: this version of timm does not have it.
    """
    spec = find_spec("timm")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "data" / "_info" / name
    if not path.is_file():
        raise FileNotFoundError(f"this version of timm has no {name}, looked for in {path.parent}; update timm")
    return path


def _named(name: str) -> str:
    """`n02084071` → `dog (n02084071)`: several classes of ImageNet-21K have one word."""
    word = _words().get(name) if WORDNET_ID.fullmatch(name) else None
    return f"{word} ({name})" if word else name


@cache
def _words() -> dict[str, str]:
    try:
        lines = timm_file("imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    return {synset: words.split(", ")[0] for synset, words in (line.split("\t", 1) for line in lines)}


@cache
def _table() -> dict[str, str]:
    text = (files("globalvit.data.classification") / "imagenet_classes.txt").read_text(encoding="utf-8")
    return dict(line.split(" ", 1) for line in text.splitlines())

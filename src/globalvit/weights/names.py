"""State-dict names as a table of pairs, foreign and ours, read in both directions.

A template holds placeholders: `{n}` is any number, `{even}` and `{odd}` one that is even or odd, `{part}` is `weight`
or `bias`, `{norm}` any entry of a batch norm. Both templates of a pair hold the same placeholders in the same order.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Pair = tuple[str, str]
Rename = Callable[[str], str | None]

PLACEHOLDERS = {
    "n": r"(\d+)",
    "even": r"(\d*[02468])",
    "odd": r"(\d*[13579])",
    "part": "(weight|bias)",
    "norm": "(weight|bias|running_mean|running_var|num_batches_tracked)",
}
MOST_SHOWN = 10
LONGEST_SHOWN = 120


class RefusedError(ValueError):
    """A weight file or state dict that is not taken; the text is one sentence that names it and the remedy."""


def say_nonfinite(source: str, names: Iterable[str]) -> str:
    """Return what to say of weights that are NaN or infinite; the text lists at most ten and their number."""
    names = list(names)
    return f"{source} has NaN or infinity in {len(names)} of its entries: {listed(names)}; take an earlier checkpoint"


def renamer(pairs: Iterable[Pair]) -> Rename:
    """A function from a name of the left-hand templates to that of the right-hand ones; None for any other name."""
    rules = [(re.compile(_pattern(left)), re.sub(r"\{\w+\}", "{}", right)) for left, right in pairs]

    def rename(name: str) -> str | None:
        found = ((pattern.fullmatch(name), template) for pattern, template in rules)
        return next((template.format(*match.groups()) for match, template in found if match), None)

    return rename


def swap(pairs: Iterable[Pair]) -> list[Pair]:
    """The table read from right to left."""
    return [(right, left) for left, right in pairs]


def nest(left: str, right: str, pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs of a part, put under its name on either side."""
    return [(left + part_left, right + part_right) for part_left, part_right in pairs]


def rename_all(state: Mapping[str, Any], rename: Rename, form: str) -> dict[str, Any]:
    """Every entry under its new name.

    Raises:
        ValueError: some names are not in the table; the text gives at most ten and their number.
    """
    renamed = {name: rename(name) for name in state}
    unknown = [name for name, new in renamed.items() if new is None]
    if unknown:
        raise ValueError(f"{len(unknown)} of {len(state)} entries are not of {form}: {listed(unknown)}")
    return {new: state[name] for name, new in renamed.items() if new is not None}


def listed(names: Iterable[str]) -> str:
    """At most ten names, quoted; an ellipsis stands for the rest."""
    names = list(names)
    return ", ".join(map(shown, names[:MOST_SHOWN])) + (", …" if len(names) > MOST_SHOWN else "")


def shown(name: str) -> str:
    """A name, quoted, and cut where it is very long."""
    return repr(name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}…")


def shape(value: Any) -> tuple[int, ...]:
    """The shape of a tensor or array as a plain tuple."""
    return tuple(value.shape)


def _pattern(template: str) -> str:
    """The regular expression of a template, a group for each placeholder."""
    parts = re.split(r"\{(\w+)\}", template)
    return "".join(PLACEHOLDERS[part] if index % 2 else re.escape(part) for index, part in enumerate(parts))

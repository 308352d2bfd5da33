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
    """A weight file or state dict is refused; the text is one sentence with its name and the remedy."""


def say_nonfinite(source: str, names: Iterable[str]) -> str:
    """Return the message for weights that are NaN or infinite: their number and at most ten names."""
    names = list(names)
    return f"{source} has NaN or infinity in {len(names)} of its entries: {listed(names)}; take an earlier checkpoint"


def renamer(pairs: Iterable[Pair]) -> Rename:
    """Return a function from names of the left-hand templates to the right-hand ones; None for other names."""
    rules = [(re.compile(_pattern(left)), re.sub(r"\{\w+\}", "{}", right)) for left, right in pairs]

    def rename(name: str) -> str | None:
        found = ((pattern.fullmatch(name), template) for pattern, template in rules)
        return next((template.format(*match.groups()) for match, template in found if match), None)

    return rename


def swap(pairs: Iterable[Pair]) -> list[Pair]:
    """Return the table with its sides exchanged."""
    return [(right, left) for left, right in pairs]


def nest(left: str, right: str, pairs: Iterable[Pair]) -> list[Pair]:
    """Return the pairs of a part with its name as a prefix on both sides."""
    return [(left + part_left, right + part_right) for part_left, part_right in pairs]


def rename_all(state: Mapping[str, Any], rename: Rename, form: str) -> dict[str, Any]:
    """Rename all entries.

    Raises:
        ValueError: some names are not in the table; the text gives at most ten and their number.
    """
    renamed = {name: rename(name) for name in state}
    unknown = [name for name, new in renamed.items() if new is None]
    if unknown:
        raise ValueError(f"{len(unknown)} of {len(state)} entries are not of {form}: {listed(unknown)}")
    return {new: state[name] for name, new in renamed.items() if new is not None}


def listed(names: Iterable[str]) -> str:
    """Return at most ten names, quoted; an ellipsis replaces the rest."""
    names = list(names)
    return ", ".join(map(shown, names[:MOST_SHOWN])) + (", …" if len(names) > MOST_SHOWN else "")


def shown(name: str) -> str:
    """Return a name, quoted, and cut if it is very long."""
    return repr(name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}…")


def shape(value: Any) -> tuple[int, ...]:
    """Return the shape of a tensor or array as a plain tuple."""
    return tuple(value.shape)


def _pattern(template: str) -> str:
    """Return the regular expression of a template, with one group per placeholder."""
    parts = re.split(r"\{(\w+)\}", template)
    return "".join(PLACEHOLDERS[part] if index % 2 else re.escape(part) for index, part in enumerate(parts))

"""Names a user may have meant, for error messages."""

from collections.abc import Iterable
from difflib import get_close_matches


def suggest(name: str, choices: Iterable[str]) -> str:
    """Return `" Did you mean 'a', 'b'?"` with at most three of `choices` that resemble `name`, or an empty text."""
    near = get_close_matches(name, list(choices), n=3, cutoff=0.6)
    return f" Did you mean {', '.join(map(repr, near))}?" if near else ""

"""Dataclass fields as command-line flags: names, a readable type, and parsing of values."""

from dataclasses import MISSING, Field, dataclass, fields
from functools import cached_property
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from globalvit.closest import suggest

TRUE = {"true", "yes", "on", "1"}
FALSE = {"false", "no", "off", "0"}
MANY = 1_000_000


@dataclass(frozen=True)
class Flag:
    """A field of an options dataclass as a flag; `hint` is its resolved type."""

    field: Field[Any]
    hint: Any

    @property
    def name(self) -> str:
        """Name of the field."""
        return self.field.name

    @property
    def names(self) -> tuple[str, ...]:
        """Name and aliases, with underscores and without leading dashes."""
        return (self.name, *self.field.metadata.get("aliases", ()))

    @property
    def switch(self) -> tuple[str, str, str] | None:
        """Boolean flag that sets this one: its name, the value for true, and the value for false."""
        return self.field.metadata.get("switch")

    @property
    def help(self) -> str:
        """Line of the field on the help page."""
        return self.field.metadata.get("help", "")

    @property
    def group(self) -> str:
        """Heading that lists the flag on the help page."""
        return self.field.metadata.get("group", "options")

    @property
    def default(self) -> Any:
        """Default value, or `dataclasses.MISSING`."""
        return self.field.default_factory() if self.field.default_factory is not MISSING else self.field.default

    @property
    def is_required(self) -> bool:
        """Whether the field has no default and must be given."""
        return self.default is MISSING

    @cached_property
    def parts(self) -> tuple[Any, ...]:
        """Members of a union other than None, or the type itself."""
        union = get_origin(self.hint) in (Union, UnionType)
        return tuple(part for part in get_args(self.hint) if part is not NoneType) if union else (self.hint,)

    @property
    def allows_none(self) -> bool:
        """Whether `none` is a value."""
        return NoneType in get_args(self.hint)

    @property
    def takes_bool(self) -> bool:
        """Whether the flag may be given without a value, meaning true."""
        return bool in self.parts

    @property
    def is_bool(self) -> bool:
        """Whether true and false are the only values."""
        return self.parts == (bool,)

    @property
    def takes_many(self) -> bool:
        """Whether the value is a tuple or list."""
        return any(get_origin(part) in (tuple, list) for part in self.parts)

    @property
    def adds(self) -> bool:
        """Whether later values are appended to earlier ones instead of replacing them."""
        return self.field.metadata.get("adds", False)

    @property
    def most_numbers(self) -> int:
        """Maximum number of consecutive words that the value takes if they are numbers."""
        return max(_length(part) for part in self.parts)

    @property
    def takes_words(self) -> bool:
        """Whether the value takes all words up to the next flag."""
        return self.field.metadata.get("takes_words", False)

    @property
    def expected(self) -> str:
        """Readable type, for error messages."""
        words = [_in_words(part) for part in self.parts]
        return " or ".join([*words, "none"] if self.allows_none else words)

    @property
    def metavar(self) -> str:
        """Placeholder for the value on the help page."""
        return self.field.metadata.get("metavar") or _metavar(self.parts[0])

    def label(self, positional: Any = ()) -> str:
        """Name as the user types it: `--batch-size`, or the placeholder of a positional value."""
        return self.metavar if self.name in positional else f"--{self.name.replace('_', '-')}"


def flags_of(options: type) -> list[Flag]:
    """Return the dataclass fields that the constructor takes, as flags."""
    hints = get_type_hints(options)
    return [Flag(field, hints[field.name]) for field in fields(options) if field.init]


def read_value(flag: Flag, text: str) -> Any:
    """Parse `text` as the flag's type.

    Raises:
        ValueError: `text` is not of that type; the message says what was expected.
    """
    word = text.strip().lower()
    if flag.allows_none and word in ("none", "null"):
        return None
    if flag.takes_bool and (flag.is_bool or word in TRUE | FALSE):
        return _read_bool(flag, word)
    candidates = [text, f"[{text}]"] if flag.takes_many else [text]
    for candidate in candidates:
        try:
            # Without None, since YAML parses any text that starts with # as None.
            return _convert(Union[flag.parts], candidate)  # noqa: UP007 (the members are known only here)
        except TypeError:
            continue
    near = suggest(text, flag_choices(flag))
    raise ValueError(f"expected {flag.expected}{'.' if near else ''}{near}")


def flag_choices(flag: Flag) -> list[str]:
    """Return the values that a flag of literal type accepts."""
    return [str(choice) for part in flag.parts if get_origin(part) is Literal for choice in get_args(part)]


def _read_bool(flag: Flag, word: str) -> bool:
    if word not in TRUE | FALSE:
        raise ValueError(f"expected {flag.expected}")
    return word in TRUE


def _convert(hint: Any, text: str) -> Any:
    """Parse `text` as a value of type `hint` with jsonargparse, using a parser of one flag.

    Raises:
        TypeError: `text` is not of that type.
    """
    # Imported here: a help page parses no values, and this import would double its time.
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        return parser.parse_args([f"--value={text}"]).value
    except ArgumentError as error:
        raise TypeError(str(error)) from error


def _length(part: Any) -> int:
    if get_origin(part) not in (tuple, list):
        return 1
    return MANY if get_origin(part) is list or Ellipsis in get_args(part) else len(get_args(part))


WORDS: dict[Any, tuple[str, str, str]] = {
    int: ("a whole number", "whole numbers", "N"),
    float: ("a number", "numbers", "X"),
    bool: ("true or false", "true or false", "BOOL"),
    str: ("text", "texts", "TEXT"),
    Path: ("a path", "paths", "PATH"),
}


def _in_words(part: Any) -> str:
    if get_origin(part) is Literal:
        return f"one of {', '.join(map(str, get_args(part)))}"
    if get_origin(part) not in (tuple, list):
        return WORDS[part][0]
    plural = WORDS[get_args(part)[0]][1]
    return f"{plural} separated by commas" if _length(part) == MANY else f"{_length(part)} {plural}"


def _metavar(part: Any) -> str:
    if get_origin(part) is Literal:
        return "|".join(map(str, get_args(part)))
    if get_origin(part) not in (tuple, list):
        return WORDS[part][2]
    word = WORDS[get_args(part)[0]][2]
    return f"{word},..." if _length(part) == MANY else ",".join([word] * _length(part))

"""Command-line options from typed dataclasses, with dashes or underscores, bare booleans, and one-line errors.

A field is a flag: `batch_size: int = field(default=64, metadata={"help": "images per step"})` is `--batch-size 64`.
Its metadata may hold `help`, `metavar` (placeholder of the value), `group` (heading on the help page), `aliases`
(other names of the flag), `adds` (a repeated flag appends its values) and `takes_words` (the value is all words up to
the next flag). Values are parsed by jsonargparse according to the field's type.
"""

import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from globalvit.cli.flags import FALSE, TRUE, Flag, flags_of, read_value
from globalvit.cli.helppage import commands_page, options_page
from globalvit.closest import USE_DDP, name_here, suggest

Options = TypeVar("Options")

# Old launchers add this flag to the command; the environment has the same information.
IGNORED = ("local_rank",)
# Options of similar tools, and what to use here instead.
_METRIC = "the model's task decides what is measured: top-1, mIoU, or box and mask AP; leave it out"
ELSEWHERE = {
    **dict.fromkeys(("eval", "metrics", "metric"), _METRIC),
    "launcher": "start the command with torchrun instead, and leave it out",
    "cfg_options": "give the settings as flags, or in a YAML file with --config",
    "fsdp": USE_DDP,
    "show_dir": "use globalvit predict IMAGES --draw --output DIR to draw predictions",
}
SWITCH_WORDS = ("true", "false", "yes", "no", "on", "off")


class UsageError(Exception):
    """Invalid command line; the message is one line for the user, and the exit status is 2."""


def parse(
    options: type[Options], argv: Sequence[str], prog: str, description: str, positional: Sequence[str] = ()
) -> Options:
    """Parse `argv` into an instance of the dataclass `options`.

    Args:
        options: a dataclass whose fields are the flags.
        argv: the words after the command's name.
        prog: the command as typed, such as `globalvit validate`.
        description: what the command does, shown at the top of its help page.
        positional: fields filled by words without a flag, in this order; a tuple field takes all remaining words.

    Raises:
        UsageError: an unknown flag, a value of the wrong type, an extra word, or a missing flag.
        SystemExit: `--help` was given; the page was printed.
    """
    given = parse_flags(options, argv, prog, description, positional)
    absent = [flag.label(positional) for flag in flags_of(options) if flag.is_required and flag.name not in given]
    if absent:
        raise UsageError(f"{prog} requires {', '.join(absent)}; see {prog} --help")
    try:
        return options(**given)
    except ValueError as error:
        raise UsageError(str(error)) from error


def parse_flags(
    options: type, argv: Sequence[str], prog: str, description: str, positional: Sequence[str] = ()
) -> dict[str, Any]:
    """Parse `argv` as `parse` does, but return only the given values by field name, without defaults."""
    flags = flags_of(options)
    if wants_help(argv):
        show_help(options, prog, description, positional)
    named = [flag for flag in flags if flag.name not in positional]
    reader = _Reader(named, prog)
    by_name = {flag.name: flag for flag in flags}
    given: dict[str, Any] = {}
    for name, value in reader.read(argv):
        is_more = name in given and by_name[name].adds
        given[name] = (*given[name], *value) if is_more else value
    given |= _place_words([by_name[name] for name in positional], reader.words, prog)
    return given


def show_help(
    options: type,
    prog: str,
    description: str,
    positional: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> NoReturn:
    """Print the help page of a command and exit; `defaults` by field name replace those of the dataclass."""
    sys.stdout.write(options_page(flags_of(options), positional, prog, description, defaults))
    raise SystemExit(0)


def choose(commands: dict[str, str], argv: Sequence[str], prog: str, description: str) -> tuple[str, list[str]]:
    """Take the first word of `argv` as one of `commands` (name → summary); return it and the words after it.

    Raises:
        UsageError: the command is missing or unknown.
        SystemExit: `--help` was given; the page was printed.
    """
    word = argv[0] if argv else ""
    if word in ("-h", "--help"):
        sys.stdout.write(commands_page(commands, prog, description))
        raise SystemExit(0)
    if word not in commands:
        came = (
            f"unknown command '{word}' of {prog}.{suggest(word, commands)}" if word else f"{prog} requires a command."
        )
        raise UsageError(f"{came} Known: {', '.join(commands)}")
    return word, list(argv[1:])


def wants_help(argv: Sequence[str]) -> bool:
    """Return whether `-h` or `--help` occurs before a lone `--`."""
    words = list(argv)
    before = words[: words.index("--")] if "--" in words else words
    return "-h" in before or "--help" in before


class _Reader:
    """Splitter of a command line into (field, value) pairs and positional words."""

    def __init__(self, flags: Iterable[Flag], prog: str) -> None:
        self.prog = prog
        self.flags = {name: flag for flag in flags for name in flag.names}
        self.switches = {flag.switch[0]: flag for flag in self.flags.values() if flag.switch}
        self.words: list[str] = []
        self.queue: deque[str] = deque()

    def read(self, argv: Sequence[str]) -> Iterator[tuple[str, Any]]:
        """Yield the field name and value of each flag in order; a flag given twice is yielded twice."""
        self.queue = deque(argv)
        while self.queue:
            word = self.queue.popleft()
            if word == "--":
                self.words.extend(self.queue)
                return
            if not _is_flag(word):
                self.words.append(word)
                continue
            yield from self._flag(word)

    def _flag(self, word: str) -> Iterator[tuple[str, Any]]:
        typed, has_value, attached = word.partition("=")
        name = typed.removeprefix("--").replace("-", "_")
        if name in IGNORED and name not in self.flags:
            if not has_value:
                self._drop_word()
            return
        if name.removeprefix("no_") in self.switches:
            yield self._switch(name, typed, attached if has_value else None)
            return
        flag, text = self.flags.get(name), attached if has_value else None
        if flag is None and name.startswith("no_") and text is None:
            flag, text = self.flags.get(name.removeprefix("no_")), "false"
            flag = flag if flag and flag.takes_bool else None
        if flag is None:
            raise self._unknown(typed)
        text = self._value_text(flag, typed) if text is None else text
        yield flag.name, _read(flag, typed, text)

    def _switch(self, name: str, typed: str, text: str | None) -> tuple[str, Any]:
        """Parse a boolean flag that sets another one, such as `--amp` for `--precision`."""
        flag = self.switches[name.removeprefix("no_")]
        assert flag.switch is not None
        following = self.queue[0].lower() if self.queue else ""
        if text is None:
            text = self.queue.popleft() if following in SWITCH_WORDS and not name.startswith("no_") else "true"
        if text.lower() not in TRUE | FALSE:
            raise UsageError(f"{typed} {text!r} is not understood: expected true or false")
        is_on = (text.lower() in TRUE) != name.startswith("no_")
        return flag.name, flag.switch[1 if is_on else 2]

    def _value_text(self, flag: Flag, typed: str) -> str:
        """Return the value of a flag given without `=`: the next word or words, or `true` for a bare boolean."""
        following = self.queue[0] if self.queue and not _is_flag(self.queue[0]) else None
        if flag.takes_bool and (following is None or (flag.is_bool and following.lower() not in SWITCH_WORDS)):
            return "true"
        if following is None:
            raise UsageError(f"{typed} requires a value: {flag.expected}")
        taken = [self.queue.popleft()]
        while self.queue and len(taken) < flag.most_numbers and _is_number(taken[-1]) and _is_number(self.queue[0]):
            taken.append(self.queue.popleft())
        while flag.takes_words and self.queue and not _is_flag(self.queue[0]):
            taken.append(self.queue.popleft())
        return ",".join(taken)

    def _drop_word(self) -> None:
        if self.queue and not _is_flag(self.queue[0]):
            self.queue.popleft()

    def _unknown(self, typed: str) -> UsageError:
        name = typed.lstrip("-").replace("-", "_").lower()
        if name in ELSEWHERE:
            return UsageError(f"unknown option {typed}: {ELSEWHERE[name]}")
        meant = name_here(name, self.flags)
        if meant is not None:
            return UsageError(
                f"unknown option {typed}. Did you mean '--{meant.replace('_', '-')}'? See {self.prog} --help"
            )
        known = [f"--{name.replace('_', '-')}" for name in self.flags]
        near = suggest(f"--{typed.lstrip('-').replace('_', '-')}", known)
        return UsageError(f"unknown option {typed}.{near} See {self.prog} --help")


def _place_words(flags: Sequence[Flag], words: Sequence[str], prog: str) -> dict[str, Any]:
    """Assign the positional words to the positional fields, in order."""
    rest, placed = list(words), {}
    for flag in flags:
        if flag.takes_many and rest:
            placed[flag.name], rest = tuple(rest), []
        elif rest:
            placed[flag.name] = _read(flag, flag.metavar, rest.pop(0))
    if rest:
        raise UsageError(f"unexpected {rest[0]!r}: {prog} takes {_allowed(flags)}; see {prog} --help")
    return placed


def _read(flag: Flag, typed: str, text: str) -> Any:
    try:
        return read_value(flag, text)
    except ValueError as error:
        raise UsageError(f"{typed} {text!r} is not understood: {error}") from error


def _allowed(flags: Sequence[Flag]) -> str:
    return " ".join(flag.metavar for flag in flags) or "flags only"


def _is_flag(word: str) -> bool:
    return len(word) > 1 and word[0] == "-" and not _is_number(word)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True

"""Text of `--help`: examples, then one line per flag if it fits, defaults at the end, at most 100 columns."""

import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from typing import Any

from globalvit.cli.examples import EXAMPLES
from globalvit.cli.flags import Flag

INDENT = 26


# A default in words at the end of a help text, which a value replaces.
DEFAULT_IN_WORDS = re.compile(r" \(default: [^()]*\)$")


def options_page(
    flags: Sequence[Flag],
    positional: Sequence[str],
    prog: str,
    description: str,
    defaults: Mapping[str, Any] | None = None,
) -> str:
    """Return the help page of a command: usage, description, examples, positional values, then flags by heading.

    `defaults` replace those of the flags. What follows an empty line in `description` is the end of the page.
    """
    defaults = defaults or {}
    description, _, closing = description.partition("\n\n")
    values = [flag for name in positional for flag in flags if flag.name == name]
    named = [flag for flag in flags if flag.name not in positional]
    blocks = [f"usage: {' '.join([prog, *map(_usage_word, values), '[options]'])}", _paragraph(description)]
    blocks += _examples(prog)
    if values:
        blocks.append("\n".join(_entry(_usage_word(flag), _text(flag, flag.default)) for flag in values))
    for group in dict.fromkeys(flag.group for flag in named):
        entries = [
            _entry(_flag_words(flag), _text(flag, defaults.get(flag.name, flag.default)))
            for flag in named
            if flag.group == group
        ]
        blocks.append("\n".join([f"{group}:", *entries]))
    blocks[-1] += "\n" + _entry("-h, --help", "show this help")
    if closing:
        blocks.append(_paragraph(closing))
    return "\n\n".join(blocks) + "\n"


def commands_page(commands: dict[str, str], prog: str, description: str) -> str:
    """Return the help page of a command with subcommands (name → summary)."""
    usage = f"usage: {prog} COMMAND ..."
    table = "\n".join(["commands:", *(_entry(name, summary, 13) for name, summary in commands.items())])
    closing = f"Use {prog} COMMAND --help for a command's options."
    return "\n\n".join([usage, _paragraph(description), *_examples(prog), table, closing]) + "\n"


def _examples(prog: str) -> list[str]:
    lines = EXAMPLES.get(prog.removeprefix("globalvit "), ())
    return ["\n  ".join(["examples:", *lines])] if lines else []


def _usage_word(flag: Flag) -> str:
    word = f"{flag.metavar}..." if flag.takes_many else flag.metavar
    return word if flag.is_required else f"[{word}]"


def _flag_words(flag: Flag) -> str:
    if flag.is_bool:
        return f"{flag.label()}, --no-{flag.label()[2:]}" if flag.default is True else flag.label()
    return f"{flag.label()} {f'[{flag.metavar}]' if flag.takes_bool else flag.metavar}"


def _text(flag: Flag, value: Any) -> str:
    default = _default(value)
    return f"{DEFAULT_IN_WORDS.sub('', flag.help)} (default: {default})".strip() if default else flag.help


def _default(value: Any) -> str:
    """Return the default as it would be typed; empty if there is none to show."""
    if value is MISSING or value is None or value is False or value in ("", ()):
        return ""
    if value is True:
        return "on"
    if isinstance(value, (tuple, list)):
        return ",".join(map(_default, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _entry(left: str, text: str, indent: int = INDENT) -> str:
    left = f"  {left}"
    lines = textwrap.wrap(text, max(_columns() - indent, 20)) or [""]
    first = f"{left:<{indent}}{lines.pop(0)}" if len(left) < indent - 1 else left
    return "\n".join([first.rstrip(), *(" " * indent + line for line in lines)])


def _paragraph(text: str) -> str:
    return "\n".join(textwrap.fill(line, _columns()) for line in text.strip().split("\n"))


def _columns() -> int:
    return min(shutil.get_terminal_size((100, 24)).columns, 100)

"""The command `globalvit`: run a subcommand, and print errors that the user can fix in one line.

Exit status: 0 success, 1 failure, 2 usage error, 130 interrupted by SIGINT (Ctrl-C), 143 by SIGTERM.
`GLOBALVIT_TRACEBACK=1` shows the traceback of an error.
"""

import io
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from globalvit import __version__
from globalvit.cli.options import UsageError, choose
from globalvit.console import start_logging
from globalvit.printable import printable

# Every command is a module of this package with `SUMMARY` and `run(argv, prog)`.
COMMANDS = (
    "train",
    "validate",
    "predict",
    "explain",
    "models",
    "convert",
    "export",
    "push",
    "data",
    "benchmark",
    "demo",
    "doctor",
)
DESCRIPTION = "Vision transformers with global context: train, fine-tune, evaluate and use them."
# Errors that the user can fix. Anything else is a bug and shows its traceback.
USER_ERRORS = (ValueError, OSError, FloatingPointError, MemoryError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `globalvit` with the given arguments and return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        # A name that cannot be encoded must not lose the output.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _run(words)
        sys.stdout.flush()
        return status
    except SystemExit as stop:
        return _status(stop)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        return _leave_quietly()
    except UsageError as error:
        return _fail(str(error), 2)
    except (*USER_ERRORS, ImportError) as error:
        if isinstance(error, ImportError) and _is_ours(error):
            raise
        return _fail(_one_line(error), 1)


def _run(words: list[str]) -> int:
    if words[:1] == ["--version"]:
        sys.stdout.write(f"globalvit {__version__}\n")
        return 0
    summaries: dict[str, str] = dict.fromkeys(COMMANDS, "")
    if words and words[0] in ("-h", "--help"):
        summaries = {name: _module(name).SUMMARY for name in COMMANDS}
    name, rest = choose(summaries, words, "globalvit", DESCRIPTION)
    start_logging()
    return _module(name).run(rest, f"globalvit {name}")


def _module(name: str) -> ModuleType:
    return import_module(f"globalvit.cli.{name}")


def _fail(text: str, status: int) -> int:
    if os.environ.get("GLOBALVIT_TRACEBACK") == "1":
        traceback.print_exc()
    sys.stderr.write(f"globalvit: {'' if status == 130 else 'error: '}{printable(text)}\n")
    return status


def _status(stop: SystemExit) -> int:
    if stop.code is None or isinstance(stop.code, int):
        return stop.code or 0
    return _fail(str(stop.code), 1)


def _leave_quietly() -> int:
    # The reader of our output is gone; without this, Python reports another error when it closes stdout.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + 13


def _is_ours(error: ImportError) -> bool:
    return (error.name or "").split(".")[0] == "globalvit"


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return printable(f"{error.strerror}: {error.filename}")
    return " ".join(str(error).split()) or type(error).__name__

"""The command `globalvit`: which command runs, what is printed when it fails, and the exit status."""

import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest

from globalvit import __version__
from globalvit.cli import main as cli


@pytest.fixture
def command(monkeypatch):
    """Put a function in the place of `globalvit models`."""

    def place(function):
        monkeypatch.setattr(cli, "_module", lambda name: SimpleNamespace(SUMMARY=name, run=function))

    return place


def failing(error):
    def run(argv, prog):
        raise error

    return run


def speaking(argv, prog):
    logging.getLogger("globalvit.anything").info("spoken")
    return 0


def test_a_command_gets_the_words_after_its_name_and_gives_the_status(command):
    seen = []

    def run(argv, prog):
        seen.append((argv, prog))
        return 1

    command(run)
    assert cli.main(["models", "gcvit_*", "--json", "x"]) == 1
    assert seen == [(["gcvit_*", "--json", "x"], "globalvit models")]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\nlines"), "globalvit: error: two lines\n"),
        (FileNotFoundError(2, "No such file or directory", "/x"), "globalvit: error: No such file or directory: /x\n"),
        (OSError("no network"), "globalvit: error: no network\n"),
        (FloatingPointError("the loss is nan"), "globalvit: error: the loss is nan\n"),
        (MemoryError("lower the batch"), "globalvit: error: lower the batch\n"),
        (MemoryError(), "globalvit: error: MemoryError\n"),
        (ImportError("pip install x", name="x"), "globalvit: error: pip install x\n"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_status_1(command, capsys, error, line):
    command(failing(error))
    assert cli.main(["models"]) == 1
    assert capsys.readouterr().err == line


def test_the_traceback_is_shown_when_asked_for(command, capsys, monkeypatch):
    monkeypatch.setenv("GLOBALVIT_TRACEBACK", "1")
    command(failing(ValueError("no")))
    assert cli.main(["models"]) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.endswith("globalvit: error: no\n")


@pytest.mark.parametrize("error", [KeyError("bug"), ImportError("bug", name="globalvit.nothing"), AssertionError()])
def test_a_bug_keeps_its_traceback(command, error):
    command(failing(error))
    with pytest.raises(type(error)):
        cli.main(["models"])


def test_an_interrupt_is_status_130(command, capsys):
    command(failing(KeyboardInterrupt()))
    assert cli.main(["models"]) == 130
    assert capsys.readouterr().err == "globalvit: interrupted\n"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["modls"], "globalvit: error: unknown command 'modls' of globalvit. Did you mean 'models'?"),
        ([], "globalvit: error: globalvit requires a command. Known: train, validate"),
        (["models", "--jsn", "x"], "globalvit: error: unknown option --jsn. Did you mean '--json', '--csv'?"),
    ],
)
def test_bad_use_is_one_line_and_status_2(words, text, capsys):
    assert cli.main(words) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(text)
    assert shown.count("\n") == 1


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"globalvit {__version__}\n"


def test_help_lists_every_command_with_its_summary(capsys):
    assert cli.main(["--help"]) == 0
    page = capsys.readouterr().out
    assert all(f"\n  {name:<11}" in page for name in cli.COMMANDS)


def test_the_log_is_shown_once_on_stderr(command, capsys):
    command(speaking)
    cli.main(["models"])
    cli.main(["models"])
    assert capsys.readouterr().err == "spoken\nspoken\n"


def test_a_reader_that_leaves_early_is_no_error():
    code = "import sys; sys.stdin.readline(); from globalvit.cli.main import main; sys.exit(main(['--version']))"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    child.stdout.close()
    child.stdin.write(b"\n")
    child.stdin.flush()
    errors = child.stderr.read()
    assert child.wait(60) == 141
    assert errors == b""
    child.stdin.close()
    child.stderr.close()

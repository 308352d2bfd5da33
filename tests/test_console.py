"""Log lines and progress bars: on a terminal, in a notebook, and in a program that configures logging."""

import io
import logging
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from globalvit.console import Progress, in_notebook, start_logging
from globalvit.train.progress import open_display

SCRIPT = """
import logging, sys
from globalvit.console import start_logging_by_default
if sys.argv[1] == "own":
    logging.basicConfig(level=logging.WARNING)
start_logging_by_default()
start_logging_by_default()
logging.getLogger("globalvit.x").info("a line")
"""


@pytest.fixture
def notebook(monkeypatch):
    """Makes this process look like a notebook's kernel; the content of every display and update is kept."""
    shown = []

    def display(content, *, raw, display_id):
        assert raw
        assert display_id
        shown.append(content)
        return SimpleNamespace(update=partial(display, display_id=True))

    kernel = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: kernel))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    return shown


def test_a_notebook_shows_bars(notebook):
    assert in_notebook()
    with Progress(2, "predicting <b>") as progress:
        progress.advance()
    assert [content["text/plain"] for content in notebook] == ["0/2 ", "1/2 predicting <b>"]
    assert "predicting &lt;b&gt;" in notebook[-1]["text/html"]
    with Progress(2, "hidden", is_shown=False) as progress:
        progress.advance()
    assert len(notebook) == 2


def test_a_training_in_a_notebook_moves_its_bar_now_and_then_and_at_the_end(notebook):
    with open_display(3, 0, torch.device("cpu"), is_main=True) as display:
        for step in (1, 2, 3):
            display.show(step, step / 3, 0.5, 100.0)
    texts = [content["text/plain"] for content in notebook]
    assert texts[1].startswith("1/3 epoch 0.3, loss 0.5000, 100 img/s, ")
    assert texts[-1].startswith("3/3 epoch 1.0")


@pytest.mark.usefixtures("notebook")
def test_the_log_of_a_notebook_is_not_shown_as_an_error(monkeypatch):
    logger = logging.getLogger("globalvit")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logger.level)
    streams = {name: io.StringIO() for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    start_logging()
    logger.info("two\nlines")
    assert (streams["stdout"].getvalue(), streams["stderr"].getvalue()) == ("two\\nlines\n", "")


def test_a_terminal_and_a_script_are_no_notebooks():
    assert not in_notebook()


@pytest.mark.parametrize(("log", "shown"), [("none", "a line\n"), ("own", "")])
def test_a_program_with_a_log_of_its_own_keeps_it(log, shown):
    done = subprocess.run([sys.executable, "-c", SCRIPT, log], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == shown

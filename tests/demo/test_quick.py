"""Training on the spot: how it goes on, ends, fails and is stopped. The training itself is played by a short script."""

import sys
import time

import pytest

from globalvit.cli.options import parse_flags
from globalvit.cli.train import TrainOptions
from globalvit.demo import quick
from globalvit.demo.quick import LESSONS, Training, command
from globalvit.train.config import load_config

GOES_ON = """
import json, pathlib, sys, time
run = pathlib.Path(sys.argv[1]); run.mkdir()
with open(run / "metrics.jsonl", "w") as file:
    file.write(json.dumps({"kind": "train", "step": 55, "loss": 0.5}) + "\\n" + '{"kind": "tr')
time.sleep(60)
"""
ENDS = """
import json, pathlib, sys
run = pathlib.Path(sys.argv[1]); run.mkdir()
(run / "summary.json").write_text(json.dumps({"top1": 96.1, "finished": True}))
"""
FAILS = "import sys; sys.exit('globalvit: error: out of memory')"


@pytest.fixture
def training(tmp_path, monkeypatch):
    """Starts the training, played by a script; stops it in the end."""
    made = Training(tmp_path, "cpu")

    def start(script):
        monkeypatch.setattr(quick, "command", lambda *asked: [sys.executable, "-c", script, str(asked[1])])
        made.begin("digits")
        return made

    yield start
    made.stop()


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_progress_is_read_while_it_goes_on_and_a_second_training_is_refused(training):
    made = training(GOES_ON)
    wait_until(lambda: made.progress().part > 0)
    state = made.progress()
    assert state.is_running
    assert state.part == pytest.approx(0.97 * 55 / LESSONS["digits"].steps)
    assert state.text.startswith(f"Read handwritten digits: step 55 of {LESSONS['digits'].steps}, loss 0.50")
    with pytest.raises(
        ValueError, match="a training is already running: Read handwritten digits; wait for it or stop it"
    ):
        made.begin("shapes")
    made.stop()
    assert not made.progress().is_running
    assert made.progress().made is None


def test_the_model_is_there_at_the_end(training):
    made = training(ENDS)
    wait_until(lambda: not made.is_running)
    state = made.progress()
    assert state.text == "Read handwritten digits: done. 96.1 % accuracy on held-out images"
    assert (state.made.checkpoint, state.made.data) == (made.run, "digits")


def test_what_went_wrong_is_said(training):
    made = training(FAILS)
    wait_until(lambda: not made.is_running)
    assert made.progress().text == "Read handwritten digits: training failed. out of memory"


def test_a_training_that_was_stopped_leaves_no_model(training):
    made = training(ENDS.replace("True", "False"))
    wait_until(lambda: not made.is_running)
    assert made.progress().text.startswith("Read handwritten digits: training failed.")
    assert made.progress().made is None


@pytest.mark.parametrize("name", list(LESSONS))
def test_lessons_are_commands_that_train_understands(name, tmp_path):
    words = command(LESSONS[name], tmp_path / "run-1", "cpu")
    assert words[1:4] == ["-m", "globalvit", "train"]
    given = parse_flags(TrainOptions, words[4:], "globalvit train", "")
    config = load_config(given.pop("config"), given)
    assert (config.steps, config.tag, config.data_dir) == (LESSONS[name].steps, "run-1", LESSONS[name].data)


@pytest.mark.slow
def test_the_digits_are_learned(tmp_path):
    made = Training(tmp_path, "cpu")
    made.begin("digits")
    deadline = time.monotonic() + 600
    while made.is_running and time.monotonic() < deadline:
        time.sleep(0.5)
    made.stop()
    assert float(made.progress().text.split("learned. ")[1].split(" %")[0]) > 90

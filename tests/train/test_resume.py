"""Runs that are killed, stopped or changed, and go on: bit for bit where nothing decides otherwise."""

import json
import logging
import os
import random
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from globalvit.train import evaluate as evaluation
from globalvit.train.checkpoint import Checkpoints
from globalvit.train.config import load_config
from globalvit.train.loop import Trainer, train
from globalvit.train.report import Reporter
from globalvit.train.session import keep_choices
from globalvit.weights.pointers import follow


@pytest.fixture
def same(metrics):
    """Asserts that two runs ended alike, bit for bit."""

    def check(one, other):
        for name in ("model.safetensors", "ema.safetensors"):
            first, second = (load_file(follow(folder / "checkpoints" / "last") / name) for folder in (one, other))
            assert first.keys() == second.keys()
            assert all(torch.equal(first[key], second[key]) for key in first), name
        assert metrics(one) == metrics(other)
        first, second = (json.loads((folder / "summary.json").read_text()) for folder in (one, other))
        assert first | {"seconds": 0} == second | {"seconds": 0}
        assert follow(one / "checkpoints/best").name == follow(other / "checkpoints/best").name

    return check


def wait_for(condition, process, seconds=90):
    """Wait until the condition holds; the process must not end before."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.finish()[1]
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def steps_written(folder):
    return len(list((folder / "checkpoints").glob("step-*")))


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


@pytest.mark.usefixtures("toy")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_killed_run_goes_on_bit_for_bit_with_another_number_of_workers(command, start, runs, rich, straight, same):
    process = start(*command(tag="killed", workers=1, **rich))
    saved = random.Random().randint(1, 3)
    wait_for(lambda: steps_written(runs / "killed") >= saved, process)
    process.kill()
    train(load_config(runs / "killed" / "config.yaml", {"resume": str(runs / "killed"), "workers": 2}))
    same(straight, runs / "killed")


@pytest.mark.usefixtures("toy")
def test_sigterm_saves_and_stops_and_the_run_goes_on(command, start, runs, rich, straight, same):
    process = start(*command(tag="stopped", workers=1, **rich | {"checkpoint_every": 0}))
    wait_for(lambda: (runs / "stopped" / "samples" / "train_batch.png").exists(), process)
    process.send_signal(signal.SIGTERM)
    status, output = process.finish(timeout=60)
    assert status == 128 + signal.SIGTERM, output
    assert "stopped by SIGTERM at step" in output
    assert f"go on with --resume {runs / 'stopped'}" in output
    assert json.loads((runs / "stopped" / "summary.json").read_text())["finished"] is False
    train(load_config(runs / "stopped" / "config.yaml", {"resume": str(runs / "stopped"), "workers": 0}))
    same(straight, runs / "stopped")


class Stop:
    """Sends the signal to this process when called the nth time."""

    def __init__(self, number, call):
        self.number, self.call = number, call

    def __get__(self, instance, owner=None):
        return lambda *args: self(instance, *args)

    def __call__(self, *args):
        self.call -= 1
        if self.call == 0:
            os.kill(os.getpid(), self.number)
        return self.plain(*args)


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(("number", "call"), [(signal.SIGTERM, 1), (signal.SIGINT, 5), (signal.SIGTERM, 6)])
def test_a_signal_at_any_step_loses_nothing(config, monkeypatch, rich, straight, same, number, call):
    stop = Stop(number, call)
    stop.plain = Trainer._step
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", stop)
        stopped = train(config(tag="stopped", **rich | {"checkpoint_every": 0}))
    state = json.loads((follow(stopped / "checkpoints" / "last") / "state.json").read_text())["state"]
    assert state["step"] == call
    train(load_config(stopped / "config.yaml", {"resume": str(stopped), "checkpoint_every": 2}))
    same(straight, stopped)


@pytest.mark.usefixtures("toy")
def test_a_signal_during_evaluation_gives_it_up_and_repeats_it(config, monkeypatch, runs, rich, straight, same):
    with monkeypatch.context() as patch:
        stop = Stop(signal.SIGTERM, 3)
        stop.plain = evaluation.to_device
        patch.setattr(evaluation, "to_device", lambda *args: stop(*args))
        stopped = train(config(tag="stopped", **rich))
    state = json.loads((follow(stopped / "checkpoints" / "last") / "state.json").read_text())["state"]
    assert (state["step"], state["evaluated"]) == (6, 0)
    train(load_config(stopped / "config.yaml", {"resume": str(stopped)}))
    same(straight, stopped)


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    "crash", [(Trainer, "_keep_best"), (Checkpoints, "mark_best"), (Reporter, "summarize")], ids=lambda crash: crash[1]
)
def test_a_crash_between_evaluation_and_its_traces_is_mended(config, monkeypatch, runs, rich, straight, same, crash):

    def fail(self, *args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*crash, fail)
        with pytest.raises(KeyboardInterrupt):
            train(config(tag="crashed", **rich))
    crashed = runs / "crashed"
    train(load_config(crashed / "config.yaml", {"resume": str(crashed)}))
    same(straight, crashed)


@pytest.mark.usefixtures("toy")
def test_going_back_to_an_earlier_checkpoint_repeats_what_followed(config, rich, straight, same):
    again = train(config(tag="again", checkpoint_hist=99, **rich))
    train(load_config(again / "config.yaml", {"resume": str(again / "checkpoints" / "step-8")}))
    same(straight, again)


@pytest.mark.usefixtures("toy")
def test_a_checkpoint_copied_elsewhere_begins_a_new_folder(config, rich, tmp_path):
    folder = train(config(**rich))
    moved = tmp_path / "moved"
    follow(folder / "checkpoints" / "best").rename(moved)
    resumed = train(config(resume=str(moved), tag="second", **rich))
    assert resumed.name == "second"
    assert (resumed / "summary.json").exists()


@pytest.mark.usefixtures("toy")
def test_precision_and_kernels_of_the_run_are_kept(config, monkeypatch):
    folder = train(config(epochs=1, kernels="torch"))
    written = load_config(folder / "config.yaml")
    assert (written.precision, written.kernels) == ("fp32", "torch")
    # On a machine where `auto` would be something else.
    resumed = config(epochs=1, resume=str(folder), precision="auto", kernels="auto")
    assert (keep_choices(resumed).precision, keep_choices(resumed).kernels) == ("fp32", "torch")
    with pytest.raises(
        ValueError, match=r"cannot resume with other settings \(precision fp32, now bf16\); leave those"
    ):
        train(config(epochs=1, resume=str(folder), precision="bf16"))


@pytest.mark.usefixtures("toy")
def test_a_run_with_kernels_that_are_not_here_is_refused_until_others_are_asked_for(config, monkeypatch):
    folder = train(config(epochs=1))
    assert load_config(folder / "config.yaml").kernels == "c"
    for module in ("train.session", "models.ops"):
        monkeypatch.setattr(f"globalvit.{module}.unavailable", lambda _: "there is no C compiler")
    words = (
        "the run was trained with kernels=c, which cannot be used here: there is no C compiler; --kernels torch resumes"
    )
    with pytest.raises(ValueError, match=words):
        train(config(epochs=1, resume=str(folder)))
    assert train(config(epochs=1, resume=str(folder), kernels="torch")) == folder


@pytest.mark.usefixtures("toy")
def test_a_finished_run_that_is_resumed_stays_as_it_is(config, metrics):
    folder = train(config(epochs=1))
    before = metrics(folder)
    assert train(load_config(folder / "config.yaml", {"resume": str(folder)})) == folder
    assert metrics(folder) == before


@pytest.mark.usefixtures("toy")
def test_other_settings_are_refused_by_name(config):
    folder = train(config(epochs=1))
    with pytest.raises(
        ValueError, match=r"cannot resume with other settings \(opt adamw, now sgd; smoothing 0.1, now 0\.0"
    ):
        train(load_config(folder / "config.yaml", {"resume": str(folder), "opt": "sgd", "smoothing": 0.0}))


@pytest.mark.usefixtures("toy")
def test_a_full_disk_stops_the_run_and_the_earlier_checkpoint_serves(config, monkeypatch, runs, rich, straight, same):
    plain, calls = torch.save, []

    def save(*args):
        calls.append(args)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        plain(*args)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        with pytest.raises(
            OSError, match=r"cannot save checkpoint .*step-6: No space left on device; .*step-4 is intact"
        ):
            train(config(tag="full", **rich))
    full = runs / "full"
    train(load_config(full / "config.yaml", {"resume": str(full)}))
    same(straight, full)


@pytest.mark.usefixtures("toy")
def test_resuming_says_where(config, caplog):
    folder = train(config(epochs=2, early_stop=1, lr=1e-30, warmup_lr=0.0, min_lr=0.0))
    with caplog.at_level(logging.INFO):
        train(load_config(folder / "config.yaml", {"resume": str(folder)}))
    assert "resumed at step 12, epoch 2.00" in caplog.text


@pytest.mark.slow
@pytest.mark.usefixtures("toy")
def test_a_scheduler_that_restarts_one_command_until_it_exits_with_0(command, start, runs, rich, straight, same):
    words = command(tag="job", workers=1, resume="auto", lock_timeout=60.0, **rich)
    chance, statuses = random.Random(), []
    while 0 not in statuses:
        process = start(*words)
        if len(statuses) < 4:
            wait_for(lambda: (runs / "job" / ".run.owner.json").exists(), process)
            time.sleep(chance.uniform(0.5, 4))
            if process.poll() is None:
                process.send_signal(chance.choice([signal.SIGTERM, signal.SIGINT, signal.SIGKILL]))
        status, output = process.finish(timeout=120)
        assert status in (0, 130, 143, -signal.SIGKILL), output
        statuses.append(status)
    same(straight, runs / "job")


@pytest.mark.slow
def test_a_second_process_in_a_run_folder_is_refused(command, start, runs):
    words = command(tag="job", resume="auto", lock_timeout=0.5, epochs=500)
    first = start(*words)
    wait_for(lambda: steps_written(runs / "job"), first)
    status, output = start(*words).finish(timeout=60)
    assert status == 1, output
    assert f"is in use by process {first.process.pid} on " in output.splitlines()[-1]
    first.send_signal(signal.SIGTERM)
    assert first.finish(timeout=60)[0] == 143

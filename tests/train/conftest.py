"""A tiny variant, a small learnable set of images, and ways to train on them here or in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import toy as toy_script
from PIL import Image
from processes import Process, group_of

from globalvit import atomic
from globalvit.models.variants import VARIANTS
from globalvit.train import plots

SAVE_FIGURE = plots._save
COLORS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (210, 40, 50)}
TRAIN_EACH, VAL_EACH = 9, 3


def write_images(root, split, each, extra=0):
    """Noisy images of one color a class; the first class has `extra` more."""
    random = np.random.default_rng(len(split))
    for number, (name, color) in enumerate(COLORS.items()):
        folder = root / split / name
        folder.mkdir(parents=True)
        for index in range(each + (extra if number == 0 else 0)):
            noise = random.normal(0, 50, (32, 32, 3))
            Image.fromarray(np.clip(noise + color, 0, 255).astype(np.uint8)).save(folder / f"{index}.png")


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """27 images to train on and 11 to evaluate on, which no two processes share evenly, of three classes."""
    root = tmp_path_factory.mktemp("images")
    write_images(root, "train", TRAIN_EACH)
    write_images(root, "val", VAL_EACH, extra=2)
    return root


@pytest.fixture
def toy(monkeypatch):
    """Makes the smallest variant of each family a tiny network in this process, with narrow heads."""
    for name, network in toy_script.TOYS.items():
        monkeypatch.setitem(VARIANTS, name, network)
    for change in toy_script.narrow():
        monkeypatch.setattr(*change)


@pytest.fixture
def as_elsewhere(toy, monkeypatch):
    """Makes runs in this process what they are in processes of their own."""
    for change in toy_script.changes():
        monkeypatch.setattr(*change)


@pytest.fixture(autouse=True)
def _quick_plots(monkeypatch):
    """Curves are made but not rendered, which takes longer than such a run trains; `rendered` undoes it."""
    monkeypatch.setattr("globalvit.train.plots._save", lambda _, path: atomic.write_text(path, ""))


@pytest.fixture
def rendered(monkeypatch):
    """Curves become images."""
    monkeypatch.setattr("globalvit.train.plots._save", SAVE_FIGURE)


@pytest.fixture
def settings(images, tmp_path):
    """Settings of a short run as flags; keyword arguments replace some."""
    return lambda **changes: short_run(images, tmp_path / "runs") | changes


def short_run(images, output):
    return {
        "data_dir": str(images),
        "img_size": 32,
        "batch_size": 4,
        "epochs": 2,
        "warmup_epochs": 0.5,
        "lr": 1e-3,
        "workers": 0,
        "device": "cpu",
        # The same on every machine.
        "precision": "fp32",
        "output": str(output),
        "tag": "run",
        "log_interval": 1,
    }


# A run with everything on that has a state to lose.
RICH = {
    "epochs": 2,
    "checkpoint_every": 2,
    "model_ema": True,
    "model_ema_warmup": True,
    "mixup": 0.4,
    "reprob": 0.3,
    "aa": "rand-m5",
    "log_interval": 4,
    "progressive": (32, 48),
}


@pytest.fixture(scope="session")
def rich():
    """Settings of a run with everything on that has a state to lose."""
    return RICH


@pytest.fixture(scope="session")
def straight(images, tmp_path_factory):
    """The folder of the rich run, which nothing interrupted."""
    from globalvit.train.fields import TrainConfig
    from globalvit.train.loop import train

    settings = short_run(images, tmp_path_factory.mktemp("straight")) | RICH
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.setitem(VARIANTS, "gcvit_xxtiny", toy_script.TOYS["gcvit_xxtiny"])
        return train(TrainConfig(**settings))


@pytest.fixture
def config(settings):
    """The config of a short run; keyword arguments replace settings."""
    from globalvit.train.fields import TrainConfig

    return lambda **changes: TrainConfig(**settings(**changes))


@pytest.fixture
def command(settings, tmp_path):
    """The words of `globalvit train` for a short run in a process of its own."""

    def make(**changes):
        recipe = tmp_path / "short.yaml"
        recipe.write_text("epochs: 2\nwarmup_epochs: 0.5\n")
        flags = [f"--{key.replace('_', '-')}={_text(value)}" for key, value in settings(**changes).items()]
        return [toy_script.__file__, "train", f"--config={recipe}", *flags]

    return make


@pytest.fixture(scope="session")
def _server():
    """Starts the server that processes are forked from before a test has changed the environment."""
    from multiprocessing.forkserver import ensure_running

    ensure_running()


@pytest.fixture
def start(_server, tmp_path):
    """Start a script with its words in a process of its own; whatever still runs at the end of the test is killed."""
    started = []

    def run(*words, **environment):
        started.append(Process(words, tmp_path / f"output-{len(started)}.txt", environment))
        return started[-1]

    yield run
    for process in started:
        process.kill()


@pytest.fixture
def run_pair(start):
    """Run a script with its words as two processes of one group to their end, within two minutes."""

    def run(*words):
        store, environments = group_of(2)
        processes = [start(*words, **environment) for environment in environments]
        for process in processes:
            status, output = process.finish()
            assert status == 0, output
        del store

    return run


@pytest.fixture
def launch():
    """Start torchrun with the given words on two processes; what still runs at the end of the test is ended."""
    started = []

    def run(*words):
        # torchrun's own port is free on this machine, whatever other tests do.
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, **pipes, env={**os.environ, "OMP_NUM_THREADS": "1"}))
        return started[-1]

    yield run
    for process in started:
        # Killed it could not end its own.
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture
def metrics():
    """The records of a run without what differs from run to run: time, speed, memory."""

    def read(folder, kind=None):
        records = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
        chosen = [record for record in records if kind in (None, record["kind"])]
        return [{k: v for k, v in record.items() if k not in ("time", "speed", "memory")} for record in chosen]

    return read


def _text(value):
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)

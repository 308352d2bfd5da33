"""A tiny variant, a small learnable set of pictures, and ways to train on them here or in processes of their own."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from globalvit import atomic
from globalvit.models.variants import VARIANTS
from globalvit.train import plots

SAVE_FIGURE = plots._save
TOY_SCRIPT = Path(__file__).with_name("toy.py")
COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (210, 40, 50)}
TRAIN_EACH, VAL_EACH = 9, 3


def write_pictures(root, split, each, extra=0):
    """Noisy pictures of one colour a class; the first class has `extra` more."""
    random = np.random.default_rng(len(split))
    for number, (name, colour) in enumerate(COLOURS.items()):
        folder = root / split / name
        folder.mkdir(parents=True)
        for index in range(each + (extra if number == 0 else 0)):
            noise = random.normal(0, 50, (32, 32, 3))
            Image.fromarray(np.clip(noise + colour, 0, 255).astype(np.uint8)).save(folder / f"{index}.png")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """27 pictures to train on and 11 to evaluate on, which no two processes share evenly, of three classes."""
    root = tmp_path_factory.mktemp("pictures")
    write_pictures(root, "train", TRAIN_EACH)
    write_pictures(root, "val", VAL_EACH, extra=2)
    return root


@pytest.fixture(scope="session")
def toy_script():
    """What processes of their own run: tiny networks, and what is replaced where processes are compared."""
    spec = importlib.util.spec_from_file_location("toy", TOY_SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def toy(monkeypatch, toy_script):
    """Makes the smallest variant of each family a tiny network in this process."""
    for name, network in toy_script.TOYS.items():
        monkeypatch.setitem(VARIANTS, name, network)


@pytest.fixture
def as_elsewhere(toy, monkeypatch, toy_script):
    """Makes runs in this process what they are in processes of their own."""
    for change in toy_script.changes():
        monkeypatch.setattr(*change)


@pytest.fixture(autouse=True)
def _quick_plots(monkeypatch):
    """Curves are made but not rendered, which takes longer than such a run trains; `rendered` undoes it."""
    monkeypatch.setattr("globalvit.train.plots._save", lambda _, path: atomic.write_text(path, ""))


@pytest.fixture
def rendered(monkeypatch):
    """Curves become pictures."""
    monkeypatch.setattr("globalvit.train.plots._save", SAVE_FIGURE)


@pytest.fixture
def settings(pictures, tmp_path):
    """Settings of a short run as flags; keyword arguments replace some."""
    return lambda **changes: short_run(pictures, tmp_path / "runs") | changes


def short_run(pictures, output):
    return {
        "data_dir": str(pictures),
        "img_size": 32,
        "batch_size": 4,
        "epochs": 2,
        "warmup_epochs": 0.5,
        "lr": 1e-3,
        "workers": 0,
        "device": "cpu",
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
def straight(pictures, toy_script, tmp_path_factory):
    """The folder of the rich run, which nothing interrupted."""
    from globalvit.train.fields import TrainConfig
    from globalvit.train.loop import train

    settings = short_run(pictures, tmp_path_factory.mktemp("straight")) | RICH
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
        return [str(TOY_SCRIPT), "train", f"--config={recipe}", *flags]

    return make


@pytest.fixture
def start():
    """Start Python with the given words; whatever still runs at the end of the test is killed."""
    started = []

    def run(*words, **environment):
        process = subprocess.Popen(
            [sys.executable, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait(timeout=60)
        process.stdout.close()


@pytest.fixture
def finish(start):
    """Run Python with the given words to its end, within two minutes; returns what it printed."""

    def run(*words, status=0, **environment):
        process = start(*words, **environment)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == status, output
        return output

    return run


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

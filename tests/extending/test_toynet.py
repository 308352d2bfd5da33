"""A package from outside, installed by pip, brings a family of networks, a head and a data format to every command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOYNET = Path(__file__).parent / "toynet"
RUN = """
import json, sys
from globalvit.cli.main import main
for words in json.load(sys.stdin):
    print("$", *words, flush=True)
    status = main(words)
    assert status == 0, (words, status)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that pip installed the package into."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", folder, TOYNET], check=True, capture_output=True, cwd=folder)
    return folder


@pytest.fixture
def commands(installed, tmp_path):
    """Runs commands one after another in a process where the package is installed; gives what they print."""

    def run(*commands):
        done = subprocess.run(
            [sys.executable, "-c", RUN],
            input=json.dumps([command.split() for command in commands]),
            env=os.environ | {"PYTHONPATH": str(installed)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


TRAIN = "--weights none --steps 2 --batch-size 4 --workers 0 --device cpu --precision fp32 --img-size 64"
EVALUATE = "--device cpu --workers 0"


def test_a_classifier_of_the_new_family_passes_through_every_command(commands, tmp_path):
    printed = commands(
        "models toynet*",
        "data shapes shapes --train 8 --val 4 --size 64",
        f"train --model toynet_small --data-dir shapes/classify --tag run {TRAIN}",
        "train --resume runs/run --steps 4",
        f"validate --checkpoint runs/run {EVALUATE}",
        f"predict --checkpoint runs/run shapes/images/val {EVALUATE}",
        "explain --checkpoint runs/run shapes/images/val/00000.png --kind all",
        "export --checkpoint runs/run --to onnx",
        "benchmark --models toynet_small --image-size 64 --repeats 1",
    )
    assert "toynet_small" in printed

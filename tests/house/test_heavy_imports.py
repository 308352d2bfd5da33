"""What must cost nothing to import, and help pages that come at once."""

import json
import os
import subprocess
import sys

import pytest

from globalvit.cli.main import COMMANDS

HEAVY = (
    "torch",
    "timm",
    "numpy",
    "matplotlib",
    "torchvision",
    "accelerate",
    "PIL",
    "tensorboard",
    "safetensors",
    "keras",
)
LIGHT = (
    "globalvit",
    "globalvit.closest",
    "globalvit.atomic",
    "globalvit.hardware",
    "globalvit.models.ablations",
    "globalvit.models.variants",
    "globalvit.data.classification.imagenet",
    "globalvit.weights.catalog",
    "globalvit.weights.gcvit_official",
    "globalvit.weights.openmmlab",
    "globalvit.weights.keras",
    "globalvit.weights.timm",
    "globalvit.train.config",
    "globalvit.train.callbacks",
    "globalvit.train.run",
    "globalvit.api",
    *(f"globalvit.jobs.{name}" for name in ("validate", "predict", "export", "explain")),
    *(f"globalvit.cli.{name}" for name in ("main", "options", *COMMANDS)),
)
DATA_PAGES = (
    ["data"],
    *(["data", *name.split()] for name in ("check", "preview", "lmdb", "lmdb build", "lmdb verify", "shapes")),
)
HELP_PAGES = ([], *([name] for name in COMMANDS if name != "data"), *DATA_PAGES)
IMPORT_EACH = """
import importlib, json, sys
heavy, light = json.loads(sys.argv[1])
for module in light:
    importlib.import_module(module)
    came = [name for name in heavy if name in sys.modules]
    assert not came, f"importing {module} imports {came}"
"""
HELP_EACH = """
import json, sys
from globalvit.cli.main import main
heavy, pages = json.loads(sys.argv[1])
for words in pages:
    assert main([*words, "--help"]) == 0, words
    came = [name for name in heavy if name in sys.modules]
    assert not came, f"globalvit {' '.join(words)} --help imports {came}"
"""


def run(code, *values):
    return subprocess.run(
        [sys.executable, "-c", code, json.dumps(values)], capture_output=True, text=True, timeout=60, check=False
    )


def test_light_modules_import_nothing_heavy():
    done = run(IMPORT_EACH, HEAVY, LIGHT)
    assert done.returncode == 0, done.stderr


def test_help_pages_import_nothing_heavy():
    done = run(HELP_EACH, HEAVY, HELP_PAGES)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: globalvit") == len(HELP_PAGES)


@pytest.mark.parametrize("words", [[], ["train"]])
def test_help_comes_in_under_half_a_second(words):
    command = [sys.executable, "-m", "globalvit", *words, "--help"]
    # The processor's time, the best of several, since other work may share the machine; -m stands in for the script.
    times = [timed(command) for _ in range(3)]
    assert 0 < min(times) < 0.5, times


def timed(command):
    before = os.times()
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system

"""A package from outside, installed by pip, brings a family of networks, a head and a data format to every command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

TOYNET = Path(__file__).parent / "toynet"
RUN = """
import json, sys
import globalvit as gv
from globalvit.cli.main import main

class StopAfterTwo:
    def on_step(self, step):
        if step.step == 2:
            raise gv.StopTraining

for words in json.load(sys.stdin):
    print("$", *words, flush=True)
    if words[0] == "stopped":
        pairs = (word.split("=") for word in words[1:])
        settings = {name: int(value) if value.isdigit() else value for name, value in pairs}
        run = gv.train(**settings, SETTINGS, callbacks=[StopAfterTwo()])
        assert run.last.name == "step-2", run.last
    else:
        assert main(words) == 0, words
"""
SETTINGS = {
    "weights": "none",
    "steps": 4,
    "batch_size": 4,
    "workers": 0,
    "device": "cpu",
    "precision": "fp32",
    "output": "runs",
    "tag": "run",
}
CPU = "--device cpu"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that pip installed the package into."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", folder, TOYNET], check=True, capture_output=True, cwd=folder)
    return folder


@pytest.fixture
def run(installed, tmp_path):
    """Runs commands one after another in a process where the package is installed; returns what they print."""

    def run(*commands):
        done = subprocess.run(
            [sys.executable, "-c", RUN.replace("SETTINGS", f"**{SETTINGS}")],
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


def test_a_new_family_classifies_in_every_command(run, tmp_path):
    printed = run(
        "models toynet*",
        "data shapes shapes --train 8 --val 4 --size 64",
        "stopped model=toynet_small data_dir=shapes/classify",
        "train --resume runs/run",
        f"validate --checkpoint runs/run {CPU}",
        f"predict --checkpoint runs/run shapes/images/val --csv answers.csv {CPU}",
        f"explain --checkpoint runs/run shapes/images/val/00000.png --kind all --output explained {CPU}",
        "export --checkpoint runs/run --output toynet.onnx",
        f"benchmark --model toynet_small --mode inference --batch-size 1 --compile eager,deployed --repeats 3 {CPU}",
        "models --complexity toynet_small --image-size 64",
    )
    assert "toynet_large" in printed
    assert (tmp_path / "runs/run/checkpoints/step-4").is_dir()
    assert len((tmp_path / "answers.csv").read_text().splitlines()) == 1 + 4 * 3
    shown = {path.name for path in (tmp_path / "explained").glob("**/*.png")}
    assert shown > {f"00000-{view}.png" for view in ("local-block-0", "rollout", "grad_cam-block-0")}, shown
    assert (tmp_path / "toynet.onnx").stat().st_size > 100_000


def test_a_new_head_segments_on_networks_old_and_new(run, tmp_path):
    run(
        "data shapes shapes --train 8 --val 4 --size 64",
        "stopped model=toynet_small_merge data_dir=./shapes short_side=64 long_side=96",
        "train --resume runs/run",
        f"predict --checkpoint runs/run shapes/images/val --output labels {CPU}",
        "export --checkpoint runs/run --output toynet.onnx",
        "models gcvit_tiny_merge --measure",
    )
    assert (tmp_path / "runs/run/checkpoints/step-4").is_dir()


def test_a_new_format_is_found_and_detected_in_by_a_new_family(run, tmp_path):
    (tmp_path / "boxes/images").mkdir(parents=True)
    for split, count in (("train", 4), ("val", 2)):
        lines = []
        for number in range(count):
            name = f"{split}{number}.png"
            Image.new("RGB", (64, 64), (20 * number, 80, 10 * count)).save(tmp_path / "boxes/images" / name)
            lines += [f"{name} 8 8 20 24 cat", f"{name} {30 + number} 30 12 20 dog"]
        (tmp_path / f"boxes/{split}.objects").write_text("\n".join(lines))
    printed = run(
        "data check --data-dir boxes",
        "stopped model=toynet_small_retinanet data_dir=boxes short_side=64 long_side=96",
        "train --resume runs/run",
        f"predict --checkpoint runs/run boxes/images {CPU}",
    )
    assert "object_lists" in printed
    assert (tmp_path / "runs/run/checkpoints/step-4").is_dir()

"""A marathon of kills: a run is killed by SIGKILL again and again, resumed each time, and must end as if it never was.

    python benchmarks/kill_resume.py [--kills 20] [--seconds 600] [--seed 0] [--real]

Times are drawn over the whole life of a process, from its start to its last plot.
Every part of the run has another number of workers. Run after run is trained until so many kills hit a process that
was alive, or the seconds are over. At the end of every run its model, moving average, optimizer, state, best checkpoint
and metrics must be equal bit for bit to those of an uninterrupted run; after every kill all checkpoints must be whole.
Exit status 1 if they are not, or if there were fewer kills than asked for. A tiny network is trained unless `--real`.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

from globalvit.train.integrity import verify
from globalvit.train.state import OPTIMIZER_FILE, read_state
from globalvit.weights.load import EMA_FILE, MODEL_FILE
from globalvit.weights.pointers import follow

RUN = [
    *("--device=cpu", "--precision=fp32", "--weights=none", "--img-size=32", "--batch-size=4", "--epochs=3"),
    *("--checkpoint-every=2", "--log-interval=5", "--warmup-epochs=1", "--lr=1e-3", "--model-ema", "--drop-path=0.2"),
    *("--mixup=0.5", "--cutmix=1.0", "--reprob=0.25", "--aa=rand-m9-mstd0.5-inc1"),
]
CLASSES = ("blue", "green", "red")
TRAIN_EACH, VAL_EACH = 14, 4
TOY = Path(__file__).parents[1] / "tests" / "train" / "toy.py"
# What differs from run to run.
VARYING = ("time", "speed", "memory", "seconds")
FREE = ("tag", "workers", "resume", "output")
SECONDS_A_RUN = 1800


def main() -> int:
    options = parse_options()
    chance = random.Random(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="kill-resume-"))
    write_images(folder / "data", random.Random(0))
    program = ["-m", "globalvit"] if options.real else [str(TOY)]
    begin = time.monotonic()
    assert start(program, folder, "whole", 0).wait(SECONDS_A_RUN) == 0, "the uninterrupted run failed"
    seconds = time.monotonic() - begin
    print(f"uninterrupted: {seconds:.0f} s", flush=True)
    end = time.monotonic() + options.seconds
    phases: Counter[str] = Counter()
    runs, failures = 0, []
    while phases.total() < options.kills and time.monotonic() < end and not failures:
        runs += 1
        name = f"killed-{runs}"
        before, begin = phases.total(), time.monotonic()
        failures += kill_often(program, folder, name, seconds, chance, options.kills, phases, end)
        if phases.total() == before:
            # The machine has become faster: kills drawn over the longer time would come too late.
            seconds = min(seconds, time.monotonic() - begin)
        failures += differences(folder / "whole", folder / name)
    print(f"{phases.total()} kills of {options.kills} in {runs} runs: {dict(phases)}")
    for failure in failures:
        print(failure)
    if not failures:
        print("equal bit for bit")
        shutil.rmtree(folder)
    return 1 if failures or phases.total() < options.kills else 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=600.0, help="no new kill after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real", action="store_true", help="the published network instead of a tiny one")
    return parser.parse_args()


def write_images(root: Path, chance: random.Random) -> None:
    for split, each in (("train", TRAIN_EACH), ("val", VAL_EACH)):
        for number, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for index in range(each):
                image = Image.frombytes("RGB", (32, 32), chance.randbytes(3 * 32 * 32))
                image.paste((200 * (number == 2), 200 * (number == 1), 200 * (number == 0)), (4, 4, 20, 24))
                image.save(root / split / name / f"{index}.png")


def start(program: list[str], folder: Path, tag: str, workers: int) -> subprocess.Popen[bytes]:
    """Begin a run or go on with it: one command for both, as a scheduler gives it."""
    flags = [
        *RUN,
        f"--data-dir={folder / 'data'}",
        f"--output={folder}",
        f"--tag={tag}",
        f"--workers={workers}",
        "--resume=auto",
        "--lock-timeout=60",
    ]
    log = (folder / f"{tag}.txt").open("ab")
    with log:
        return subprocess.Popen([sys.executable, *program, "train", *flags], stdout=log, stderr=log)


def kill_often(
    program: list[str],
    folder: Path,
    tag: str,
    seconds: float,
    chance: random.Random,
    kills: int,
    phases: Counter[str],
    end: float,
) -> list[str]:
    """Train one run to its end with kills on the way; returns what went wrong."""
    run = folder / tag
    while True:
        process = start(program, folder, tag, chance.randint(0, 2))
        is_spared = phases.total() >= kills or time.monotonic() > end
        try:
            status = process.wait(SECONDS_A_RUN if is_spared else chance.uniform(0.0, seconds))
        except subprocess.TimeoutExpired:
            phase = phase_of(run, tag)
            process.kill()
            process.wait()
            phases[phase] += 1
            print(f"{tag}, kill {phases.total()}: {phase}", flush=True)
            if broken := broken_checkpoints(run):
                return broken
            continue
        return (
            [] if status == 0 else [f"{tag} ended with status {status}: {(folder / f'{tag}.txt').read_text()[-2000:]}"]
        )


def phase_of(run: Path, tag: str) -> str:
    """What the process was about to do, by the files that exist."""
    if not (run / ".run.owner.json").exists():
        return "before the run folder was locked"
    if any(run.glob("checkpoints/.new-*")):
        return "saving"
    if not any(run.glob("checkpoints/step-*")):
        return "before the first checkpoint"
    said = (run.parent / f"{tag}.txt").read_text(errors="replace").strip().splitlines()
    return "training or evaluating" if said and said[-1].startswith(("resumed", "step", "epoch")) else "preparing"


def broken_checkpoints(run: Path) -> list[str]:
    """Every checkpoint that is there under its name must be whole at any moment."""
    failures = []
    for checkpoint in run.glob("checkpoints/step-*"):
        try:
            verify(checkpoint, MODEL_FILE, EMA_FILE, OPTIMIZER_FILE)
            read_state(checkpoint)
        except (OSError, ValueError) as error:
            failures.append(f"after a kill: {error}")
    return failures


def differences(one: Path, other: Path) -> list[str]:
    """What is not equal between two finished runs."""
    found = []
    for pointer in ("last", "best"):
        folders = [follow(run / "checkpoints" / pointer) for run in (one, other)]
        if folders[0].name != folders[1].name:
            found.append(f"{pointer} is {folders[1].name}, not {folders[0].name}")
            continue
        for name in (MODEL_FILE, EMA_FILE):
            first, second = (load_file(folder / name) for folder in folders)
            if not equal(first, second):
                found.append(f"{pointer}/{name} differs")
        if not equal(*(torch.load(folder / OPTIMIZER_FILE) for folder in folders)):
            found.append(f"{pointer}/{OPTIMIZER_FILE} differs")
        if not equal(*(plain_state(folder) for folder in folders)):
            found.append(f"{pointer}/state.json differs")
    for name in ("report.json", "classes.json", "data.json"):
        if (one / name).read_bytes() != (other / name).read_bytes():
            found.append(f"{name} differs")
    if records(one) != records(other):
        found.append("metrics.jsonl differs")
    leftovers = [str(path) for path in other.rglob(".*") if path.name != ".run.lock"]
    return [f"{other.name}: {text}" for text in [*found, *(f"{path} is left over" for path in leftovers)]]


def equal(one: object, other: object) -> bool:
    """Whether two nests of plain values and tensors are equal bit for bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def plain_state(folder: Path) -> dict[str, object]:
    content = json.loads((folder / "state.json").read_text())
    state = {key: value for key, value in content["state"].items() if key not in VARYING}
    return state | {key: value for key, value in content["config"].items() if key not in FREE}


def records(run: Path) -> list[dict[str, object]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in VARYING} for line in lines]


if __name__ == "__main__":
    sys.exit(main())

"""A marathon of kills: a run is killed by SIGKILL again and again, resumed each time, and must end as if it never was.

    python benchmarks/kill_resume.py [--kills 20] [--seed 0]

Every part of the run has another number of loader workers. Weights and moving average must be equal bit for bit to
those of an uninterrupted run, and so must metrics.jsonl but for time, speed and memory. Exit status 1 if they are not.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from globalvit.weights.pointers import follow

RUN = [
    *("--config=digits", "--device=cpu", "--epochs=3", "--checkpoint-every=5", "--log-interval=7", "--img-size=32"),
    *("--mixup=0.5", "--cutmix=1.0", "--reprob=0.25", "--aa=rand-m9-mstd0.5-inc1", "--precision=fp32"),
]
WEIGHTS = ("model.safetensors", "ema.safetensors")
VARYING = ("time", "speed", "memory")
SECONDS_A_RUN = 900


def main():
    options = parse_options()
    chance = random.Random(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="kill-resume-"))
    whole, killed = folder / "whole", folder / "killed"
    started = time.monotonic()
    start(*RUN, f"--output={folder}", "--tag=whole", "--workers=0").wait(SECONDS_A_RUN)
    seconds = time.monotonic() - started
    print(f"uninterrupted: {seconds:.0f} s")
    process = start(*RUN, f"--output={folder}", "--tag=killed", "--workers=1")
    for kill in range(options.kills):
        time.sleep(chance.uniform(0.2, 1.0) * seconds)
        if process.poll() is not None:
            print(f"done before kill {kill + 1}")
            break
        process.kill()
        process.wait()
        process = go_on(killed, chance.randint(0, 3), kill + 1, folder)
    assert process.wait(SECONDS_A_RUN) == 0, "the last part failed"
    equal = same_weights(whole, killed) and same_metrics(whole, killed)
    print("equal bit for bit" if equal else f"DIFFERENT: {folder}")
    if equal:
        shutil.rmtree(folder)
    return 0 if equal else 1


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def start(*flags):
    command = [sys.executable, "-m", "globalvit", "train", *flags]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def go_on(run, workers, kill, output):
    """Resume a killed run, or start it again where it was killed before its first checkpoint."""
    states = sorted((run / "checkpoints").glob("step-*/state.json"), key=lambda path: path.stat().st_mtime)
    if states:
        step = json.loads(states[-1].read_text())["state"]["step"]
        print(f"kill {kill}: resumed from step {step} with {workers} workers", flush=True)
        return start(f"--resume={run}", f"--workers={workers}")
    print(f"kill {kill}: before the first checkpoint", flush=True)
    shutil.rmtree(run, ignore_errors=True)
    return start(*RUN, f"--output={output}", "--tag=killed", f"--workers={workers}")


def same_weights(one, other):
    for name in WEIGHTS:
        first, second = (load_file(follow(run / "checkpoints" / "last") / name) for run in (one, other))
        if first.keys() != second.keys() or not all(torch.equal(first[key], second[key]) for key in first):
            print(f"{name} differs")
            return False
    return True


def same_metrics(one, other):
    first, second = (read_metrics(run) for run in (one, other))
    for number, (record, twin) in enumerate(zip(first, second, strict=False)):
        if record != twin:
            print(f"record {number} differs: {record} and {twin}")
            return False
    return len(first) == len(second)


def read_metrics(run):
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in record.items() if key not in VARYING} for record in records]


if __name__ == "__main__":
    sys.exit(main())

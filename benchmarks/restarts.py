"""Runs that schedulers end and start again, compared bit for bit with runs that nobody disturbed.

    python benchmarks/restarts.py [--times 3] [--seed 0]

Three schedulers, each as the page on training describes it:

- `torchrun --max-restarts`: one of two processes is killed with SIGKILL, `torchrun` starts both again;
- SLURM: the whole job of two processes gets SIGTERM, and the script requeues it as long as its status is not 0;
- Kubernetes: a pod of one process gets SIGTERM, ends with status 143, and is started again.

Each is disturbed `--times` times, at random moments of training. Exit status 1 if a run differs.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from kill_resume import RUN, SECONDS_A_RUN, TOY, differences, write_images

STEPS = "--steps=200"
PREEMPTED = 143


def main() -> int:
    """Run the three proofs and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3, help="how often each run is disturbed")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, folder = random.Random(options.seed), Path(tempfile.mkdtemp(prefix="restarts-"))
    write_images(folder / "data", random.Random(0))
    failures = []
    for name, processes, disturbed in (("torchrun", 2, killed), ("slurm", 2, requeued), ("pod", 1, requeued)):
        begin = time.monotonic()
        whole, run = f"{name}-whole", f"{name}-disturbed"
        assert start(folder, whole, processes).wait(SECONDS_A_RUN) == 0, (folder / f"{whole}.txt").read_text()
        count = disturbed(
            lambda run=run, n=processes, **more: start(folder, run, n, **more), folder / run, chance, options
        )
        found = differences(folder / whole, folder / run)
        verdict = "; ".join(found) or "equal bit for bit"
        print(f"{name}: disturbed {count} times, {verdict}, {time.monotonic() - begin:.0f} s", flush=True)
        failures += found + ([] if count >= options.times else [f"{name}: only {count} disturbances"])
    if not failures:
        shutil.rmtree(folder)
    return bool(failures)


def start(folder: Path, tag: str, processes: int, restarts: int = 0) -> subprocess.Popen[bytes]:
    """Begin a run or go on with it, under `torchrun` where it has several processes."""
    flags = [*RUN, STEPS, f"--data-dir={folder / 'data'}", f"--output={folder}", f"--tag={tag}", "--workers=0"]
    under = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        f"--max-restarts={restarts}",
    ]
    command = [*(under if processes > 1 else []), str(TOY), "train", *flags, "--resume=auto", "--lock-timeout=60"]
    with (folder / f"{tag}.txt").open("ab") as log:
        return subprocess.Popen([sys.executable, *command], stdout=log, stderr=log)


def killed(
    start: Callable[..., subprocess.Popen[bytes]], run: Path, chance: random.Random, options: argparse.Namespace
) -> int:
    """Kill one of the workers at a time; one launch of torchrun brings the run to its end."""
    launcher, count = start(restarts=options.times), 0
    while launcher.poll() is None and count < options.times:
        if not waits_for_steps(launcher, run, chance):
            break
        chance.choice(workers_of(launcher)).kill()
        count += 1
    assert launcher.wait(SECONDS_A_RUN) == 0, run.with_suffix(".txt").read_text()[-2000:]
    return count


def requeued(
    start: Callable[..., subprocess.Popen[bytes]], run: Path, chance: random.Random, options: argparse.Namespace
) -> int:
    """Send SIGTERM to the job and start it again, until it ends by itself with status 0."""
    count = 0
    while True:
        job = start()
        if count < options.times and waits_for_steps(job, run, chance):
            job.send_signal(signal.SIGTERM)
            count += 1
        status = job.wait(SECONDS_A_RUN)
        if status == 0:
            return count
        # torchrun turns the status of its processes into 1.
        assert status in (1, PREEMPTED, -signal.SIGTERM), run.with_suffix(".txt").read_text()[-2000:]


def waits_for_steps(job: subprocess.Popen[bytes], run: Path, chance: random.Random) -> bool:
    """Wait until the run has logged some more steps; false if it ended before."""
    metrics = run / "metrics.jsonl"
    more = lines_of(metrics) + chance.randint(1, 4)
    while lines_of(metrics) < more:
        if job.poll() is not None:
            return False
        time.sleep(0.02)
    time.sleep(chance.uniform(0, 0.2))
    return job.poll() is None


def lines_of(path: Path) -> int:
    """Lines of a file that may not exist yet."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def workers_of(launcher: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes that train, children of the launcher."""
    return [child for child in psutil.Process(launcher.pid).children() if str(TOY) in " ".join(child.cmdline())]


if __name__ == "__main__":
    sys.exit(main())

"""Damages every file of a small run in many ways and resumes it: each time it must succeed or end with one line.

    python benchmarks/fuzz_runs.py [--seed 0] [--rounds 1] [--cases 100] [--limit 30]

Files are cut at several lengths, bits are flipped, whole files are replaced by others, folders or nothing, and values
in JSON and YAML files by values of wrong types and huge numbers. Each resume runs in a separate process. A traceback,
more than `--limit` seconds, or more than 2 GiB of memory is a failure. Prints a table by file; the exit status is 1 if
anything failed. Linux only.
"""

import argparse
import copy
import io
import json
import logging
import multiprocessing
import random
import re
import resource
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import psutil
import torch
import yaml
from PIL import Image

# The checkpoint to resume from, whose files are damaged.
RESUMED = "step-4"
# Files whose values are changed one by one.
SMALL = {"json", "yaml", "jsonl"}
WHOLE = {
    "empty": b"",
    "object": b"{}",
    "list": b"[]",
    "null": b"null",
    "text": b"\x00\xff" * 50,
    "deep": b"[" * 100_000,
}
VALUES = [None, [], {}, "x", -1, 10**400, 1e308, float("nan"), float("inf"), True, [[[]]], "../../etc", 2**53, 0.5, ""]
MOST_MEMORY = 2 * 2**30
Damage = tuple[str, bytes | None]


def main() -> int:
    options = parse_options()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="fuzz-runs-") as folder:
        run = make_run(Path(folder))
        counts: Counter[tuple[str, str]] = Counter()
        failures = []
        cases = list(damages(run, options.seed, options.rounds))
        if options.cases and options.cases < len(cases):
            cases = random.Random(options.seed).sample(cases, options.cases)
        for name, kind, content in cases:
            outcome, words = resume_damaged(run, name, content, options.limit)
            counts[group_of(name), outcome] += 1
            if outcome not in ("resumed", "refused"):
                failures.append(f"{name}, {kind}: {outcome}: {words}")
                print(failures[-1], flush=True)
    print_table(counts)
    return 1 if failures else 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1, help="repetitions of everything random")
    parser.add_argument("--cases", type=int, default=0, help="so many cases, drawn at random; 0 for all")
    parser.add_argument("--limit", type=float, default=30.0, help="seconds for one resume")
    return parser.parse_args()


def shrink() -> None:
    """Make the smallest model a tiny one, so that a run takes a second."""
    from globalvit.models.variants import VARIANTS

    VARIANTS["gcvit_xxtiny"] = replace(VARIANTS["gcvit_xxtiny"], depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), width=16)


def make_run(folder: Path) -> Path:
    """Train a few steps on a few images; the run has checkpoints of steps 2, 3 and 4."""
    from globalvit.cli.main import main as globalvit

    shrink()
    for split in ("train", "val"):
        for number, name in enumerate(("apple", "pear")):
            (folder / "data" / split / name).mkdir(parents=True)
            for index in range(6):
                color = (200 * number, 20 * index, 100)
                Image.new("RGB", (32, 32), color).save(folder / "data" / split / name / f"{index}.png")
    flags = "--weights=none --img-size=32 --batch-size=4 --epochs=2 --warmup-epochs=0 --workers=0 --device=cpu"
    more = "--precision=fp32 --kernels=torch --model-ema --log-interval=1 --tag=run --checkpoint-every=2"
    words = [*flags.split(), *more.split(), f"--data-dir={folder / 'data'}", f"--output={folder}"]
    with redirect_stderr(io.StringIO()) as said:
        status = globalvit(["train", *words, "--checkpoint-hist=9", "--steps=6", "--val-steps=3"])
    assert status == 0, said.getvalue()
    # As if it had been killed after step 5: two steps, an evaluation and the curves are left to do.
    checkpoints = folder / "run" / "checkpoints"
    shutil.rmtree(checkpoints / "step-6")
    (checkpoints / "last").write_text(f"{RESUMED}\n")
    return folder / "run"


def damages(run: Path, seed: int, rounds: int) -> Iterator[tuple[str, str, bytes | None]]:
    """Name of a file, kind of damage, and the new content; None stands for a folder in its place."""
    chance = random.Random(seed)
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        name = path.relative_to(run).as_posix()
        if "tensorboard" in name or ("step-" in name and RESUMED not in name):
            continue
        whole = path.read_bytes()
        yield name, "folder", None
        yield from ((name, kind, content) for kind, content in WHOLE.items())
        for _ in range(rounds):
            lengths = {1, 8, len(whole) // 2, max(len(whole) - 1, 0), chance.randrange(len(whole) + 1)}
            yield from ((name, f"cut at {length}", whole[:length]) for length in sorted(lengths))
            for count in (1, 1, 1, 20):
                yield name, f"{count} bits flipped", flipped(whole, count, chance)
            if path.suffix[1:] in SMALL:
                yield from ((name, kind, content) for kind, content in changed_values(path, chance))


def flipped(data: bytes, count: int, chance: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(count if data else 0):
        damaged[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def changed_values(path: Path, chance: random.Random) -> Iterator[Damage]:
    """One value after the other of a JSON or YAML file replaced by something else."""
    text = path.read_text(encoding="utf-8")
    is_lines = path.suffix == ".jsonl"
    parsed = [json.loads(line) for line in text.splitlines()] if is_lines else yaml.safe_load(text)
    for place in places(parsed):
        changed = copy.deepcopy(parsed)
        parent = changed
        for key in place[:-1]:
            parent = parent[key]
        parent[place[-1]] = value = chance.choice(VALUES)
        if is_lines:
            written = "".join(json.dumps(record) + "\n" for record in changed)
        else:
            written = yaml.safe_dump(changed) if path.suffix == ".yaml" else json.dumps(changed)
        yield f"{'.'.join(map(str, place))} = {str(value)[:20] if value != 10**400 else '1e400'}", written.encode()


def places(value: object) -> Iterator[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (key,)
        yield from ((key, *rest) for rest in places(inner))


def resume_damaged(run: Path, name: str, content: bytes | None, limit: float) -> tuple[str, str]:
    """Put the damage into a copy of the run and resume that; returns the outcome and what was printed last."""
    with tempfile.TemporaryDirectory(dir=run.parent) as folder:
        twin = Path(folder) / "run"
        shutil.copytree(run, twin, ignore=shutil.ignore_patterns("tensorboard"))
        target = twin / name
        target.unlink()
        if content is None:
            target.mkdir()
        else:
            target.write_bytes(content)
        log = Path(folder) / "log.txt"
        process = multiprocessing.get_context("fork").Process(target=resume, args=(twin, log))
        process.start()
        process.join(limit)
        if process.exitcode is None:
            process.kill()
            process.join()
            return "hang", f"more than {limit:g} s"
        said = log.read_text(errors="replace").strip() if log.exists() else ""
    return judge(process.exitcode, said)


def judge(status: int, said: str) -> tuple[str, str]:
    last = said.splitlines()[-1] if said else ""
    if "Traceback" in said or status not in (0, 1) or (status and not last.startswith("globalvit: error: ")):
        return "traceback" if "Traceback" in said else f"status {status}", said[-1500:]
    if re.search(r"out of memory|Cannot allocate", last):
        return "memory", last
    return ("resumed" if status == 0 else "refused"), last


def resume(run: Path, log: Path) -> None:
    """Resume with one more step to do, so that everything that was read is used."""
    import traceback

    from globalvit.cli.main import main as globalvit

    resource.setrlimit(resource.RLIMIT_AS, (used_memory() + MOST_MEMORY, resource.RLIM_INFINITY))
    with log.open("w") as file, redirect_stderr(file), redirect_stdout(file):
        try:
            status = globalvit(["train", "--resume", str(run)])
        except BaseException:
            traceback.print_exc(file=file)
            status = 70
    sys.exit(status)


def used_memory() -> int:
    return psutil.Process().memory_info().vms


def group_of(name: str) -> str:
    return re.sub(r"\d+", "N", name)


def print_table(counts: Counter[tuple[str, str]]) -> None:
    outcomes = sorted(
        {outcome for _, outcome in counts}, key=lambda outcome: (outcome not in ("resumed", "refused"), outcome)
    )
    names = sorted({name for name, _ in counts})
    width = max(map(len, names))
    print(f"{'file':{width}}", *(f"{outcome:>10}" for outcome in outcomes))
    for name in [*names, "all"]:
        numbers = [
            sum(count for (own, outcome), count in counts.items() if outcome == column and name in (own, "all"))
            for column in outcomes
        ]
        print(f"{name:{width}}", *(f"{number:10}" for number in numbers))


if __name__ == "__main__":
    sys.exit(main())

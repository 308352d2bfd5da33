"""Builds an LMDB database again and again, each time killed at a random moment, until the last build may finish.

    python benchmarks/lmdb_kill.py [--files 10000] [--kills 20] [--seed 0]

Afterwards every file must be there once and byte for byte, in this database and in those that got complete between two
kills, after which another is begun. What a kill leaves half built, training must refuse. The files are random bytes of
0 … 20 kB in classes that repeat each other's names; a transaction takes a 40th of them, so that kills meet all parts of
a build. Prints what happened as JSON; fails if anything is lost.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lmdb

from globalvit.data.classification.dataset import open_split
from globalvit.data.storage.lmdb_verify import verify

CLASSES, LARGEST = 10, 20_000
TRANSACTIONS = 40
SECONDS_AT_MOST = 300
# Kills come within this part of the time an undisturbed build takes: after ten or so the images are there.
LONGEST_WAIT = 0.4
BUILD = """
import sys
from pathlib import Path
from globalvit.data.storage import lmdb_build
src, dst, lmdb_build.BATCH_IMAGES = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
print("started", flush=True)
lmdb_build.build(src, dst)
"""


def make_files(root: Path, files: int, chance: random.Random) -> None:
    """`files` files in `root/train/CLASS/`; every class has the same names."""
    for number in range(files):
        folder = root / "train" / f"class {number % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number // CLASSES:05}.jpg").write_bytes(chance.randbytes(chance.randrange(LARGEST)))


def start_build(src: Path, dst: Path, batch: int) -> subprocess.Popen[str]:
    """A build in a process of its own, which has imported everything and begins just now."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(src), str(dst), str(batch)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


def finish(process: subprocess.Popen[str]) -> float:
    """Seconds until a build has ended well."""
    start = time.perf_counter()
    assert process.wait(SECONDS_AT_MOST) == 0
    assert process.stdout is not None
    process.stdout.close()
    return time.perf_counter() - start


def kill(process: subprocess.Popen[str], moment: float) -> bool:
    """Kill a build after `moment` seconds; whether it was still running."""
    time.sleep(moment)
    process.kill()
    process.communicate(timeout=SECONDS_AT_MOST)
    return process.returncode == -signal.SIGKILL


def state(dst: Path) -> str:
    """What training says of a database that may be half built, in one word."""
    try:
        open_split(dst, "train")
    except (ValueError, FileNotFoundError) as error:
        return "refused" if "is half built" in str(error) else "not begun"
    return "complete"


def content(root: Path) -> dict[str, bytes]:
    """Images in a database, read by the library itself."""
    with lmdb.open(str(root), readonly=True, lock=False) as environment, environment.begin() as transaction:
        return {key.decode(): bytes(data) for key, data in transaction.cursor() if not key.startswith(b"/")}


def images_in(root: Path) -> int:
    """How many images a database holds by now."""
    file = root / "data.mdb"
    # A build may be killed when its file is still empty, which the library cannot read.
    return len(content(root)) if file.exists() and file.stat().st_size else 0


def check(src: Path, dst: Path) -> int:
    """How many images there are; raises AssertionError if one is lost, twice, or other than its file."""
    assert state(dst) == "complete"
    found = verify(dst, src)
    assert found.is_equal, found
    paths = {path.relative_to(src / "train").as_posix(): path.read_bytes() for path in src.rglob("*.jpg")}
    assert content(dst / "train") == paths
    assert found.equal == len(paths)
    return found.equal


def kill_and_finish(folder: Path, files: int, kills: int, seed: int) -> dict[str, Any]:
    """Figures of one round of builds; raises what `check` raises."""
    chance = random.Random(seed)
    src, dst, batch = folder / "images", folder / "databases", max(1, files // TRANSACTIONS)
    make_files(src, files, chance)
    undisturbed = finish(start_build(src, folder / "undisturbed", batch))
    states, there, finished = [], [], 0
    while len(states) < kills:
        if kill(start_build(src, dst, batch), chance.uniform(0, LONGEST_WAIT * undisturbed)):
            states.append(state(dst))
            there.append(images_in(dst / "train"))
        if state(dst) == "complete":
            finished += bool(check(src, dst))
            dst = folder / f"databases {finished}"
    last = finish(start_build(src, dst, batch))
    return {
        "files": files,
        "bytes": sum(path.stat().st_size for path in src.rglob("*.jpg")),
        "kills": kills,
        "training said": {name: states.count(name) for name in sorted(set(states))},
        "images there after each kill": there,
        "databases complete by the last kill": finished,
        "seconds undisturbed": round(undisturbed, 2),
        "seconds of the last build": round(last, 2),
        "equal in the last": check(src, dst),
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(kill_and_finish(Path(folder), options.files, options.kills, options.seed), indent=2))


if __name__ == "__main__":
    main()

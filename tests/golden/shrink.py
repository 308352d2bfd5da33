"""Make the project's own small golden files from the full vectors: `python tests/golden/shrink.py FOLDER CASE...`.

Of each sampled map every eighth sample stays, or as many fewer as bring the file under 50 KB; whole tensors of over
6,000 numbers are left out, and what other arrays hold too. The terms of `*_loss_*` are copied.
"""

import io
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np

KEEP_EVERY = (8, 16, 32, 64)
LARGEST_WHOLE = 6_000
MOST_BYTES = 50_000
# The first rows of sampled tensors, and regions that are the proposals or follow from the stage before.
ELSEWHERE = re.compile(r".*_first(10|20)|(.*\.)?rois")


def shrink(folder: Path, case: str, keep_every: int) -> bytes:
    """A small golden file."""
    full = np.load(folder / f"{case}.npz")
    meta = json.loads((folder / f"{case}.json").read_text())
    small = {"state_dict": np.frombuffer(json.dumps(meta["state_dict"]).encode(), np.uint8)}
    for name in full.files:
        if name.endswith(".samples"):
            small[name] = full[name][::keep_every]
        elif not name.endswith(".stats") and full[name].size <= LARGEST_WHOLE and not ELSEWHERE.fullmatch(name):
            small[name] = full[name]
    file = io.BytesIO()
    np.savez_compressed(file, **small)
    return file.getvalue()


def write(folder: Path, case: str) -> None:
    """Put the small copy of a case beside this file."""
    here = Path(__file__).parent
    if not (folder / f"{case}.npz").exists():
        shutil.copyfile(folder / f"{case}.json", here / f"{case}.json")
        return
    sizes = (shrink(folder, case, keep_every) for keep_every in KEEP_EVERY)
    (here / f"{case}.npz").write_bytes(next(file for file in sizes if len(file) <= MOST_BYTES))


if __name__ == "__main__":
    for case in sys.argv[2:]:
        write(Path(sys.argv[1]), case)

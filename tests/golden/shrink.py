"""Make the project's own small golden files from the full vectors: `python tests/golden/shrink.py FOLDER CASE...`.

Of each sampled map every eighth sample stays; whole tensors of over 6,000 numbers are left out, but for maps of labels.
"""

import json
import sys
from pathlib import Path

import numpy as np

KEEP_EVERY = 8
LARGEST_WHOLE = 6_000
LABELS = "_argmax_u8"


def shrink(folder: Path, case: str) -> dict[str, np.ndarray]:
    """The arrays of a small golden file."""
    full = np.load(folder / f"{case}.npz")
    meta = json.loads((folder / f"{case}.json").read_text())
    small = {"state_dict": np.frombuffer(json.dumps(meta["state_dict"]).encode(), np.uint8)}
    for name in full.files:
        if name.endswith(".samples"):
            small[name] = full[name][::KEEP_EVERY]
        elif not name.endswith(".stats") and (full[name].size <= LARGEST_WHOLE or name.endswith(LABELS)):
            small[name] = full[name]
    return small


if __name__ == "__main__":
    for case in sys.argv[2:]:
        np.savez_compressed(Path(__file__).parent / f"{case}.npz", **shrink(Path(sys.argv[1]), case))

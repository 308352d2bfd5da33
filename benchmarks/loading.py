"""Images a second out of an image folder, out of LMDB, and out of LMDB with direct decoding; cold and warm.

    python benchmarks/loading.py [--images 4000] [--repeats 3] [--workers 2] [--drop-caches] [--folder DIR]

The images are generated JPEGs of 500×375 pixels and about 110 kB, the size of ImageNet's. They are read in random
order, each once a pass:

- bytes: reading alone, in one process;
- decoded: reading and decoding to RGB, in one process;
- batches: what training gets with `--workers` workers, random crop and flip to 224×224, 64 to a batch.

A cold pass comes after the system has dropped these files from its cache; with `--drop-caches`, which needs
root, everything is dropped, folders' entries too. Disks and hypervisors may have caches of their own, which stay. A
warm pass reads the same again. The sources take turns; figures are medians, and their spread is the widest of all.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from globalvit.data.classification.dataset import ImageFolder
from globalvit.data.classification.transforms import TrainTransform
from globalvit.data.common.loading import train_loader
from globalvit.data.storage.lmdb import forget, located
from globalvit.data.storage.lmdb_build import build
from globalvit.data.storage.lmdb_decode import has_direct
from globalvit.data.storage.lmdb_source import LmdbImages, open_database
from input_pipeline import make_images

BATCH = 64
Sources = dict[str, Callable[[], ImageFolder | LmdbImages]]
Times = dict[tuple[str, str, str], list[float]]


def drop(root: Path, with_everything: bool) -> None:
    """Let the next read of the files below `root` go to the disk."""
    os.sync()
    if with_everything:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    for path in root.rglob("*.*"):
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def read_bytes(source: ImageFolder | LmdbImages, order: list[int], _: int) -> int:
    """Read all images without decoding."""
    for index in order:
        if isinstance(source, LmdbImages):
            source.data(index)
        else:
            Path(source.name(index)).read_bytes()
    return len(order)


def decode(source: ImageFolder | LmdbImages, order: list[int], _: int) -> int:
    """Read and decode all images."""
    for index in order:
        source.read(index)
    return len(order)


def load_batches(source: ImageFolder | LmdbImages, order: list[int], workers: int) -> int:
    """Load an epoch; its order is the loader's own."""
    transform = TrainTransform(image_size=224, color_jitter=None)
    loader = train_loader(source, transform, batch_size=BATCH, seed=len(order), workers=workers)
    read = sum(len(batch["labels"]) for batch in loader)
    loader.close()
    return read


PASSES = {"bytes": read_bytes, "decoded": decode, "batches": load_batches}


def measure(root: Path, sources: Sources, count: int, repeats: int, workers: int, with_everything: bool) -> Times:
    """Images a second of every pass: (pass, cold or warm, source) → one figure a repeat."""
    speeds: Times = defaultdict(list)
    random = np.random.default_rng(1)
    for _ in range(repeats):
        order = random.permutation(count).tolist()
        for kind, run in PASSES.items():
            for name, make in sources.items():
                # Pages that a process has mapped are not dropped.
                forget(located(root / "lmdb" / "train"))
                drop(root, with_everything)
                for state in ("cold", "warm"):
                    source = make()
                    start = time.perf_counter()
                    read = run(source, order, workers)
                    speeds[kind, state, name].append(read / (time.perf_counter() - start))
    return speeds


def show(speeds: Times, names: list[str]) -> None:
    """Print the table in Markdown, and the widest spread."""
    print("| pass | cache |", " | ".join(names), "|")
    print("|---|---|" + "---:|" * len(names))
    for kind in PASSES:
        for state in ("cold", "warm"):
            figures = [f"{statistics.median(speeds[kind, state, name]):.0f}" for name in names]
            print(f"| {kind} | {state} |", " | ".join(figures), "|")
    spread = max(max(times) / min(times) for times in speeds.values())
    print(f"widest spread of one figure's repeats: {spread:.2f}×")


def main() -> None:
    """Make the images, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--drop-caches", action="store_true")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    assert has_direct(), "install simplejpeg: pip install 'globalvit[data]'"
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder)
        make_images(root / "folder", options.images)
        build(root / "folder", root / "lmdb")
        size = sum(path.stat().st_size for path in (root / "folder").rglob("*.jpg")) / options.images
        print(f"{options.images} images of {size / 1000:.0f} kB on average", file=sys.stderr)
        sources: Sources = {
            "folder": lambda: ImageFolder(root / "folder" / "train"),
            "LMDB": lambda: open_database(root / "lmdb" / "train", is_direct=False),
            "LMDB, direct decoding": lambda: open_database(root / "lmdb" / "train"),
        }
        for make in sources.values():
            # Imports, and the comparison of decoders that every process makes once.
            load_batches(make(), [], 0)
        speeds = measure(root, sources, options.images, options.repeats, options.workers, options.drop_caches)
        show(speeds, list(sources))


if __name__ == "__main__":
    main()

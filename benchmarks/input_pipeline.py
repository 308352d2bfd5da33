"""How many images per second the training input gives by itself: reading, decoding, augmenting, batching.

    python benchmarks/input_pipeline.py DATA_DIR|generated [--model gcvit_tiny] [--batch-size 64] [--workers 0,1,2]
        [--storage folder,lmdb,shards]

The data go through the model's fine-tuning recipe, once for each number of workers and each form of storage; LMDB and
shards are packed into a temporary folder first. `generated` writes JPEGs of 500×375
pixels and about 110 kB, the size of ImageNet's, into a temporary folder.
"""

import argparse
import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from globalvit.benchmark.networks import own_size
from globalvit.build import preprocessing
from globalvit.data.common.loading import TrainLoader
from globalvit.data.common.samples import Batch
from globalvit.data.storage.lmdb_build import build
from globalvit.data.storage.shard_build import pack
from globalvit.models.variants import ModelSpec
from globalvit.train.config import load_config
from globalvit.train.feeds import feed_for

GENERATED = "generated"
# ImageNet's usual size; noise makes the file as large as a photograph's.
IMAGE, QUALITY, DISTINCT, CLASSES = (500, 375), 90, 100, 10
IMAGES = 2000


def open_loader(folder: str, model: str, batch_size: int, workers: int) -> TrainLoader:
    """The loader that a fine-tuning with these settings would use."""
    size = own_size(model)
    config = replace(load_config(flags={"model": model}), data_dir=folder, batch_size=batch_size, img_size=size)
    feed = feed_for(config)
    source = feed.open_split(config.train_split)
    augmentation = feed.augmentation(preprocessing(model, image_size=size))
    return feed.train_loader(source, augmentation, batch_size=batch_size, seed=config.seed, workers=workers)


def measure(loader: TrainLoader, workers: int, seconds: float) -> tuple[float, float]:
    """Images per second once batches flow, and seconds until the first batch."""
    start = time.perf_counter()
    batches = endless(loader)
    next(batches)
    first = time.perf_counter() - start
    # The processes work ahead by two batches each.
    for _ in range(2 * workers):
        next(batches)
    start, images, elapsed = time.perf_counter(), 0, 0.0
    while elapsed < seconds or not images:
        images += len(next(batches)["indices"])
        elapsed = time.perf_counter() - start
    loader.close()
    return images / elapsed, first


def endless(loader: TrainLoader) -> Iterator[Batch]:
    """Batches of one epoch after the other."""
    epoch = 0
    while True:
        loader.start_at(epoch)
        yield from loader
        epoch += 1


def stored(data: str, storage: str, target: Path) -> str:
    """The data folder, or the same data packed into `target`."""
    if storage == "folder":
        return data
    (build if storage == "lmdb" else pack)(Path(data), target / storage)
    return str(target / storage)


@contextmanager
def data_folder(data: str, model: str, batch_size: int) -> Iterator[str]:
    """The data folder, for `generated` a temporary one."""
    if data != GENERATED:
        yield data
        return
    if ModelSpec(model=model).kind != "classify":
        raise SystemExit(f"generated images have one class each, which {model} cannot learn from; give a data folder")
    with TemporaryDirectory() as folder:
        make_images(Path(folder), max(IMAGES, batch_size))
        yield folder


def make_images(root: Path, count: int) -> None:
    """Write `count` JPEGs, of a hundred different ones, to `root/train/CLASS/`."""
    random = np.random.default_rng(0)
    contents = [jpeg(random) for _ in range(min(DISTINCT, count))]
    for number in range(count):
        folder = root / "train" / f"class {number % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(contents[number % len(contents)])


def jpeg(random: np.random.Generator) -> bytes:
    """An image of coarse and fine noise."""
    coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(
        IMAGE, Image.Resampling.BICUBIC
    )
    values = np.asarray(coarse) + random.normal(0, 17, (IMAGE[1], IMAGE[0], 3))
    stream = io.BytesIO()
    Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def main() -> None:
    """Measure every number of workers and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", metavar="DATA_DIR|generated")
    parser.add_argument("--model", default="gcvit_tiny")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", default=None, help="numbers of workers (default: 0 to the number of processors)")
    parser.add_argument("--storage", default="folder", help="any of folder,lmdb,shards (default: folder)")
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    counts = [0, *(2**n for n in range(6) if 2**n <= (os.cpu_count() or 1))]
    counts = [int(word) for word in options.workers.split(",")] if options.workers else counts
    print("| storage | workers | images/s | first batch s |\n|---|---:|---:|---:|")
    with data_folder(options.data, options.model, options.batch_size) as folder, TemporaryDirectory() as temporary:
        for storage in options.storage.split(","):
            data = stored(folder, storage, Path(temporary))
            for workers in counts:
                loader = open_loader(data, options.model, options.batch_size, workers)
                speed, first = measure(loader, workers, options.seconds)
                print(f"| {storage} | {workers} | {speed:.0f} | {first:.2f} |", flush=True)


if __name__ == "__main__":
    main()

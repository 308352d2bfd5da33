"""How many images a second the training input gives by itself: reading, decoding, augmenting, batching."""

import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from globalvit.benchmark.cells import Size
from globalvit.build import preprocessing
from globalvit.data.common.loading import Batch, TrainLoader
from globalvit.models.variants import ModelSpec
from globalvit.train.config import load_config
from globalvit.train.feeds import feed_for

GENERATED = "generated"
# ImageNet's usual size; noise makes the file as large as a photograph's.
IMAGE, QUALITY, DISTINCT, CLASSES = (500, 375), 90, 100, 10
IMAGES = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Feeding:
    """What workers give.

    Attributes:
        workers: workers; 0 loads in the process itself.
        first_batch_s: until the first batch is there, processes started.
        images: counted after the batches that were prepared while nobody waited.
        images_per_second: of those.
    """

    workers: int
    first_batch_s: float
    images: int
    images_per_second: float


def measure_loader(
    data: str,
    model: str,
    size: Size,
    *,
    batch_size: int,
    workers: Sequence[int],
    seconds: float,
    advance: Callable[[], None] = lambda: None,
) -> list[Feeding]:
    """Measure the input of a model's fine-tuning recipe, once for each number of workers.

    Args:
        data: a data folder, or `generated`.
        model: decides the task, and with it what the data are.
        size: of the images in pixels.
        batch_size: images of a batch.
        workers: numbers of workers.
        seconds: to count for, once batches flow.
        advance: called after each number.

    Raises:
        FileNotFoundError: the folder or one of its parts is missing.
        ValueError: the data are not what the model's task needs, or do not fill a batch.
    """
    with _folder(data, model, batch_size) as folder:
        found = []
        for count in workers:
            found.append(_measure(_open(folder, model, size, batch_size, count), count, seconds))
            advance()
        return found


def _open(folder: str, model: str, size: Size, batch_size: int, workers: int) -> TrainLoader:
    config = replace(load_config(flags={"model": model}), data_dir=folder, batch_size=batch_size, img_size=size)
    feed = feed_for(config)
    source = feed.open_split(config.train_split)
    augmentation = feed.augmentation(preprocessing(model, image_size=size))
    return feed.train_loader(source, augmentation, batch_size=batch_size, seed=config.seed, workers=workers)


def _measure(loader: TrainLoader, workers: int, seconds: float) -> Feeding:
    start = time.perf_counter()
    batches = _endless(loader)
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
    return Feeding(workers=workers, first_batch_s=first, images=images, images_per_second=images / elapsed)


def _endless(loader: TrainLoader) -> Iterator[Batch]:
    epoch = 0
    while True:
        loader.start_at(epoch)
        yield from loader
        epoch += 1


@contextmanager
def _folder(data: str, model: str, batch_size: int) -> Iterator[str]:
    """The data folder, for `generated` a temporary one."""
    if data != GENERATED:
        yield data
        return
    if ModelSpec(model=model).kind != "classify":
        raise ValueError(
            f"generated images have one class each, which {model} cannot learn from; give a data folder, or shapes"
        )
    with TemporaryDirectory() as folder:
        make_images(Path(folder), max(IMAGES, batch_size))
        yield folder


def make_images(root: Path, count: int) -> None:
    """Write `count` JPEGs of 500×375 pixels and about 110 kB, of a hundred different ones, to `root/train/CLASS/`."""
    random = np.random.default_rng(0)
    contents = [_jpeg(random) for _ in range(min(DISTINCT, count))]
    for number in range(count):
        folder = root / "train" / f"class {number % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(contents[number % len(contents)])


def _jpeg(random: np.random.Generator) -> bytes:
    """Coarse and fine noise."""
    coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(
        IMAGE, Image.Resampling.BICUBIC
    )
    values = np.asarray(coarse) + random.normal(0, 17, (IMAGE[1], IMAGE[0], 3))
    stream = io.BytesIO()
    Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def to_plain(feedings: Sequence[Feeding]) -> list[dict[str, float]]:
    """For JSON."""
    return [asdict(feeding) for feeding in feedings]

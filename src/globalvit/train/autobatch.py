"""`--auto-batch`: the largest batch whose training step fits the memory, optimizer and moving average counted.

On a GPU batches are tried until one does not fit. On a CPU nothing can be caught: memory is overcommitted and the
process is killed. There two small batches are measured and a straight line through them is drawn to the limit.
"""

import ctypes
import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import torch

from globalvit.hardware import Precision, autocast
from globalvit.models.variants import as_size
from globalvit.tasks.task import Task
from globalvit.train.fields import TrainConfig
from globalvit.train.memory import is_out_of_memory
from globalvit.train.optim import create_ema, create_optimizer

logger = logging.getLogger(__name__)

MIB = 2**20
# Part of the free memory that may be used; loaders and fragments need the rest.
SHARE = 0.8
# Growth between the two measured batches that stands out from the noise of an allocator.
CLEAR_GROWTH = 64 * MIB
LARGEST_SMALL_BATCH = 64
CGROUPS = Path("/sys/fs/cgroup")


def choose_batch(
    task: Task, config: TrainConfig, device: torch.device, precision: Precision, limit: int, processes: int
) -> int:
    """The largest batch of one process that fits, at most `limit`.

    Args:
        task: on `device`; it is trained a few steps on noise and must be thrown away.
        config: optimizer and moving average to count, image size to try.
        device: where the run will compute.
        precision: of the forward pass.
        limit: images beyond which a larger batch is of no use.
        processes: processes that share the memory of a CPU.

    Raises:
        MemoryError: not even one image fits.
    """
    step = trial_step(task, config, device, precision)
    if device.type == "cuda":
        found, why = search(_fits_gpu(step, device), limit), "tried on the GPU"
    else:
        found, why = _extrapolated(step, limit, processes)
    if found < 1:
        raise MemoryError(
            f"not one image of {config.img_size} pixels fits the memory ({why}); lower --img-size or --model"
        )
    logger.info("auto_batch: batch_size %d (%s; at most %d are of use)", found, why, limit)
    return found


def search(fits: Callable[[int], bool], limit: int) -> int:
    """The largest batch from 0 to `limit` that fits, to an eighth: doubling, then halving the gap."""
    good, bad = 0, 1
    while bad <= limit and fits(bad):
        good, bad = bad, bad * 2
    if good == limit:
        return good
    if bad > limit:
        if fits(limit):
            return limit
        bad = limit
    while bad - good > max(1, good // 8):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def extrapolate(small: tuple[int, float], larger: tuple[int, float], budget: float) -> int:
    """The batch at which a line through two (batch, bytes) points reaches `budget` bytes."""
    slope = (larger[1] - small[1]) / (larger[0] - small[0])
    # A flat line says that images cost next to nothing; one byte keeps the division honest.
    return int(small[0] + (budget - small[1]) / max(slope, 1.0))


def free_memory() -> int:
    """Bytes that this process may still take: of the machine, or of its control group where that is less."""
    free = psutil.virtual_memory().available
    return min([free, *_cgroup_rooms(CGROUPS, Path("/proc/self/cgroup"))])


def trial_step(task: Task, config: TrainConfig, device: torch.device, precision: Precision) -> Callable[[int], None]:
    """A function that trains `task` one step on noise with a batch of the given size."""
    optimizer = create_optimizer(task, config)
    ema = create_ema(task, config)
    side = config.img_size or config.short_side
    assert side is not None, "the image size is settled before"
    size = as_size(side)
    labels_shape = size if task.kind == "segment" else (task.spec.num_classes,) if task.spec.multi_label else ()

    def step(batch_size: int) -> None:
        images = torch.randn(batch_size, config.in_chans, *size, device=device)
        kind = torch.float32 if task.spec.multi_label else torch.long
        labels = torch.zeros(batch_size, *labels_shape, dtype=kind, device=device)
        with autocast(device.type, precision):
            loss = task.losses({"images": images, "labels": labels})["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if ema is not None:
            ema.update(task, step=2)

    task.train()
    return step


def _fits_gpu(step: Callable[[int], None], device: torch.device) -> Callable[[int], bool]:
    def fits(batch_size: int) -> bool:
        torch.cuda.set_per_process_memory_fraction(SHARE + 0.1, device)
        try:
            step(batch_size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(1.0, device)
        return True

    return fits


def _extrapolated(step: Callable[[int], None], limit: int, processes: int) -> tuple[int, str]:
    # The first step makes the optimizer's state and fills caches; it is not measured.
    step(1)
    budget = resident() + SHARE * free_memory() / processes
    small = 1
    while True:
        points = [(batch, peak_memory(step, batch)) for batch in (small, 4 * small)]
        growth = points[1][1] - points[0][1]
        if growth >= CLEAR_GROWTH or 4 * small >= min(LARGEST_SMALL_BATCH, limit):
            break
        small *= 2
    # Growth below what stands out is taken for all that the noise can hide: too small a batch costs less than none.
    points[1] = (points[1][0], max(points[1][1], points[0][1] + CLEAR_GROWTH))
    found = extrapolate(points[0], points[1], budget)
    why = ", ".join(f"{batch} images take {peak / MIB:.0f} MiB" for batch, peak in points)
    return min(found, limit), f"{why}, {budget / MIB:.0f} MiB may be used, room for {found}"


def resident() -> int:
    """Bytes of this process in memory."""
    return psutil.Process().memory_info().rss


def peak_memory(step: Callable[[int], None], batch_size: int) -> float:
    """Largest resident memory in bytes during a step, watched from another thread."""
    _return_freed_memory()
    with _watching() as peaks:
        step(batch_size)
    return float(max(peaks))


def _return_freed_memory() -> None:
    """Give what earlier steps freed back to the system: a step that found it free would seem to need nothing."""
    gc.collect()
    with suppress(OSError, AttributeError):  # only glibc has the call
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextmanager
def _watching() -> Iterator[list[int]]:
    peaks = [resident()]
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            peaks[0] = max(peaks[0], resident())
            time.sleep(0.0005)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()
        peaks[0] = max(peaks[0], resident())


def _cgroup_rooms(root: Path, own: Path) -> list[int]:
    """Bytes left in each memory control group that this process is in, from its own up to the root."""
    rooms = []
    with suppress(OSError):
        for line in own.read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0":
                rooms += _rooms(root, path, "memory.max", "memory.current")
            elif "memory" in controllers.split(","):
                rooms += _rooms(root / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes")
    return rooms


def _rooms(root: Path, path: str, limit_file: str, usage_file: str) -> list[int]:
    rooms = []
    group = root / path.lstrip("/")
    # In a container the path is often the host's and not to be seen: the root is then the container's own group.
    for folder in [group, *group.parents]:
        with suppress(OSError, ValueError):
            rooms.append(int((folder / limit_file).read_text()) - int((folder / usage_file).read_text()))
        if folder == root:
            break
    return [max(room, 0) for room in rooms]

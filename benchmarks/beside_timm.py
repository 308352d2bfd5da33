"""GC ViT here and in timm, in one process, in turn: images a second and peak memory, inference and training step.

    python benchmarks/beside_timm.py [--model gcvit_tiny] [--batch 8] [--size 224] [--repeats 7] [--threads 2]

Both models get the same images and run alternately; the figures are medians, the ratio is the median of the ratios of
neighbouring runs, so that a drifting clock rate does not decide. A training step is forward, loss, backward and AdamW.
Peak memory is what one run adds to the resident set of the process at its highest, from Linux's own account.
"""

import argparse
import ctypes
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import globalvit as gv

Run = Callable[[], None]
MODES = ("inference", "training step")
PRECISIONS = ("fp32", "bf16")


def inference(model: nn.Module, images: Tensor, precision: str) -> Run:
    """Forward passes; bf16 is the whole model in bfloat16."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model, images = model.eval().to(dtype), images.to(dtype)

    def run() -> None:
        with torch.inference_mode():
            model(images)

    return run


def training_step(model: nn.Module, images: Tensor, precision: str) -> Run:
    """Forward, loss, backward, AdamW; bf16 is autocast over float32 parameters."""
    model = model.train().float()
    optimizer = torch.optim.AdamW(model.parameters())
    labels = torch.arange(len(images))

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def alternate(runs: dict[str, Run], repeats: int) -> dict[str, list[float]]:
    """Seconds of each run, taken in turn after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_mebibytes(run: Run) -> float:
    """The most that one run adds to the resident set, in MiB."""
    # Freed memory goes back to the system first, or the first model's leavings would hide the second one's needs.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def compare(name: str, images: Tensor, mode: str, precision: str, repeats: int) -> dict[str, float]:
    """One row of the table."""
    make = inference if mode == "inference" else training_step
    models = {"ours": gv.create_model(name), "timm": timm.create_model(name)}
    runs = {who: make(model, images, precision) for who, model in models.items()}
    seconds = alternate(runs, repeats)
    memory = {who: statistics.median(peak_mebibytes(run) for _ in range(3)) for who, run in runs.items()}
    pairs = zip(seconds["timm"], seconds["ours"], strict=True)
    row = {f"{who} images/s": len(images) / statistics.median(seconds[who]) for who in runs}
    row["speed ratio"] = statistics.median(theirs / ours for theirs, ours in pairs)
    row |= {f"{who} MiB": memory[who] for who in runs}
    return row | {"memory ratio": memory["ours"] / memory["timm"]}


def machine() -> str:
    """Processor, threads and versions, in a line."""
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return (
        f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, timm {timm.__version__}, Python {platform.python_version()}"
    )


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="gcvit_tiny")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(machine(), file=sys.stderr)
    columns: list[str] = []
    for mode in MODES:
        for precision in PRECISIONS:
            for batch in options.batch:
                images = torch.randn(batch, 3, options.size, options.size)
                row = compare(options.model, images, mode, precision, options.repeats)
                if not columns:
                    columns = list(row)
                    print("| mode | precision | batch |", " | ".join(columns), "|")
                    print("|---" * (len(columns) + 3) + "|")
                print(
                    f"| {mode} | {precision} | {batch} |", " | ".join(f"{row[c]:.2f}" for c in columns), "|", flush=True
                )


if __name__ == "__main__":
    main()

"""Whether any model becomes slower by what is meant to make it faster, over models, image sizes and batches.

    python benchmarks/never_slower.py FILE.json [--model NAME …] [--size HxW …] [--batch N …]

Two ratios of median times for each cell, forms taking turns in one process: the model over its deployed copy, and the
model with PyTorch's operators over the model as it is. Cells that FILE has already are not measured again.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

import globalvit as gv
from globalvit.hardware import cpu_features
from globalvit.models import ops

MODELS = ("gcvit_xxtiny", "gcvit_small", "gpvit_l1", "gpvit_l2", "gcvit_xxtiny_retinanet")
SIZES = ("224x224", "256x256", "384x384", "97x131")
BATCHES = (1, 8)
# Turns of each form, and the seconds after which a cell may end with fewer.
TURNS, LEAST_TURNS, LIMIT_S = 21, 5, 40.0


def medians(forms: list[Callable[[], object]]) -> list[float]:
    """Return the median time of each form; they take turns, and the first turn only warms up."""
    times: list[list[float]] = [[] for _ in forms]
    start = time.perf_counter()
    for turn in range(TURNS + 1):
        for form, seconds in zip(forms, times, strict=True):
            began = time.perf_counter()
            form()
            if turn:
                seconds.append(time.perf_counter() - began)
        if turn >= LEAST_TURNS and time.perf_counter() - start > LIMIT_S:
            break
    return [median(seconds) for seconds in times]


def measure(name: str, size: str, batch: int) -> dict[str, float]:
    """Return the ratios of a cell."""
    torch.manual_seed(0)
    model = gv.create_model(name).eval()
    images = torch.randn(batch, 3, *map(int, size.split("x")))
    deployed = model.deploy()
    run = model.backbone if name.endswith("retinanet") else model
    fast = deployed.backbone if name.endswith("retinanet") else deployed

    def by_torch() -> None:
        with ops.set_kernels("torch"):
            run(images)

    with torch.inference_mode():
        seconds = medians([lambda: run(images), lambda: fast(images), by_torch])
    return {"eager_s": seconds[0], "deployed": seconds[0] / seconds[1], "eager_over_torch": seconds[2] / seconds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", nargs="+", default=MODELS)
    parser.add_argument("--size", nargs="+", default=SIZES)
    parser.add_argument("--batch", nargs="+", type=int, default=BATCHES)
    options = parser.parse_args()
    cells = json.loads(options.file.read_text()) if options.file.exists() else {}
    print("instruction sets:", ", ".join(sorted(cpu_features())), "; kernels:", ops.kernels_for("cpu"))
    print("| model | size | batch | deployed / eager | eager / PyTorch's operators |\n|---|---|---:|---:|---:|")
    for name in options.model:
        for size in options.size:
            for batch in options.batch:
                key = f"{name} {size} {batch}"
                if key not in cells:
                    cells[key] = measure(name, size, batch)
                    options.file.write_text(json.dumps(cells, indent=1) + "\n")
                cell = cells[key]
                print(f"| {name} | {size} | {batch} | {cell['deployed']:.2f} | {cell['eager_over_torch']:.2f} |")


if __name__ == "__main__":
    main()

"""globalvit.keras beside the PyTorch models, on CPU: seconds of a forward pass, in turn, and their ratio.

    python benchmarks/beside_keras.py [--backend torch jax] [--model gcvit_xxtiny gpvit_l1] [--batch 1 8] [--repeats 7]

A backend is chosen when Keras is imported, so each runs in a process of its own; PyTorch's model runs in the same
process, alternately, on the same images. `predict_on_batch` is timed, compiled where the backend compiles, after a
warm-up. A ratio above 1 says that Keras is the faster one. Other Keras implementations of the two families do not run
on Keras 3.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

APPLICATIONS = {
    "gcvit_xxtiny": "GCViTXXTiny",
    "gcvit_tiny": "GCViTTiny",
    "gcvit_small": "GCViTSmall",
    "gpvit_l1": "GPViTL1",
}


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(model: str, batch: int, size: int, repeats: int, threads: int) -> dict[str, float]:
    """Both models in this process, in turn: images a second of each and the median of the ratios of neighbours."""
    import numpy as np
    import torch

    import globalvit as gv
    import globalvit.keras as gk

    torch.set_num_threads(threads)
    images = np.random.default_rng(0).normal(size=(batch, size, size, 3)).astype("float32")
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    ours = getattr(gk, APPLICATIONS[model])(weights=None, input_shape=(size, size, 3), classifier_activation=None)
    theirs = gv.create_model(model).eval()

    def run_torch() -> None:
        with torch.inference_mode():
            theirs(tensor)

    runs = {"keras": lambda: ours.predict_on_batch(images), "torch": run_torch}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            spent = seconds(run)
            if repeat:
                taken[name].append(spent)
    ratios = [there / here for here, there in zip(taken["keras"], taken["torch"], strict=True)]
    row = {f"{name} images/s": batch / statistics.median(spent) for name, spent in taken.items()}
    return row | {"speed ratio": statistics.median(ratios)}


def in_a_process(backend: str, options: argparse.Namespace, model: str, batch: int) -> dict[str, float]:
    """`compare` where Keras runs on the backend."""
    numbers = [str(value) for value in (batch, options.size, options.repeats, options.threads)]
    environment = os.environ | {"KERAS_BACKEND": backend, "OMP_NUM_THREADS": str(options.threads)}
    command = [sys.executable, __file__, "--row", model, *numbers]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=3600, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", nargs="+", default=["torch", "jax"])
    parser.add_argument("--model", nargs="+", default=["gcvit_xxtiny", "gpvit_l1"], choices=APPLICATIONS)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--row", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        model, *numbers = options.row
        print(json.dumps(compare(model, *map(int, numbers))))
        return
    print("| backend | model | batch | Keras images/s | PyTorch images/s | speed ratio |\n|---|---|---|---|---|---|")
    for backend in options.backend:
        for model in options.model:
            for batch in options.batch:
                row = in_a_process(backend, options, model, batch)
                figures = " | ".join(f"{value:.2f}" for value in row.values())
                print(f"| {backend} | {model} | {batch} | {figures} |", flush=True)


if __name__ == "__main__":
    main()

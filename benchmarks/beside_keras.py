"""globalvit.keras beside PyTorch's models and other Keras implementations, on CPU: images a second of a forward pass.

    python benchmarks/beside_keras.py [--implementation keras:jax kecam …] [--model gcvit_xxtiny gpvit_l1]
        [--batch 1 8] [--repeats 9] [--threads 2] [--python kecam=/path/to/python …]

Each implementation runs in a process of its own (a backend is chosen when Keras is imported), which waits while another
one is measured; they take turns, pass by pass, after a warm-up. Keras models are timed by `predict_on_batch`, which is
compiled where the backend compiles. A ratio above 1 says that the implementation is faster than our PyTorch model.

`kecam` is keras-cv-attention-models, which Keras 3 refuses: it needs tf_keras beside TensorFlow. `tfgcvit` needs an
environment of its own with TensorFlow 2.12: `--python tfgcvit=…` names its interpreter.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

OURS = {"gcvit_xxtiny": "GCViTXXTiny", "gcvit_tiny": "GCViTTiny", "gcvit_small": "GCViTSmall", "gpvit_l1": "GPViTL1"}
KECAM = {
    "gcvit_xxtiny": "gcvit.GCViT_XXTiny",
    "gcvit_tiny": "gcvit.GCViT_Tiny",
    "gcvit_small": "gcvit.GCViT_Small",
    "gpvit_l1": "gpvit.GPViT_L1",
}
# Of tfgcvit: it calls our two smallest variants by names of its own, and has no GPViT.
TFGCVIT = {"gcvit_xxtiny": "GCViTNano", "gcvit_tiny": "GCViTTiny", "gcvit_small": "GCViTSmall"}
ENVIRONMENTS = {
    "torch": {},
    "keras:torch": {"KERAS_BACKEND": "torch"},
    "keras:jax": {"KERAS_BACKEND": "jax"},
    "keras:tensorflow": {"KERAS_BACKEND": "tensorflow"},
    "kecam": {"TF_USE_LEGACY_KERAS": "1"},
    "tfgcvit": {},
}
Forward = Callable[[Any], object]


def build_torch(model: str, size: int) -> Forward:
    import torch

    import globalvit as gv

    built = gv.create_model(model, image_size=size).eval()

    def forward(images: Any) -> object:
        with torch.inference_mode():
            return built(torch.from_numpy(images).permute(0, 3, 1, 2))

    return forward


def build_keras(model: str, size: int) -> Forward:
    import globalvit.keras as gk

    shape = (size, size, 3)
    return getattr(gk, OURS[model])(weights=None, input_shape=shape, classifier_activation=None).predict_on_batch


def build_kecam(model: str, size: int) -> Forward:
    room, name = KECAM[model].split(".")
    module = importlib.import_module(f"keras_cv_attention_models.{room}")
    return getattr(module, name)(pretrained=None, input_shape=(size, size, 3)).predict_on_batch


def build_tfgcvit(model: str, size: int) -> Forward:
    import tfgcvit

    return getattr(tfgcvit, TFGCVIT[model])(weights=None, input_shape=(size, size, 3)).predict_on_batch


def limit_threads(implementation: str, threads: int) -> None:
    if implementation in ("torch", "keras:torch"):
        import torch

        torch.set_num_threads(threads)
    elif implementation != "keras:jax":  # XLA looks at the processors it may use
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)


def work(implementation: str, model: str, size: int, threads: int, batches: list[int]) -> None:
    """In its own process: build, warm up, then a forward pass for each batch size read, its seconds written."""
    import numpy as np

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    limit_threads(implementation, threads)
    builders = {"torch": build_torch, "kecam": build_kecam, "tfgcvit": build_tfgcvit}
    forward = builders.get(implementation, build_keras)(model, size)
    random = np.random.default_rng(0)
    images = {batch: random.normal(size=(batch, size, size, 3)).astype("float32") for batch in batches}
    for batch in 2 * batches:
        forward(images[batch])
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        forward(images[int(line)])
        print(time.perf_counter() - start, flush=True)


def start(implementation: str, options: argparse.Namespace, model: str) -> subprocess.Popen[str]:
    """The process in which `work` runs."""
    threads = str(options.threads)
    environment = os.environ | {"OMP_NUM_THREADS": threads, "TF_CPP_MIN_LOG_LEVEL": "3"} | ENVIRONMENTS[implementation]
    chosen = dict(pair.split("=", 1) for pair in options.python)
    words = [implementation, model, options.size, options.threads, *options.batch]
    return subprocess.Popen(
        [chosen.get(implementation, sys.executable), __file__, "--work", *map(str, words)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if options.verbose else subprocess.DEVNULL,
        text=True,
    )


def ask(worker: subprocess.Popen[str], batch: int) -> float:
    """Seconds of one forward pass there."""
    worker.stdin.write(f"{batch}\n")
    worker.stdin.flush()
    return float(worker.stdout.readline())


def is_ready(worker: subprocess.Popen[str]) -> bool:
    """Wait until it has built its model and warmed up; what else it prints is passed over."""
    return any(line == "ready\n" for line in worker.stdout)


def compare(options: argparse.Namespace, model: str) -> None:
    """One model in all implementations, in turn: a row for each and each batch size."""
    known = {"kecam": KECAM, "tfgcvit": TFGCVIT}
    names = ["torch", *(name for name in options.implementation if model in known.get(name, OURS))]
    started = {name: start(name, options, model) for name in names}
    workers = {name: worker for name, worker in started.items() if is_ready(worker)}
    for name in started.keys() - workers.keys():
        print(f"{name} did not run; --verbose shows why", file=sys.stderr)
    for batch in options.batch:
        taken = [{name: ask(worker, batch) for name, worker in workers.items()} for _ in range(options.repeats)]
        for name in workers:
            rate = batch / statistics.median(turn[name] for turn in taken)
            ratio = statistics.median(turn["torch"] / turn[name] for turn in taken)
            print(f"| {model} | {batch} | {name} | {rate:.2f} | {ratio:.2f} |", flush=True)
    for worker in started.values():
        worker.communicate()


def main() -> None:
    """Print the table in Markdown."""
    if sys.argv[1:2] == ["--work"]:
        implementation, model, *numbers = sys.argv[2:]
        size, threads, *batches = map(int, numbers)
        work(implementation, model, size, threads, batches)
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--implementation", nargs="+", default=["keras:torch", "keras:jax"], choices=ENVIRONMENTS)
    parser.add_argument("--model", nargs="+", default=["gcvit_xxtiny", "gpvit_l1"], choices=OURS)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--python", nargs="+", default=[], metavar="IMPLEMENTATION=PATH")
    parser.add_argument("--verbose", action="store_true", help="what the processes say")
    options = parser.parse_args()
    print(json.dumps({"threads": options.threads, "size": options.size, "repeats": options.repeats}))
    print("| model | batch | implementation | images/s | beside PyTorch |\n|---|---|---|---|---|")
    for model in options.model:
        compare(options, model)


if __name__ == "__main__":
    main()

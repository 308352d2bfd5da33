"""Every family and task as ONNX: file size, largest difference, latency beside PyTorch, and what is refused.

python benchmarks/export_table.py write FOLDER [NAME ...]   # exports, checks; minutes a model; goes on where it stopped
python benchmarks/export_table.py latency FOLDER            # a minute, one thread
python benchmarks/export_table.py table FOLDER

A NAME is a file's without suffix: gpvit_l1_retinanet, or gpvit_l1_retinanet-post with boxes found inside; all are
written unless some are named. Times are the processor's: other work on the machine changes them less than the clock's,
and with one thread both are the same where nothing else runs.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch

from globalvit.build import create_model
from globalvit.export import export_model
from globalvit.export.files import run_onnx
from globalvit.export.graph import Graph
from globalvit.export.plan import Plan

FAMILIES = ("gcvit_xxtiny", "gpvit_l1")
HEADS = ("", "_upernet", "_segformer", "_retinanet", "_mask_rcnn", "_cascade_mask_rcnn")
SIDE, REPEATS = 224, 3


def plans():
    """(name of the file, model, whether answers are found inside) of every row."""
    for family in FAMILIES:
        for head in HEADS:
            yield f"{family}{head}", f"{family}{head}", False
            if head.endswith(("net", "rcnn")) and head != "_upernet":
                yield f"{family}{head}-post", f"{family}{head}", True


def model_of(name):
    torch.manual_seed(0)
    return create_model(name).eval()


def write(folder, *stems):
    for stem, name, is_post in plans():
        said = folder / f"{stem}.json"
        if said.exists() or (stems and stem not in stems):
            continue
        start = time.process_time()
        try:
            # Fresh detectors are sure of nothing: at a threshold of 0 there are boxes to compare.
            options = {"postprocessing": is_post, "score_threshold": 0.0, "progress": print}
            report = export_model(model_of(name), folder / f"{stem}.onnx", **options)
            known = {
                "mib": report.size / 2**20,
                "sizes": sorted({(one.height, one.width) for one in report.checks}),
                "differences": {
                    batch: max(one.difference for one in report.checks if one.batch == batch) for batch in (1, 2, 3)
                },
            }
        except ValueError as error:
            known = {"refused": str(error)}
        known["seconds"] = time.process_time() - start
        print(stem, known, flush=True)
        said.write_text(json.dumps(known))


def latency(folder):
    for stem, name, is_post in plans():
        file, said = folder / f"{stem}.onnx", folder / f"{stem}.json"
        known = json.loads(said.read_text()) if said.exists() else {}
        if not file.exists() or "ms" in known:
            continue
        run = run_onnx(file)
        graph = Graph(model_of(name), Plan(format="onnx", has_postprocessing=is_post, score_threshold=0.0))
        images = graph.noise(1, SIDE, SIDE)
        times = {"ms": [], "eager_ms": []}
        with torch.inference_mode():
            for repeat in range(REPEATS + 1):
                for key, function in (("ms", run), ("eager_ms", graph)):
                    start = time.process_time()
                    function(images)
                    if repeat:
                        times[key].append(1000 * (time.process_time() - start))
        known |= {key: statistics.median(values) for key, values in times.items()}
        print(stem, known)
        said.write_text(json.dumps(known))


def table(folder):
    print("| model | inside | MiB | batch 1 | batch 2 | batch 3 | onnxruntime ms | PyTorch ms | ratio |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for stem, name, is_post in plans():
        said = folder / f"{stem}.json"
        known = json.loads(said.read_text()) if said.exists() else {}
        what = "answers" if is_post else "raw"
        if "mib" not in known:
            print(f"| {name} | {what} | {'refused: ' + known['refused'] if 'refused' in known else 'not run'} |")
            continue
        differences = " | ".join(f"{one:.1e}" for one in known["differences"].values())
        times = " | ".join(f"{known[key]:.0f}" for key in ("ms", "eager_ms")) if "ms" in known else "– | –"
        ratio = f"{known['ms'] / known['eager_ms']:.2f}" if "ms" in known else "–"
        print(f"| {name} | {what} | {known['mib']:.1f} | {differences} | {times} | {ratio} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    at = Path(sys.argv[2])
    at.mkdir(parents=True, exist_ok=True)
    {"write": write, "latency": latency, "table": table}[sys.argv[1]](at, *sys.argv[3:])

"""Speed and memory beside timm's gcvit_tiny, and the cost of a pixel: runs `globalvit benchmark`, prints the tables.

    python benchmarks/speed.py run FOLDER      # about a quarter of an hour on an idle machine; goes on where it stopped
    python benchmarks/speed.py table FOLDER

Every part is a process of its own and leaves its JSON in FOLDER; delete a file to have that part measured again.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

INFERENCE = ["--mode", "inference"]
BATCHES = ["--batch-size", "1,8"]
BESIDE_TIMM = ["--model", "gcvit_tiny", "--peer", "auto"]
GPVIT = ["--model", "gpvit_l1", "--peer", "timm:gcvit_tiny"]
TRAINING = ["--mode", "train", "--batch-size", "8"]
BOTH_ALONE = ["--model", "gcvit_tiny,gpvit_l1", *INFERENCE, "--batch-size", "1", "--compile", "deployed"]
PARTS = {
    "inference": [*BESIDE_TIMM, *INFERENCE, *BATCHES, "--compile", "eager,deployed", "--repeats", "15"],
    "training": [*BESIDE_TIMM, *TRAINING, "--repeats", "9"],
    "gpvit_inference": [*GPVIT, *INFERENCE, *BATCHES, "--compile", "eager,deployed", "--repeats", "9"],
    "gpvit_training": [*GPVIT, *TRAINING, "--repeats", "5"],
    "pixels_whole": [*BOTH_ALONE, "--image-size", "224,448,672,896", "--repeats", "7"],
    "pixels_padded": [*BOTH_ALONE, "--image-size", "256,384,512,1024", "--repeats", "5"],
    "fastest": [*BESIDE_TIMM, *INFERENCE, "--batch-size", "8", "--compile", "frozen,deployed", "--repeats", "9"],
}


def run(folder: Path) -> None:
    for part, words in PARTS.items():
        file = folder / f"{part}.json"
        if not file.exists():
            subprocess.run([sys.executable, "-m", "globalvit", "benchmark", *words, "--json", str(file)], check=True)


def rows(folder: Path, part: str) -> list[dict[str, Any]]:
    """What was measured; nothing where the part has not been run."""
    file = folder / f"{part}.json"
    return json.loads(file.read_text())["rows"] if file.exists() else []


def beside_timm(folder: Path) -> None:
    print("| network | mode | precision | batch | way | images/s | speed ratio | memory ratio |")
    print("|---|---|---|---:|---|---:|---:|---:|")
    for part in ("inference", "gpvit_inference", "training", "gpvit_training"):
        for row in rows(folder, part):
            if row["speed_ratios"]:
                (speed,), (memory,) = row["speed_ratios"].values(), row["memory_ratios"].values()
                what = [row[key] for key in ("network", "mode", "precision", "batch_size", "way")]
                figures = [f"{row['images_per_second']:.1f}", f"{speed:.2f}", f"{memory:.2f}"]
                print(f"| {' | '.join(map(str, what + figures))} |")


def fastest(folder: Path) -> None:
    print("\n| precision | deployed images/s | timm, compiled with frozen weights | ratio | ours so compiled |")
    print("|---|---:|---:|---:|---:|")
    found = {(row["precision"], row["source"], row["way"]): row for row in rows(folder, "fastest")}
    for precision in dict.fromkeys(precision for precision, _, _ in found):
        ours, theirs = found[precision, "globalvit", "deployed"], found[precision, "timm", "frozen"]
        pairs = zip(theirs["seconds"], ours["seconds"], strict=True)
        ratio = statistics.median(their / our for their, our in pairs)
        speeds = [one["images_per_second"] for one in (ours, theirs, found[precision, "globalvit", "frozen"])]
        print(f"| {precision} | {speeds[0]:.1f} | {speeds[1]:.1f} | {ratio:.2f} | {speeds[2]:.1f} |")


def pixels(folder: Path) -> None:
    print("\n| network | precision | pixels | ms | ns a pixel | to that at 224 |")
    print("|---|---|---:|---:|---:|---:|")
    found = rows(folder, "pixels_whole") + rows(folder, "pixels_padded")
    for row in sorted(found, key=lambda row: (row["network"], row["precision"], row["image_size"])):
        base = next(r for r in found if (r["network"], r["precision"]) == (row["network"], row["precision"]))
        ratio = row["ns_per_pixel"] / base["ns_per_pixel"]
        cells = [
            row["network"],
            row["precision"],
            row["image_size"][0],
            f"{row['ms']:.0f}",
            f"{row['ns_per_pixel']:.0f}",
        ]
        print(f"| {' | '.join(map(str, cells))} | {ratio:.2f} |")


def table(folder: Path) -> None:
    beside_timm(folder)
    fastest(folder)
    pixels(folder)


if __name__ == "__main__":
    at = Path(sys.argv[2])
    at.mkdir(parents=True, exist_ok=True)
    {"run": run, "table": table}[sys.argv[1]](at)

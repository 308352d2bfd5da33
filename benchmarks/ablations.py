"""The GC ViT paper's design choices, each trained from scratch with several seeds on a folder of images: one table.

    python benchmarks/ablations.py --data-dir FOLDER [--output ablations] [--seeds 3] [--epochs 8] [--minutes 45]

A cut-down gcvit_xxtiny (width 24, two blocks in each stage) learns images of 64 pixels on one thread. What is
compared are designs at the same width and depths, not at the same cost, so parameters and multiply-adds stand beside
the scores. All designs are trained with one seed before the next seed begins. Finished runs are kept in the output
folder and not trained again, an interrupted one goes on where it was; no run begins after `--minutes` of processor
time. `table.md` and `table.json` hold what is finished.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from globalvit.atomic import write_text
from globalvit.benchmark.complexity import count_macs
from globalvit.build import create_model
from globalvit.cli.main import main as globalvit
from globalvit.models.variants import VARIANTS

MODEL, SIDE = "gcvit_xxtiny", 64
# Shorter side of the copies that are trained on: decoding large photographs took a third of the time.
STORED_SIDE = 96
CUT_DOWN = replace(VARIANTS[MODEL], width=24, depths=(2, 2, 2, 2), drop_path=0.0)
SETTINGS = {
    "weights": "none",
    "img_size": SIDE,
    "batch_size": 32,
    "lr": 1e-3,
    "warmup_epochs": 2,
    "layer_decay": "none",
    "color_jitter": 0.0,
    "model_ema": False,
    "precision": "fp32",
    "device": "cpu",
    "workers": 0,
    "checkpoint_hist": 1,
}
# Row of the table → what it changes, and the top-1 that the paper prints for its tiny model on ImageNet-1K (table 5).
ROWS: dict[str, tuple[dict[str, Any], float | None]] = {
    "as published": ({}, 83.4),
    "conv_pool": ({"ablation": "conv_pool"}, 82.7),
    "patch_merging": ({"ablation": "patch_merging"}, 82.9),
    **{
        word: ({"ablation": word}, None)
        for word in ("patch_stem", "local_only", "shifted", "learned_query", "no_squeeze_excite")
    },
    "patch_stem, patch_merging, shifted": ({"ablation": "patch_stem,patch_merging,shifted"}, None),
    "windows 4, 4, 4, 2 for 2, 2, 4, 2": ({"window": (4, 4, 4, 2)}, None),
}
HEADER = (
    "| design | top-1, mean | lowest | highest | seeds | parameters | multiply-adds M | paper, ImageNet |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|\n"
)


def shrink(source: Path, target: Path) -> None:
    """Copies of the images with `STORED_SIDE` pixels on the shorter side, in the same folders."""
    for file in sorted(path for path in source.glob("*/*/*") if path.suffix.lower() in (".jpg", ".jpeg", ".png")):
        copy = (target / file.relative_to(source)).with_suffix(".png")
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            image = Image.open(file).convert("RGB")
            factor = STORED_SIDE / min(image.size)
            size = (round(image.width * factor), round(image.height * factor))
            image.resize(size, Image.Resampling.BICUBIC).save(copy)


def slug(row: str) -> str:
    """A row's name as part of a folder's."""
    return "-".join(row.replace(",", "").split())


def train(row: str, seed: int, options: argparse.Namespace) -> None:
    """One run, in a folder of its own; nothing where it is finished."""
    tag = f"{slug(row)}-{seed}"
    if read_summary(options.output / tag):
        return
    settings = SETTINGS | ROWS[row][0] | {"seed": seed, "epochs": options.epochs, "val_interval": options.epochs}
    settings |= {"data_dir": options.output / "images", "output": options.output, "tag": tag, "resume": "auto"}
    words = [
        f"--{key}={','.join(map(str, value)) if isinstance(value, tuple) else value}" for key, value in settings.items()
    ]
    if globalvit(["train", *words]) != 0 or not read_summary(options.output / tag):
        raise SystemExit(f"{tag} was not finished; the same command goes on with it")


def read_summary(run: Path) -> dict[str, Any]:
    """The summary of a finished run; nothing of any other."""
    file = run / "summary.json"
    summary = json.loads(file.read_text()) if file.exists() else {}
    return summary if summary.get("finished") else {}


def count(row: str) -> tuple[int, float]:
    """Parameters with ten classes, and multiply-adds of an image in millions."""
    with torch.device("meta"):
        model = create_model(MODEL, num_classes=10, image_size=SIDE, **ROWS[row][0])
    macs = count_macs(MODEL, SIDE, num_classes=10, **ROWS[row][0])
    return sum(parameter.numel() for parameter in model.parameters()), macs / 1e6


def scores(row: str, output: Path) -> list[float]:
    """Top-1 of the finished runs at their end, by seed."""
    summaries = [read_summary(run) for run in sorted(output.glob(f"{slug(row)}-?"))]
    return [summary["top1"] for summary in summaries if summary]


def write_table(output: Path) -> None:
    """Write what is finished, as Markdown and as JSON."""
    rows = []
    for row, (_, paper) in ROWS.items():
        params, macs = count(row)
        rows.append({"design": row, "top1": scores(row, output), "params": params, "macs": macs, "paper": paper})
    write_text(output / "table.json", json.dumps(rows, indent=2) + "\n")
    write_text(output / "table.md", HEADER + "".join(map(_line, rows)))


def _line(row: dict[str, Any]) -> str:
    top1 = row["top1"]
    figures = [f"{f(top1):.1f}" for f in (statistics.mean, min, max)] if top1 else ["–"] * 3
    paper = "–" if row["paper"] is None else f"{row['paper']:.1f}"
    cells = [row["design"], *figures, len(top1), f"{row['params']:,}", f"{row['macs']:.1f}", paper]
    return f"| {' | '.join(map(str, cells))} |\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="an image folder with train/ and val/")
    parser.add_argument("--output", type=Path, default=Path("ablations"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=45, help="processor time after which no run begins")
    options = parser.parse_args()
    torch.set_num_threads(1)
    VARIANTS[MODEL] = CUT_DOWN
    shrink(options.data_dir, options.output / "images")
    for seed in range(options.seeds):
        for row in ROWS:
            if time.process_time() < 60 * options.minutes:
                train(row, seed, options)
                write_table(options.output)
    sys.stdout.write((options.output / "table.md").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())

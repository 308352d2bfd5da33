"""Make label maps of a COCO data set, so that one set serves detection and segmentation.

Where objects overlap, the smaller one is seen. Example: python benchmarks/coco_to_masks.py ../shared/data/nuclei masks
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from globalvit.data.detection.dataset import open_detection
from globalvit.drawing.palette import default_palette


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="folder of the COCO data set")
    parser.add_argument("out", type=Path, help="folder to write, in ADE20K's layout")
    parser.add_argument("--splits", nargs="+", default=["train", "val"])
    options = parser.parse_args()
    for split in options.splits:
        names = write_split(options.source, options.out, split)
    (options.out / "classes.json").write_text(json.dumps(["background", *names]) + "\n")


def write_split(source: Path, out: Path, split: str) -> tuple[str, ...]:
    """Write the images and labels of a split; returns the names of the objects' classes."""
    data = open_detection(source, split, need_masks=True)
    for part in ("images", "annotations"):
        (out / part / split).mkdir(parents=True)
    for index in range(len(data)):
        image, objects = data.read(index)
        labels = np.zeros((image.height, image.width), np.uint8)
        for place in np.argsort(-objects.areas, kind="stable"):
            labels[objects.masks[place].bitmap() > 0] = objects.labels[place] + 1
        name = f"{Path(data.name(index)).stem}.png"
        image.save(out / "images" / split / name)
        labeled = Image.fromarray(labels)
        labeled.putpalette(default_palette(len(data.classes) + 1).tobytes())
        labeled.save(out / "annotations" / split / name)
    return data.classes


if __name__ == "__main__":
    main()

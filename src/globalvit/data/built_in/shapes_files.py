"""Writes the built-in shapes as files, in one folder that serves all three tasks.

images/{train,val}/00000.png          images of one to four shapes
annotations/{train,val}/00000.png     their labels, for segmentation
annotations/instances_{train,val}.json   their objects, in COCO's form
classes.json                          names and colors of the labels
classify/{train,val}/CLASS/00000.png  images of one shape each
"""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
from PIL import Image

from globalvit.data.built_in.shapes import KINDS, SIDE, TOTALS, ClassifyShapes, Scene, SegmentShapes
from globalvit.data.detection.instances import RunLengths

# With gaps, as COCO's own have them.
CATEGORY_IDS = (1, 3, 7)
FOLDER_MODE = 0o755


def write_shapes(
    out: Path,
    *,
    totals: Mapping[str, int] = TOTALS,
    side: int = SIDE,
    seed: int = 0,
    on_start: Callable[[int], None] = lambda _: None,
    on_image: Callable[[], None] = lambda: None,
) -> None:
    """Write the set; the folder appears when it is complete.

    Args:
        out: a folder that does not exist, or is empty.
        totals: images of `train` and `val`, for segmentation and detection; to classify there are as many more.
        side: of the images in pixels.
        seed: of the whole set.
        on_start: called with the number of images before the first is drawn.
        on_image: called after each image.

    Raises:
        FileExistsError: the folder holds something, or is a file.
        ValueError: what the built-in set refuses.
        OSError: it cannot be written.
    """
    views = [(SegmentShapes(split, total, seed=seed, side=side), split) for split, total in totals.items()]
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} holds something already; give a new or an empty folder")
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    on_start(2 * sum(totals.values()))
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.absolute().parent))
    try:
        for view, split in views:
            _write_labeled(temporary, split, view, on_image)
            singles = ClassifyShapes(split, len(view), seed=seed, side=side)
            _write_classes(temporary / "classify" / split, singles, on_image)
        (temporary / "classes.json").write_text(json.dumps(_class_list(), indent=2) + "\n", encoding="utf-8")
        temporary.chmod(FOLDER_MODE)
        # An empty folder of that name is replaced.
        temporary.replace(out)
    except BaseException:
        rmtree(temporary, ignore_errors=True)
        raise


def _write_labeled(root: Path, split: str, view: SegmentShapes, on_image: Callable[[], None]) -> None:
    """Images, label maps and the COCO file of one split."""
    images, annotations = root / "images" / split, root / "annotations"
    images.mkdir(parents=True)
    (annotations / split).mkdir(parents=True)
    palette = view.palette.flatten().tolist()
    coco: dict[str, Any] = {"images": [], "annotations": [], "categories": _categories()}
    for index in range(len(view)):
        scene, file = view.scene(index), f"{index:05}.png"
        scene.image.save(images / file)
        labels = Image.frombytes("P", scene.image.size, scene.labels.tobytes())
        labels.putpalette(palette)
        labels.save(annotations / split / file)
        image_id = index + 1
        coco["images"].append({"id": image_id, "file_name": f"{split}/{file}", "width": view.side, "height": view.side})
        coco["annotations"] += _annotations(scene, image_id)
        on_image()
    (annotations / f"instances_{split}.json").write_text(json.dumps(coco) + "\n", encoding="utf-8")


def _write_classes(root: Path, view: ClassifyShapes, on_image: Callable[[], None]) -> None:
    """Images of one split in a folder for each class."""
    for name in view.classes:
        (root / name).mkdir(parents=True)
    for index in range(len(view)):
        view.read(index).save(root / view.classes[view.label(index)] / f"{index:05}.png")
        on_image()


def _class_list() -> list[dict[str, Any]]:
    view = SegmentShapes("train")
    return [{"name": name, "color": color} for name, color in zip(view.classes, view.palette.tolist(), strict=True)]


def _categories() -> list[dict[str, Any]]:
    return [
        {"id": number, "name": name, "supercategory": "shape"} for number, name in zip(CATEGORY_IDS, KINDS, strict=True)
    ]


def _annotations(scene: Scene, image_id: int) -> list[dict[str, Any]]:
    found = scene.instances
    assert found.masks is not None
    annotations: list[dict[str, Any]] = []
    for place, mask in enumerate(found.masks):
        left, top, right, bottom = found.boxes[place].tolist()
        bitmap = mask.bitmap()
        outline, runs = outline_of(bitmap), RunLengths.of(bitmap)
        annotations.append(
            {
                "id": int(found.ids[place]),
                "image_id": image_id,
                "category_id": CATEGORY_IDS[int(found.labels[place])],
                "bbox": [left, top, right - left, bottom - top],
                "area": int(found.areas[place]),
                "segmentation": [outline] if outline else {"size": list(runs.size), "counts": list(runs.counts)},
                "iscrowd": 0,
            }
        )
    return annotations


def outline_of(bitmap_HW: np.ndarray) -> list[float] | None:
    """The polygon x, y, x, y, … along the pixels' edges, or None of a mask that has gaps in a row or a column of rows.

    What has its pixels side by side in every row is filled by this polygon exactly; other masks are kept as runs.
    """
    rows = np.flatnonzero(bitmap_HW.any(axis=1))
    starts = bitmap_HW.argmax(axis=1)[rows]
    ends = starts + bitmap_HW.sum(axis=1, dtype=np.int64)[rows]
    spans: list[tuple[int, int, int]] = np.stack([rows, starts, ends], axis=1).tolist()
    if not all(bitmap_HW[row, start:end].all() for row, start, end in spans) or np.ptp(rows) + 1 != len(rows):
        return None
    left = [(start, row + below) for row, start, _ in spans for below in (0, 1)]
    right = [(end, row + below) for row, _, end in spans for below in (0, 1)]
    return [float(value) for point in _without_straight([*left, *right[::-1]]) for value in point]


def _without_straight(points: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """A closed polygon without the points that lie on a straight line between their neighbors."""
    kept: list[tuple[int, int]] = []
    for place, (x, y) in enumerate(points):
        (x_before, y_before), (x_after, y_after) = points[place - 1], points[(place + 1) % len(points)]
        if not (x_before == x == x_after or y_before == y == y_after):
            kept.append((x, y))
    return kept

"""One small set of images with objects, written in every format that is read."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("apple", "pear", "plum")
WIDTH, HEIGHT = 60, 44
# Per image: label and outline of each object, in whole pixels; an image without objects too.
IMAGES = {
    "train/0.png": [(0, (6, 5, 30, 5, 30, 25, 6, 25)), (2, (10, 8, 50, 8, 40, 40))],
    "train/1.png": [(1, (0, 0, 21, 0, 21, 17, 0, 17))],
    "train/2.png": [],
    "train/3.png": [(1, (33, 12, 60, 12, 60, 44, 33, 44)), (0, (3, 3, 17, 3, 17, 41, 3, 41))],
    "val/8.png": [(2, (7, 9, 47, 9, 47, 31, 7, 31))],
    "val/9.png": [(0, (1, 2, 11, 2, 11, 40, 1, 40)), (1, (20, 20, 40, 20, 40, 30, 20, 30))],
}


def split_of(name):
    return name.split("/")[0]


def of_split(split):
    return {name: objects for name, objects in IMAGES.items() if split_of(name) == split}


def box_of(outline):
    """Left, top, right and bottom."""
    return min(outline[0::2]), min(outline[1::2]), max(outline[0::2]), max(outline[1::2])


def area_of(outline):
    x, y = np.array(outline[0::2]), np.array(outline[1::2])
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)


def save_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(int(path.stem))
    Image.fromarray(random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)


def coco(split, place="{stem}.png"):
    """COCO's JSON of a split; `place` is the file name."""
    images, rows = [], []
    for at, (name, objects) in enumerate(of_split(split).items()):
        file_name = place.format(stem=Path(name).stem, name=name)
        images.append({"id": at + 1, "file_name": file_name, "width": WIDTH, "height": HEIGHT})
        for label, outline in objects:
            left, top, right, bottom = box_of(outline)
            row = {"id": len(rows) + 1, "image_id": at + 1, "category_id": label + 1, "iscrowd": 0}
            row |= {"bbox": [left, top, right - left, bottom - top], "area": area_of(outline)}
            rows.append(row | {"segmentation": [list(outline)]})
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(NAMES)]
    return {"images": images, "annotations": rows, "categories": categories}


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def save_images(root, place, splits=("train", "val")):
    for name in IMAGES:
        if split_of(name) in splits:
            save_image(root / place.format(split=split_of(name), stem=Path(name).stem))


def write_coco(root):
    """As COCO is unpacked."""
    save_images(root, "{split}2017/{stem}.png")
    for split in ("train", "val"):
        write_json(root / "annotations" / f"instances_{split}2017.json", coco(split))


def write_roboflow(root):
    for split, folder in (("train", "train"), ("val", "valid")):
        for name in of_split(split):
            save_image(root / folder / Path(name).name)
        write_json(root / folder / "_annotations.coco.json", coco(split))


def write_cvat(root):
    """CVAT's export of a task: one file of all images."""
    save_images(root, "images/default/{stem}.png", ["train"])
    write_json(root / "annotations" / "instances_default.json", coco("train"))


def write_label_studio(root):
    save_images(root, "images/{stem}.png", ["train"])
    write_json(root / "result.json", coco("train", r"images\{stem}.png"))


def write_labelme2coco(root):
    save_images(root, "{stem}.png")
    for split in ("train", "val"):
        write_json(root / f"{split}.json", coco(split))


def yolo_lines(objects, outlines=True):
    for label, outline in objects:
        values = [value / side for value, side in zip(outline, [WIDTH, HEIGHT] * (len(outline) // 2), strict=True)]
        if not outlines:
            left, top, right, bottom = box_of(outline)
            values = [(left + right) / 2 / WIDTH, (top + bottom) / 2 / HEIGHT]
            values += [(right - left) / WIDTH, (bottom - top) / HEIGHT]
        yield " ".join([str(label), *map(repr, values)])


def write_yolo(root, images="images/{split}/{stem}.png", labels="labels/{split}/{stem}.txt", outlines=True, **settings):
    """Ultralytics' layout; an image without objects has no label file."""
    save_images(root, images)
    for name, objects in IMAGES.items():
        if objects:
            path = root / labels.format(split=split_of(name), stem=Path(name).stem)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(yolo_lines(objects, outlines)) + "\n")
    settings = {"path": "../somewhere/else", "train": "images/train", "val": "images/val", "names": NAMES} | settings
    lines = [f"{key}: {json.dumps(value)}" for key, value in settings.items() if value is not None]
    (root / "data.yaml").write_text("\n".join(lines) + "\n")


def write_yolo_by_split(root):
    """Roboflow's layout and paths, with names by number."""
    places = {"train": "../train/images", "val": "../val/images", "test": "../test/images"}
    names = {str(label): name for label, name in enumerate(NAMES)}
    write_yolo(root, "{split}/images/{stem}.png", "{split}/labels/{stem}.txt", path=None, names=names, nc=3, **places)


def write_yolo_lists(root):
    write_yolo(root, train="train.txt", val="lists/val.txt", path=".")
    (root / "lists").mkdir()
    (root / "train.txt").write_text("".join(f"./images/{name}\n" for name in of_split("train")))
    (root / "lists" / "val.txt").write_text("".join(f"images/{name}\n" for name in of_split("val")))


def xml(name, objects, size=(WIDTH, HEIGHT), first=1):
    """An XML file; pixels are counted from `first`."""
    parts = [f"<annotation><filename>{name}</filename>"]
    parts += [f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"]
    for label, outline in objects:
        left, top, right, bottom = box_of(outline)
        corners = {"xmin": left + first, "ymin": top + first, "xmax": right, "ymax": bottom}
        box = "".join(f"<{key}>{value}</{key}>" for key, value in corners.items())
        parts.append(f"\n<object><name>{NAMES[label]}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>")
    return "".join([*parts, "\n</annotation>"])


def write_voc(root):
    save_images(root, "JPEGImages/{stem}.png")
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for name, objects in IMAGES.items():
        stem = Path(name).stem
        (root / "Annotations" / f"{stem}.xml").write_text(xml(f"{stem}.png", objects))
    for split in ("train", "val"):
        names = [f"{Path(name).stem}\n" for name in of_split(split)]
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(names))
        (root / "ImageSets" / "Main" / f"apple_{split}.txt").write_text("0 -1\n")


def write_voc_flat(root):
    """XML beside the images of each split."""
    save_images(root, "{split}/{stem}.png")
    for name, objects in IMAGES.items():
        if objects:
            (root / name).with_suffix(".xml").write_text(xml(Path(name).name, objects, first=0))


def write_voc_by_split(root):
    """A folder per split, with images and XML in folders of their own."""
    save_images(root, "{split}/images/{stem}.png")
    for name, objects in IMAGES.items():
        path = root / split_of(name) / "Annotations" / f"{Path(name).stem}.xml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(xml(Path(name).name, objects))


WITH_OUTLINES = {
    "roboflow": write_roboflow,
    "cvat": write_cvat,
    "label studio": write_label_studio,
    "labelme2coco": write_labelme2coco,
    "yolo": write_yolo,
    "yolo by split": write_yolo_by_split,
    "yolo lists": write_yolo_lists,
}
BOXES_ONLY = {
    "yolo boxes": lambda root: write_yolo(root, outlines=False),
    "voc": write_voc,
    "voc flat": write_voc_flat,
    "voc by split": write_voc_by_split,
}
UNSPLIT = ("cvat", "label studio")

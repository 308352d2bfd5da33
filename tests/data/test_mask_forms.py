"""One set for segmentation in every form that people have, and what is wrong with some of them."""

import json

import numpy as np
import pytest
from PIL import Image

from globalvit.data.detection.instances import RunLengths
from globalvit.data.segmentation.checks import check_masks
from globalvit.data.segmentation.registry import find_format, open_labeled
from globalvit.data.segmentation.transforms import SegmentTrainTransform

NAMES = ("background", "road", "car")
COLORS = ((0, 0, 0), (128, 64, 128), (0, 0, 142))
HEIGHT, WIDTH = 20, 24


def areas(index):
    """Left, top, width, height and class of the rectangles in image `index`."""
    return [(2 + index, 3, 9, 6, 1), (14, 10, 7, 8, 2)]


def label_map(index):
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for left, top, width, height, label in areas(index):
        labels[top : top + height, left : left + width] = label
    return labels


def colored(labels, colors=COLORS):
    return Image.fromarray(np.array(colors, np.uint8)[labels])


def palette(labels, colors):
    image = Image.fromarray(labels).convert("P")
    image.putdata(labels.ravel().tolist())
    image.putpalette(np.array(colors, np.uint8).tobytes())
    return image


def write_images(root, folder):
    (root / folder).mkdir(parents=True)
    for index in range(3):
        values = np.random.default_rng(index).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(values).save(root / folder / f"{index}.png")


def write_maps(root, make, *, labels="annotations/train", name="{}.png", images="images/train", **options):
    write_images(root, images)
    (root / labels).mkdir(parents=True, exist_ok=True)
    for index in range(3):
        make(label_map(index)).save(root / labels / name.format(index), **options)
    (root / "classes.json").write_text(json.dumps(NAMES))
    return root


def write_table(root, file, text, make=colored, **options):
    write_maps(root, make, **options)
    (root / "classes.json").unlink()
    (root / file).write_text(text)
    return root


def write_by_class(root, name, value=255):
    write_images(root, "images/train")
    for index in range(3):
        for label in (1, 2):
            path = root / "masks" / "train" / name.format(NAMES[label], index)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((label_map(index) == label).astype(np.uint8) * value).save(path)
    (root / "classes.json").write_text(json.dumps(NAMES))
    return root


def polygon(index, left, top, width, height):
    right, bottom = left + width, top + height
    return [[left, top, right, top, right, bottom, left, bottom]]


def run_lengths(index, left, top, width, height):
    bitmap = np.zeros((HEIGHT, WIDTH), np.uint8)
    bitmap[top : top + height, left : left + width] = 1
    return {"size": [HEIGHT, WIDTH], "counts": list(RunLengths.of(bitmap).counts)}


def write_coco(root, outline, file="annotations/instances_train.json", images="train"):
    write_images(root, images)
    rows = [
        {"id": 2 * index + at + 1, "image_id": index + 1, "category_id": label, "iscrowd": 0, "area": w * h}
        | {"bbox": [x, y, w, h], "segmentation": outline(index, x, y, w, h)}
        for index in range(3)
        for at, (x, y, w, h, label) in enumerate(areas(index))
    ]
    content = {
        "images": [{"id": at + 1, "file_name": f"{at}.png", "width": WIDTH, "height": HEIGHT} for at in range(3)],
        "annotations": rows,
        "categories": [{"id": 1, "name": "road"}, {"id": 2, "name": "car"}],
    }
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(content))
    return root


CSV = "name,r,g,b\nbackground,0,0,0\nroad,128,64,128\ncar,0,0,142\n"
CVAT = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,64,128::\ncar:0,0,142::\n"
FORMS = {
    "numbers": lambda root: write_maps(root, Image.fromarray),
    "palette": lambda root: write_maps(root, lambda labels: palette(labels, COLORS)),
    "palette in another order": lambda root: write_table(
        root, "class_dict.csv", CSV, lambda labels: palette(2 - labels, COLORS[::-1])
    ),
    "class_dict.csv": lambda root: write_table(root, "class_dict.csv", CSV),
    "CamVid": lambda root: write_table(
        root, "class_dict.csv", CSV, images="train", labels="train_labels", name="{}_L.png"
    ),
    "labelmap.txt": lambda root: write_table(root, "labelmap.txt", CVAT),
    "label_colors.txt": lambda root: write_table(
        root, "label_colors.txt", "0 0 0 background\n128 64 128\t\troad\n0 0 142 car\n"
    ),
    "JSON table": lambda root: write_table(root, "classes.json", json.dumps(dict(zip(NAMES, COLORS, strict=True)))),
    "tif": lambda root: write_maps(root, Image.fromarray, name="{}.tif", compression="tiff_lzw"),
    "bmp": lambda root: write_maps(root, Image.fromarray, name="{}.bmp"),
    "colors in bmp": lambda root: write_table(root, "class_dict.csv", CSV, name="{}.bmp"),
    "marked": lambda root: write_maps(root, Image.fromarray, name="{}_mask.png", labels="masks/train"),
    "labelIds": lambda root: write_maps(root, Image.fromarray, name="{}_labelIds.png"),
    "beside": lambda root: write_maps(root, Image.fromarray, images="train", labels="train", name="{}_gt.png"),
    "folder per class": lambda root: write_by_class(root, "{}/{}.png"),
    "file per class": lambda root: write_by_class(root, "{1}_{0}.png", 1),
    "polygons": lambda root: write_coco(root, polygon),
    "run lengths": lambda root: write_coco(root, run_lengths),
    "Roboflow": lambda root: write_coco(root, polygon, "train/_annotations.coco.json"),
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return samples(FORMS["numbers"](tmp_path_factory.mktemp("expected")))


def samples(root):
    """All samples of the training split, and a batch as training sees it."""
    form = None if find_format(root) else "coco"
    source = open_labeled(root, "train", form=form)
    assert source.classes == NAMES
    read = [source.read(index) for index in range(len(source))]
    transform = SegmentTrainTransform(image_size=(16, 16), short_side=20, long_side=80)
    items = [transform(sample, 0, 0, index) for index, sample in enumerate(read)]
    batch = {"images": [item[0] for item in items], "labels": [item[1] for item in items]}
    return [(np.asarray(image), labels) for image, labels in read], batch


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_samples(tmp_path, expected, form):
    read, batch = samples(FORMS[form](tmp_path))
    for (image, labels), (wanted, wanted_labels) in zip(read, expected[0], strict=True):
        np.testing.assert_array_equal(image, wanted)
        np.testing.assert_array_equal(labels, wanted_labels)
    for name, values in expected[1].items():
        assert all((one == other).all() for one, other in zip(batch[name], values, strict=True))


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("CamVid", "masks, one label map per image, train_labels"),
        ("folder per class", "class-masks, one mask per class, masks/train"),
    ],
)
def test_the_check_names_the_form(tmp_path, form, text):
    report = check_masks(FORMS[form](tmp_path))
    assert [note.text for note in report.notes if note.kind == "format"] == [text]
    assert not report.problems


VOID = "name,r,g,b\nbackground,0,0,0\nVoid,9,9,9\nroad,128,64,128\ncar,0,0,142\n"


@pytest.mark.parametrize("kind", ["colors", "numbers", "palette"])
def test_void_of_a_color_table_is_ignored(tmp_path, kind):
    colors = [(0, 0, 0), (9, 9, 9), *COLORS[1:]]

    def make(labels):
        numbers = np.where(labels > 0, labels + 1, 0).astype(np.uint8)
        numbers[0] = 1
        return {"colors": lambda: colored(numbers, colors), "palette": lambda: palette(numbers, colors)}.get(
            kind, lambda: Image.fromarray(numbers)
        )()

    source = open_labeled(write_table(tmp_path, "class_dict.csv", VOID, make), "train")
    labels = label_map(0)
    labels[0] = 255
    assert source.classes == NAMES
    np.testing.assert_array_equal(source.read(0)[1], labels)


def test_background_is_ignored_by_reduce_zero_label(tmp_path):
    source = open_labeled(write_coco(tmp_path, polygon), "train", form="coco", reduce_zero_label=True)
    assert source.classes == NAMES[1:]
    np.testing.assert_array_equal(source.read(0)[1], label_map(0) - np.uint8(1))


def overlapping(root):
    write_by_class(root, "{}/{}.png")
    Image.fromarray(np.full((HEIGHT, WIDTH), 255, np.uint8)).save(root / "masks/train/car/0.png")
    return root


def smooth(root):
    write_by_class(root, "{}/{}.png")
    Image.fromarray(np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)).save(
        root / "masks/train/car/0.png"
    )
    return root


def other_size(root):
    write_by_class(root, "{}/{}.png")
    Image.new("L", (5, 4)).save(root / "masks/train/road/0.png")
    return root


def without(root):
    write_by_class(root, "{}/{}.png")
    for name in ("road", "car"):
        (root / "masks" / "train" / name / "1.png").unlink()
    return root


def unlisted(root):
    (write_by_class(root, "{}/{}.png") / "classes.json").write_text('["background", "road"]')
    return root


def several(root):
    write_maps(root, Image.fromarray, name="{}_mask.png")
    Image.fromarray(label_map(0)).save(root / "annotations/train/0_gt.png")
    return root


def two_forms(root):
    write_maps(root, Image.fromarray)
    (root / "annotations/train/car").mkdir()
    Image.fromarray(label_map(0)).save(root / "annotations/train/car/0.png")
    return root


def lossy(root):
    return write_maps(root, Image.fromarray, name="{}.tif", compression="jpeg")


def paged(root):
    return write_maps(
        root, Image.fromarray, name="{}.tif", save_all=True, append_images=[Image.new("L", (WIDTH, HEIGHT))]
    )


def half_known(labels):
    return palette(labels, [(0, 0, 142), (1, 2, 3), (4, 5, 6)])


REFUSED = {
    "unknown color": (
        lambda root: write_table(root, "class_dict.csv", CSV.replace("142", "141")),
        r"annotations/train/0\.png has the color 0,0,142 at 14,10, which no class has \(56 of 480 pixels\); add it to "
        r"the color table \(classes\.json, class_dict\.csv or labelmap\.txt\), by the name void if it is to be ignored",
    ),
    "colors without a table": (
        lambda root: write_maps(root, colored),
        r"0\.png holds colors, not class numbers \(0,0,0; 0,0,142; 128,64,128\); give each class its color in "
        r"classes\.json, .*, in class_dict\.csv as name,r,g,b or in labelmap\.txt as name:r,g,b::",
    ),
    "a palette known in part": (
        lambda root: write_table(root, "class_dict.csv", CSV, half_known),
        r"0\.png has a palette in which 0 has the color of class number 2, 0,0,142, and no class has the color 1,2,3; "
        r"expected the colors of .*, or none of them: correct one of the two",
    ),
    "one color twice": (
        lambda root: write_table(root, "class_dict.csv", CSV + "bus,0,0,142\n"),
        r"class_dict\.csv: several classes have the same color: '0,0,142'; give each class its own",
    ),
    "no color": (
        lambda root: write_table(root, "class_dict.csv", CSV + "bus,0,0\n"),
        r"class_dict\.csv: line 5 is 'bus,0,0'; expected name,r,g,b with three numbers 0 … 255",
    ),
    "a color out of range": (
        lambda root: write_table(root, "labelmap.txt", CVAT + "bus:0,0,256::\n"),
        r"labelmap\.txt: line 5 is 'bus:0,0,256::'; expected name:r,g,b:: with three numbers 0 … 255",
    ),
    "16 bits": (
        lambda root: write_maps(root, lambda labels: Image.fromarray(labels.astype(np.uint16) * 1000)),
        r"0\.png has label 1000 .* 16-bit values, as of instance ids; export class numbers of 8 bits",
    ),
    "lossy TIFF": (lossy, r"0\.tif is a TIFF file compressed as jpeg, which changes class numbers; export it again"),
    "pages": (paged, r"0\.tif has 2 pages; expected one label map per file, so save each page on its own"),
    "several label maps": (
        several,
        r"1 images in .* have several label maps in .*, the first of them '0_gt\.png', '0_mask\.png'; expected one",
    ),
    "two forms": (
        two_forms,
        r"fits 2 formats: masks \(one label map per image, annotations/train\) and class-masks \(one mask per class, "
        r"annotations/train\); choose one with --format NAME",
    ),
    "overlap": (
        overlapping,
        r"car/0\.png and .*road/0\.png both mark 54 pixels, the first at 2,3; expected one class per pixel, so correct",
    ),
    "smooth": (smooth, r"car/0\.png holds the values 0, 1, 2, 3, …, .*; expected a mask of one class, 0 and one other"),
    "other size": (other_size, r"road/0\.png is 5×4, but .*car/0\.png is 24×20: all need one size"),
    "no mask": (without, r"1 of 3 images in .* have no mask of any class in .*: '1\.png'; add masks, all black where"),
    "unknown class": (unlisted, r"holds masks of 'car', but the classes are 'background', 'road'; rename the masks or"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused(tmp_path, case):
    write, message = REFUSED[case]
    root = write(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_all(root)


def read_all(root):
    source = open_labeled(root, "train")
    return [source.read(index) for index in range(len(source))]


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        ("polygons", {"form": "coco", "num_classes": 5}, "give 3 classes, 'background', 'road', 'car', and 5 are exp"),
        (
            "polygons",
            {"form": "coco", "ignore_label": 3},
            "--ignore-label is for label maps in files, and --format coco",
        ),
        ("polygons", {"form": "coco", "classes": NAMES[:2]}, "are of 'car', which is not among the 2 classes of the"),
        (
            "folder per class",
            {"ignore_label": 3},
            "--ignore-label is for files of class numbers, and .* holds one mask",
        ),
        ("folder per class", {"form": "masks"}, r"does not hold data in the format masks; it fits class-masks \(one"),
        ("numbers", {"form": "mask"}, "unknown format 'mask'; .*expected one of masks, class-masks, coco, yolo"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, form, options, message):
    with pytest.raises(ValueError, match=message):
        open_labeled(FORMS[form](tmp_path), "train", **options)

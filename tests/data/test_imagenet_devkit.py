"""ImageNet's validation images in one folder, with their labels in the files that are around."""

import pytest
from PIL import Image

from globalvit.data.classification.checks import check_folder
from globalvit.data.classification.dataset import open_split
from globalvit.data.classification.imagenet import imagenet_names, imagenet_synsets
from globalvit.data.classification.suites import read_real_labels

# ILSVRC2012_IDs in any order but that of the WordNet ids.
ORDER = sorted(range(1000), key=lambda index: index * 617 % 1000)
DEVKIT, GROUND = "ILSVRC2012_devkit_t12/data", "ILSVRC2012_validation_ground_truth.txt"
BY_IMAGE = "imagenet_2012_validation_synset_labels.txt"


@pytest.fixture(scope="module")
def real():
    """The first label that ReaL has for each of the first 12 images that have one, by image number."""
    labels = {number: found[0] for number, found in enumerate(read_real_labels(), 1) if found}
    return dict(list(labels.items())[:12])


@pytest.fixture
def make_val(tmp_path, real):
    """Make val with 12 images, and files with labels by their paths."""

    def make(files):
        (tmp_path / "val").mkdir()
        for number in real:
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "val" / f"ILSVRC2012_val_{number:08}.JPEG", "PNG")
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return make


def lines(values):
    return "".join(f"{value}\n" for value in values)


@pytest.fixture(params=["kaggle", "by image", "devkit", "map"])
def files(request, real):
    """Labels in one of the forms they come in."""
    synsets = imagenet_synsets()
    by_image = [real.get(number, 0) for number in range(1, max(real) + 1)]
    ids = lines(ORDER.index(label) + 1 for label in by_image)
    rows = [f"ILSVRC2012_val_{at:08},{synsets[label]} 1 2 3 4 {synsets[0]} 1 2 3 4" for at, label in real.items()]
    return {
        "kaggle": {"LOC_val_solution.csv": lines(["ImageId,PredictionString", *rows])},
        "by image": {BY_IMAGE: lines(synsets[label] for label in by_image)},
        "devkit": {
            f"{DEVKIT}/{GROUND}": ids,
            f"{DEVKIT}/synsets.txt": lines(synsets[index] for index in ORDER),
        },
        "map": {
            GROUND: ids,
            "map_clsloc.txt": lines(f"{synsets[index]} {ORDER.index(index) + 1} some_name" for index in range(1000)),
        },
    }[request.param]


def test_labels_are_read_in_every_form(make_val, files, real):
    data = make_val(files)
    for classes in (None, imagenet_names(), imagenet_synsets()[::-1]):
        source = open_split(data, "val", classes)
        found = [source.classes[source.label(index)] for index in range(12)]
        names = imagenet_names() if classes == imagenet_names() else imagenet_synsets()
        assert found == [names[label] for label in real.values()]
        assert source.read(0).size == (8, 8)
    report = check_folder(data)
    assert (report.problems, {split.name: split.images for split in report.splits}["val"]) == ([], 12)


def test_a_list_in_another_order_is_refused(make_val, real):
    ids = lines(ORDER.index(real.get(number, 0)) + 1 for number in range(1, 90))
    data = make_val({GROUND: ids, "synsets.txt": lines(imagenet_synsets())})
    message = "agree with those of ImageNet-ReaL for 0 of 12 images; expected nine in ten: they are in another order"
    with pytest.raises(ValueError, match=message):
        open_split(data, "val")
    assert message in check_folder(data).problems[0].text


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no file with their labels is found; put LOC_val_solution.csv, "),
        ({GROUND: "490\n"}, "holds ILSVRC2012_IDs, whose WordNet ids are in the kit's"),
        ({"LOC_val_solution.csv": "a,b\n"}, "expected ImageId,PredictionString, such as n01440764, got nothing"),
        ({BY_IMAGE: "tench\n" * 99}, "one WordNet id per line.*got 'tench'"),
        ({BY_IMAGE: "n01440764\n"}, "has no label in .*; expected images named ILS"),
        (
            {GROUND: "3\n" * 99, "synsets.txt": "n01440764\nn01443537\n"},
            "has the number 3; expected ILSVRC2012_IDs from 1 to 2",
        ),
    ],
)
def test_files_that_say_too_little_are_refused(make_val, files, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_split(make_val(files), "val")

"""Folders of labeled images, and what users read when they are not as expected."""

import pickle

import pytest

from globalvit.data.classification.dataset import ImageFolder, open_split
from globalvit.data.common.names import Names


def test_classes_are_sorted_by_code_point_and_images_by_path(make_folder):
    root = make_folder({"train": {"b": 2, "a": 1, "Z": 1, "10": 1, "9": 1}}) / "train"
    source = ImageFolder(root)
    assert source.classes == ("10", "9", "Z", "a", "b")
    assert [source.label(index) for index in range(len(source))] == [0, 1, 2, 3, 4, 4]
    assert source.name(5) == str(root / "b" / "001.png")
    assert source.read(5).size == (24, 20)


def test_images_lie_at_any_depth_and_other_files_are_counted(make_folder):
    root = make_folder({"train": {"a": 1, "b/deep/er": 2}}) / "train"
    (root / "a" / "notes.txt").write_text("x")
    (root / "a" / "._000.png").write_text("left by macOS")
    (root / "a" / "UPPER.JPEG").write_bytes((root / "a" / "000.png").read_bytes())
    (root / ".hidden").mkdir()
    source = ImageFolder(root)
    assert source.classes == ("a", "b")
    assert [source.label(index) for index in range(len(source))] == [0, 0, 1, 1]
    assert source.other_files == 1
    assert source.read(1).mode == "RGB"


def test_a_source_survives_pickling(make_folder):
    source = ImageFolder(make_folder({"train": {"ä": 2}}) / "train")
    copy = pickle.loads(pickle.dumps(source))
    assert (copy.classes, copy.name(1), len(copy)) == (source.classes, source.name(1), 2)


def test_names_keep_bytes_that_are_no_text():
    names = Names(["a", "", "ü/é.jpg", "\udcff.png"])
    assert [names[index] for index in range(len(names))] == ["a", "", "ü/é.jpg", "\udcff.png"]
    with pytest.raises(IndexError):
        names[4]


def test_given_classes_decide_the_labels(make_folder):
    source = ImageFolder(make_folder({"val": {"a": 1, "b": 2}}) / "val", classes=("b", "a"))
    assert source.classes == ("b", "a")
    assert [source.label(index) for index in range(3)] == [0, 0, 1]


def test_wordnet_folders_match_the_names_of_imagenet(make_folder):
    data = make_folder({"val": {"n01440764": 1, "n01443537": 2}})
    source = open_split(data, "val", ("goldfish", "tench"))
    assert source.classes == ("goldfish", "tench")
    assert [source.label(index) for index in range(3)] == [0, 0, 1]


@pytest.mark.parametrize(
    ("there", "asked", "taken"),
    [
        *[("val", "val", "val"), ("validation", "val", "validation"), ("valid", "val", "valid"), ("dev", "dev", "dev")],
        *[("VAL", "val", "VAL"), ("Train", "train", "Train"), ("Testing", "test", "Testing")],
    ],
)
def test_a_split_goes_by_several_names(make_folder, caplog, there, asked, taken):
    data = make_folder({there: {"a": 1, "b": 1}})
    with caplog.at_level("INFO", logger="globalvit"):
        assert open_split(data, asked).name(0) == str(data / taken / "a" / "000.png")
    assert (f"split {asked!r} is read from {there!r}" in caplog.text) == (there != asked)


def test_a_missing_data_folder_names_the_nearest(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data folder digitz does not exist\. Did you mean 'digits'\?"):
        open_split("digitz", "train")
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist\. Give an existing folder, or digits"):
        open_split(tmp_path / "nowhere", "train")


def test_a_file_is_no_data_folder(tmp_path):
    path = tmp_path / "photos.tar"
    path.touch()
    with pytest.raises(NotADirectoryError, match=r"photos\.tar is a file; give the folder that holds train/ and val/"):
        open_split(path, "train")


def test_a_missing_split_names_those_there_are(make_folder):
    data = make_folder({"test": {"a": 1}, "dev": {"a": 1}})
    text = r"no folder 'train' in .*; it holds 'dev', 'test'\. Expected .*/train/CLASS/IMAGE\.jpg.*--train-split"
    with pytest.raises(FileNotFoundError, match=text):
        open_split(data, "train")


def test_a_split_without_class_folders(make_folder):
    data = make_folder({"train": {"a": 1}})
    (data / "val").mkdir()
    with pytest.raises(ValueError, match=r"val holds no class folders, but no images; expected .*/CLASS/IMAGE"):
        open_split(data, "val")
    (data / "train" / "a" / "000.png").rename(data / "val" / "loose.png")
    with pytest.raises(ValueError, match="val holds no class folders, but 1 images outside class folders"):
        open_split(data, "val")


def test_an_empty_class_is_named(make_folder):
    data = make_folder({"train": {"a": 1, "pear": 0}})
    with pytest.raises(ValueError, match=r"no images in class 'pear' of .*train; add files ending in .*\.jpg.* or"):
        open_split(data, "train")


def test_no_images_at_all(make_folder):
    data = make_folder({"train": {"a": 0, "b": 0}})
    with pytest.raises(ValueError, match=r"no images in the class folders of .*train; expected files ending in"):
        open_split(data, "train")


def test_class_sets_that_differ_are_told_apart(make_folder):
    data = make_folder({"train": {"a": 1, "b": 1, "c": 1}, "val": {"b": 1, "x": 1}})
    train = open_split(data, "train")
    text = r"the classes of .*val are not the 3 expected: unexpected 'x'; missing 'a', 'c'; give every split"
    with pytest.raises(ValueError, match=text):
        open_split(data, "val", train.classes)


def test_at_most_ten_classes_are_listed(make_folder):
    data = make_folder({"val": {"a": 1}})
    expected = ["b", *map(str, range(30))]
    with pytest.raises(ValueError, match=r"unexpected 'a'; missing 'b', '0', .*'8' and 21 more; give"):
        open_split(data, "val", expected)

"""Which folders are classes, in which order, and what is asked about them."""

import pytest

from globalvit.data.classification.dataset import ImageFolder, open_split
from globalvit.data.classification.formats import match_classes, order_folders, scan_classes
from globalvit.data.classification.imagenet import imagenet_names


def test_numbers_are_ordered_by_value(make_folder, caplog):
    root = make_folder({"train": {"10": 1, "9": 1, "2": 1, "0": 1}}) / "train"
    with caplog.at_level("INFO", logger="globalvit"):
        source = ImageFolder(root)
    assert source.classes == ("0", "2", "9", "10")
    assert [source.label(index) for index in range(4)] == [0, 1, 2, 3]
    assert "the class folders are numbers and are ordered by value: label 1 is folder '2'" in caplog.text


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["00", "10", "01"], ["00", "01", "10"]),
        (["class_10", "class_9"], ["class_10", "class_9"]),
        (["1", "10", "a"], ["1", "10", "a"]),
        (["²", "10"], ["10", "²"]),
    ],
)
def test_other_names_are_ordered_by_code_point(names, ordered):
    assert order_folders(names, "data") == ordered


def test_two_folders_of_one_number_are_refused():
    with pytest.raises(ValueError, match="data has class folders '1' and '01' of the same number, so their order"):
        order_folders(["1", "01", "2"], "data")


def test_all_of_imagenets_numbers_are_its_labels_and_fewer_are_refused():
    names = imagenet_names()
    text_order = sorted(map(str, range(1000)))
    assert match_classes(text_order, names, "val")["10"] == 10
    for found in (text_order[:10], [str(number) for number in range(1, 1001)]):
        with pytest.raises(ValueError, match="the classes of val are not the 1000 expected: unexpected '"):
            match_classes(found, names, "val")


def test_one_name_in_two_unicode_forms_is_one_class():
    assert match_classes(["cafe\u0301", "tea"], ["tea", "caf\u00e9"], "val") == {"cafe\u0301": 1, "tea": 0}


def test_classes_without_images_in_val_are_one_warning(make_folder, caplog):
    data = make_folder({"train": {"a": 1, "b": 1, "c": 1}, "val": {"c": 2, "a": 0}})
    source = open_split(data, "val", open_split(data, "train").classes)
    assert source.classes == ("a", "b", "c")
    assert [source.label(index) for index in range(2)] == [2, 2]
    assert "val has no images of 2 of the 3 classes, so their recall cannot be measured: 'a', 'b'" in caplog.text


NESTED = {"Fruit/Apple/Golden": 2, "Fruit/Apple/Red": 1, "Fruit/Melon": 1, "Packages/Milk/Oat": 1, "Soup": 1}


def test_nested_classes_are_questioned(make_folder, caplog):
    data = make_folder({"train": NESTED})
    assert open_split(data, "train").classes == ("Fruit", "Packages", "Soup")
    text = (
        "2 of 3 class folders ('Fruit', 'Packages') hold images only in folders below them, 4 in all "
        "('Fruit/Apple/Golden', 'Fruit/Apple/Red', 'Fruit/Melon' and 1 more); the upper folders are taken as the "
        "classes, so use --nested-classes if every lower folder is a class"
    )
    assert text in caplog.text


def test_nested_classes_are_named_by_their_paths(make_folder):
    data = make_folder({"train": NESTED, "val": {"Fruit/Apple/Red": 1, "Soup": 1}})
    train = open_split(data, "train", nested=True)
    assert train.classes == ("Fruit/Apple/Golden", "Fruit/Apple/Red", "Fruit/Melon", "Packages/Milk/Oat", "Soup")
    val = open_split(data, "val", train.classes)
    assert [val.label(index) for index in range(2)] == [1, 4]


def test_one_folder_below_each_class_is_no_question(make_folder, caplog):
    open_split(make_folder({"train": {"a/images": 2, "b/images": 2}}), "train")
    assert not caplog.text


@pytest.mark.parametrize(
    ("classes", "text"),
    [
        ({"Apple": 1, "apple": 1}, "class folders 'Apple', 'apple' differ only in case; merge them if they are one"),
        ({"apple": 1}, "has a single class, 'apple': a classifier needs two or more to learn from"),
    ],
)
def test_odd_classes_are_logged(make_folder, caplog, classes, text):
    open_split(make_folder({"train": classes}), "train")
    assert text in caplog.text


def test_images_beside_nested_class_folders_are_counted(make_folder, caplog):
    root = make_folder({"train": {"a": 1, "b/c": 1}}) / "train"
    (root / "loose.png").write_bytes((root / "a" / "000.png").read_bytes())
    assert list(scan_classes(root, nested=True)) == ["a", "b/c"]
    assert "1 images outside class folders are left out" in caplog.text


@pytest.mark.parametrize(
    ("there", "given", "hint"),
    [
        (
            {"apple": {".": 2}, "pear": {".": 1}},
            ".",
            "If these folders are classes, make the splits with: ",
        ),
        ({"fruit/train": {"a": 1}, "fruit/val": {"a": 1}}, ".", r"Did you mean .*/fruit\?"),
        ({"train": {"a": 1, "b": 1}}, "train", r"looks like a split: did you mean its parent, .*/data\?"),
    ],
)
def test_a_folder_of_another_level_is_recognized(make_folder, there, given, hint):
    data = make_folder(there)
    with pytest.raises(FileNotFoundError, match=r"no folder 'train' in .*" + hint):
        open_split(data / given, "train")

"""Files of class names, and who must agree with them."""

import numpy as np
import pytest

from globalvit.data.segmentation.class_table import ade20k_classes, read_class_file, resolve_classes
from globalvit.drawing.palette import default_palette

OBJECT_INFO = "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.1\t2\t3\t1\twall\n2\t0.1\t2\t3\t1\tbuilding, edifice\n"


@pytest.mark.parametrize(
    ("file", "text", "names", "colors"),
    [
        ("classes.json", '["sky", "road"]', ("sky", "road"), None),
        ("classes.json", '[{"name": "sky"}, {"name": "road"}]', ("sky", "road"), None),
        (
            "classes.json",
            '[{"name": "a", "color": [1, 2, 3]}, {"name": "b", "color": [4, 5, 6]}]',
            ("a", "b"),
            ((1, 2, 3), (4, 5, 6)),
        ),
        ("classes.txt", "sky\n\n traffic light \n", ("sky", "traffic light"), None),
        ("objectInfo150.txt", OBJECT_INFO, ("wall", "building"), None),
    ],
)
def test_every_form_is_read(tmp_path, file, text, names, colors):
    (tmp_path / file).write_text(text)
    table = resolve_classes(tmp_path)
    assert (table.names, table.colors) == (names, colors)
    assert resolve_classes(tmp_path / "elsewhere", class_file=str(tmp_path / file)) == table


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", r'classes.json: expected \["sky", "road"\] or'),
        ("[1, 2]", "classes.json: expected"),
        ("[", "classes.json: "),
        ("[]", "classes.json: 0 classes; expected 1 to 255"),
        ('["a", "b", "a"]', "classes.json: several classes have the same name: 'a'; tell them apart"),
        ('[{"name": "a", "color": [1, 2]}]', r"class 'a' has the color \[1, 2\]; expected three numbers 0 … 255"),
        ('[{"name": "a", "color": [1, 2, 3]}, {"name": "b"}]', "class 'b' has the color None; expected three"),
    ],
)
def test_files_that_say_something_else_are_refused(tmp_path, text, message):
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_class_file(tmp_path / "classes.json")


def test_a_class_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"class file .*names.json does not exist; give a JSON or text file"):
        resolve_classes(tmp_path, class_file=str(tmp_path / "names.json"))


def test_a_class_file_of_other_bytes_is_named(tmp_path):
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"classes.txt is not UTF-8 text \(invalid start byte at byte 0\); save it"):
        resolve_classes(tmp_path)


def test_without_a_file_the_classes_are_numbers_or_those_expected(tmp_path):
    assert resolve_classes(tmp_path, num_classes=3).names == ("0", "1", "2")
    assert resolve_classes(tmp_path, classes=("a", "b")).names == ("a", "b")
    with pytest.raises(ValueError, match=r"the classes of .* are not known; add classes.json, as in .*, or give num_"):
        resolve_classes(tmp_path)


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"num_classes": 3}, "has 2 classes, and 3 are expected"),
        ({"classes": ("sky",)}, "has 2 classes, and 1 are expected"),
        ({"classes": ("sky", "road"), "num_classes": 5}, "has 2 classes, and 5 are expected"),
        ({"classes": ("road", "sky")}, "are not those expected: class 0 is 'sky' and not 'road'"),
    ],
)
def test_a_file_and_what_is_expected_must_agree(tmp_path, expected, message):
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    assert len(resolve_classes(tmp_path, classes=("sky", "road"), num_classes=2).names) == 2
    with pytest.raises(ValueError, match=message):
        resolve_classes(tmp_path, **expected)


def test_the_classes_of_ade20k_are_at_hand(tmp_path):
    names = ade20k_classes()
    assert len(set(names)) == len(names) == 150
    assert (names[0], names[12], names[149]) == ("wall", "person", "flag")
    assert resolve_classes(tmp_path, class_file="ade20k").names == names


@pytest.mark.parametrize("total", [1, 2, 21, 150, 255])
def test_colors_are_distinct_and_the_first_is_dark(total):
    palette = default_palette(total)
    assert palette.shape == (total, 3)
    assert len({tuple(color) for color in palette.tolist()}) == total
    assert palette[0].max() < 60
    assert total == 1 or palette[1:].max(axis=1).min() > 100
    np.testing.assert_array_equal(palette, default_palette(255)[:total])

"""Label maps as tools write them: each is read right, or one message says what is wrong with which file."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from globalvit.data.segmentation.dataset import open_masks

SIZE = (12, 8)  # width, height
OBJECT = np.zeros(SIZE[::-1], np.uint8)
OBJECT[2:6, 3:9] = 1


def gray(*values):
    """A gray label map: the values stand in columns."""
    columns = np.resize(np.array(values), SIZE[0])
    dtype = np.uint8 if max(values) < 256 else np.uint16
    return Image.fromarray(np.broadcast_to(columns.astype(dtype), SIZE[::-1]).copy())


def two(low, high):
    return Image.fromarray(np.where(OBJECT == 1, high, low).astype(np.uint8))


def smooth(high=255):
    """The object with borders blended as by smoothing or compression."""
    return two(0, high).resize((48, 32), Image.Resampling.BICUBIC).resize(SIZE, Image.Resampling.BICUBIC)


def colored(mode="RGB", alpha=255):
    image = Image.fromarray(np.where(OBJECT[..., None] == 1, (255, 0, 0), (0, 0, 0)).astype(np.uint8)).convert(mode)
    if mode == "RGBA":
        image.putalpha(alpha)
    return image


def palette(first, second):
    image = Image.fromarray(OBJECT).convert("P")
    image = Image.frombytes("P", SIZE, OBJECT.tobytes())
    image.putpalette([*first, *second] + [9, 9, 9] * 254)
    return image


RED_TABLE = [{"name": "back", "color": [0, 0, 0]}, {"name": "thing", "color": [255, 0, 0]}]
THREE = ["a", "b", "c"]
TWO = ["back", "thing"]


def write_set(root, masks, classes, image_size=SIZE):
    """Write a training split of these label maps; bytes are written as they are."""
    for part in ("images", "annotations"):
        (root / part / "train").mkdir(parents=True)
    for number, mask in enumerate(masks):
        values = np.random.default_rng(number).integers(0, 256, (*image_size[::-1], 3), dtype=np.uint8)
        Image.fromarray(values).save(root / "images" / "train" / f"{number}.jpg")
        path = root / "annotations" / "train" / f"{number}.png"
        if isinstance(mask, bytes):
            path.write_bytes(mask)
        else:
            mask.save(path)
    (root / "classes.json").write_text("\ufeff" + json.dumps(classes), encoding="utf-8")
    return root


def jpeg(tmp_path):
    two(0, 1).save(tmp_path / "mask.jpg", quality=95)
    return (tmp_path / "mask.jpg").read_bytes()


READ = {
    "two classes, 0 and 1": ([two(0, 1)] * 2, TWO, {}, {0, 1}),
    "two classes, 0 and 255": ([two(0, 255)] * 2, TWO, {}, {0, 1}),
    "two classes, one file all 0, one all 255": ([two(0, 255), gray(0), gray(255)], TWO, {}, {0, 1}),
    "0 and 255, where 255 is ignored": ([two(0, 255)] * 2, TWO, {"ignore_label": 255}, {0, 255}),
    "0, 1 and 255": ([gray(0, 1, 255), two(0, 1)], TWO, {}, {0, 1, 255}),
    "another value is ignored": ([gray(0, 1, 2, 11)], THREE, {"ignore_label": 11}, {0, 1, 2, 255}),
    "another value and 255 are ignored": ([gray(0, 1, 2, 11, 255)], THREE, {"ignore_label": 11}, {0, 1, 2, 255}),
    "0 is ignored": ([gray(0, 1, 2)], THREE, {"ignore_label": 0}, {1, 2, 255}),
    "0 and 255 as classes, another value ignored": ([gray(0, 255, 7)] * 2, TWO, {"ignore_label": 7}, {0, 1, 255}),
    "labels from 1": ([gray(1, 2, 3)], THREE, {"reduce_zero_label": True}, {0, 1, 2}),
    "labels from 1, 0 is void": ([gray(0, 1, 2, 3)], THREE, {"reduce_zero_label": True}, {0, 1, 2, 255}),
    "16 bits": ([gray(0, 1, 2).convert("I;16")], THREE, {}, {0, 1, 2}),
    "16 bits, 65535 ignored": ([gray(0, 1, 2, 65535)], THREE, {"ignore_label": 65535}, {0, 1, 2, 255}),
    "one bit": ([two(0, 255).convert("1")] * 2, TWO, {}, {0, 1}),
    "palette of any colors": ([palette((1, 2, 3), (4, 5, 6))], TWO, {}, {0, 1}),
    "palette in the order of the table": ([palette((0, 0, 0), (255, 0, 0))], RED_TABLE, {}, {0, 1}),
    "palette in another order than the table": ([palette((255, 0, 0), (0, 0, 0))], RED_TABLE, {}, {0, 1}),
    "colors with a table": ([colored()], RED_TABLE, {}, {0, 1}),
    "opaque colors with a table": ([colored("RGBA")], RED_TABLE, {}, {0, 1}),
    "one class only in some files": ([gray(0), gray(1), gray(2)], THREE, {}, {0, 1, 2}),
    "every pixel ignored in one file": ([gray(255), gray(0, 1, 2)], THREE, {}, {0, 1, 2, 255}),
}


@pytest.mark.parametrize("case", READ)
def test_label_maps_are_read_right(tmp_path, case):
    masks, classes, options, expected = READ[case]
    root = write_set(tmp_path, masks, classes)
    assert read_all(root, options) == expected


def read_all(root, options):
    source = open_masks(root, "train", **options)
    return set(np.unique(np.concatenate([source.read(index)[1].ravel() for index in range(len(source))])).tolist())


def test_the_object_of_a_palette_in_another_order_is_found_by_color(tmp_path):
    source = open_masks(write_set(tmp_path, [palette((255, 0, 0), (0, 0, 0))], RED_TABLE), "train")
    np.testing.assert_array_equal(source.read(0)[1], 1 - OBJECT)


def test_the_object_of_0_and_255_is_class_1(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="globalvit"):
        source = open_masks(write_set(tmp_path, [two(0, 255)] * 2, TWO), "train")
    np.testing.assert_array_equal(source.read(0)[1], OBJECT)
    assert "hold only 0 and 255, read as the classes 'back' and 'thing'; --ignore-label 255 reads 255 as" in caplog.text


REFUSED = {
    "0 and 255 with three classes": (
        [two(0, 255)] * 2,
        THREE,
        {},
        r"all 2 label maps looked at hold only 0, 255, but there are 3 classes; expected 0 … 2: name two classes .* if "
        r"255 marks the object, or use --ignore-label 255",
    ),
    "0 and 255 with one class": ([two(0, 255)], ["thing"], {}, "but there are 1 classes; expected 0 … 0: name two"),
    "0 and 255 with 0 ignored": ([two(0, 255)], TWO, {"reduce_zero_label": True}, "--reduce-zero-label ignores 0"),
    "every pixel of every file ignored": ([gray(255)] * 2, TWO, {}, "hold only 255, so nothing can be learned"),
    "0 and 255 mixed with 1": (
        # The second of a hundred is not among those looked at first.
        [two(0, 255), two(0, 1), *[two(0, 255)] * 98],
        TWO,
        {},
        r"1\.png has label 1, but the other label maps hold only 0 and 255, read as the two classes; make them alike",
    ),
    "0 and 128": ([two(0, 128)], TWO, {}, "0.png has label 128 .* its values are 0, 128: use --ignore-label 128 if"),
    "stretched to be seen": ([gray(0, 127, 254)], THREE, {}, "its values are 0, 127, 254: they look stretched"),
    "labels from 1": ([gray(1, 2, 3)], THREE, {}, "label 3 .*: labels that count from 1 need --reduce-zero-label"),
    "one label too many": ([gray(0, 1, 2, 3)], THREE, {}, "use --ignore-label 3 if it marks pixels to ignore, else"),
    "ids of 16 bits": ([gray(0, 26001, 26002)], THREE, {}, "has label 26001 .* 16-bit values, as of instance ids"),
    "blended borders": ([smooth()], TWO, {}, "so many come from JPEG compression, smooth edges or resizing"),
    "colors without a table": ([colored()], TWO, {}, r"0.png holds colors, not class numbers \(0,0,0; 255,0,0\); give"),
    "gray stored as colors": ([two(0, 1).convert("RGB")], TWO, {}, "Its three channels are equal: keep one of them"),
    "transparent pixels": ([colored("RGBA", 0)], RED_TABLE, {}, "0.png has transparent pixels; expected one opaque"),
    "a color that no class has": ([palette((1, 2, 3), (4, 5, 6)).convert("RGB")], RED_TABLE, {}, "the color 1,2,3 at"),
    "gray and alpha": ([two(0, 1).convert("LA")], TWO, {}, "0.png has mode LA; expected a gray or palette PNG"),
    "ignored value out of range": ([two(0, 1)], TWO, {"ignore_label": 70000}, "ignore_label=70000 must be 0 … 65535"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_label_maps_that_cannot_be_meant_are_refused(tmp_path, case):
    masks, classes, options, message = REFUSED[case]
    root = write_set(tmp_path, masks, classes)
    with pytest.raises(ValueError, match=message):
        read_all(root, options)


def test_a_jpeg_called_png_is_refused(tmp_path):
    root = write_set(tmp_path / "set", [jpeg(tmp_path)], TWO)
    with pytest.raises(ValueError, match=r"0\.png is a JPEG file, which changes class numbers; expected PNG"):
        read_all(root, {})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.png", "0.jpg", r"save the label maps as PNG, not as '0\.jpg' \(JPEG changes class numbers"),
        ("0.png", "0.gif", r"save the label maps as PNG, not as '0\.gif'"),
        ("0.png", "0_other.png", r"rename label maps such as '0_other\.png'"),
        ("0.png", "0.txt", "the files there are not images, as of boxes in text files"),
    ],
)
def test_label_maps_of_other_names_are_recognized(tmp_path, old, new, message):
    root = write_set(tmp_path, [two(0, 1)], TWO)
    (root / "annotations" / "train" / old).rename(root / "annotations" / "train" / new)
    with pytest.raises(ValueError, match=message):
        open_masks(root, "train")


def test_an_ending_in_capitals_is_read(tmp_path):
    root = write_set(tmp_path, [two(0, 1)], TWO)
    (root / "annotations" / "train" / "0.png").rename(root / "annotations" / "train" / "0.PNG")
    assert read_all(root, {}) == {0, 1}


def test_what_is_not_learned_is_logged(tmp_path, caplog):
    open_masks(write_set(tmp_path, [gray(255), gray(0, 1)], THREE), "train")
    assert "every pixel is ignored in 1 of 2 label maps looked at" in caplog.text
    assert "has no pixel of 'c'; nothing is learned of them" in caplog.text


def test_two_ways_of_marking_an_object_are_refused(tmp_path):
    root = write_set(tmp_path, [two(0, 255), two(0, 1)], TWO)
    with pytest.raises(ValueError, match="1 of 2 label maps looked at hold only 0 and 255, others hold 1; if 255"):
        open_masks(root, "train")
    assert read_all(root, {"ignore_label": 255}) == {0, 1, 255}


@pytest.mark.parametrize(("mask", "is_binary"), [(two(0, 1), True), (two(0, 255), False)])
def test_validation_is_read_as_training_was(tmp_path, mask, is_binary):
    root = write_set(tmp_path, [mask], TWO)
    with pytest.raises(ValueError, match=r"but those of the training split .* make the splits alike"):
        open_masks(root, "train", is_binary=is_binary)

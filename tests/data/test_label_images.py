"""Label maps of every kind."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from globalvit.data.common.images import OversizedImage, UnreadableImage, WrongLabels
from globalvit.data.segmentation.label_images import LabelReader, read_labeled

LABELS = np.array([[0, 1, 2], [3, 255, 0]], np.uint8)
COLORS = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))
ROTATED = 6  # EXIF's orientation of an image that is to be turned by 90 degrees


def png(image, **options):
    stream = BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


def gray(values, dtype=np.uint8):
    return png(Image.fromarray(np.asarray(values).astype(dtype)))


def palette_png(values):
    image = Image.frombytes("P", (3, 2), values.tobytes())
    image.putpalette([200, 10, 10] * 256)
    return png(image)


def gray_of_few_bits(rows, depth):
    """A gray PNG of 1, 2 or 4 bits a pixel, which Pillow does not write."""
    lines = b""
    for row in rows:
        bits = "".join(f"{value:0{depth}b}" for value in row)
        bits += "0" * (-len(bits) % 8)
        lines += b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), depth, 0, 0, 0, 0)
    return png_of((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))


def png_of(*chunks):
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@pytest.mark.parametrize("data", [gray(LABELS), gray(LABELS, np.uint16), palette_png(LABELS)])
def test_gray_and_palette_files_hold_numbers(data):
    labels = LabelReader(total=4).read(data, "x.png")
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_gray_values_of_few_bits_are_not_stretched(depth):
    rows = (np.arange(12).reshape(3, 4) % 2**depth).tolist()
    np.testing.assert_array_equal(LabelReader(total=16).read(gray_of_few_bits(rows, depth), "x.png"), rows)


def test_zero_is_ignored_and_the_others_are_shifted():
    labels = LabelReader(total=3, reduce_zero_label=True).read(gray(LABELS), "x.png")
    np.testing.assert_array_equal(labels, [[255, 0, 1], [2, 255, 255]])


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colors_are_looked_up(mode):
    colors = np.array(COLORS, np.uint8)[[[0, 1, 2], [3, 1, 0]]]
    labels = LabelReader(total=4, colors=COLORS).read(png(Image.fromarray(colors).convert(mode)), "x.png")
    np.testing.assert_array_equal(labels, [[0, 1, 2], [3, 1, 0]])


def test_colors_may_be_known_for_files_of_numbers_too():
    np.testing.assert_array_equal(LabelReader(total=4, colors=COLORS).read(gray(LABELS), "x.png"), LABELS)


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ({}, gray([[1, 4]]), r"x.png has label 4 but there are 4 classes, 0 … 3, .* count from 1 need --reduce-zero-l"),
        (
            {},
            gray([[0, 9]]),
            r"has label 9 but there are 4 classes, 0 … 3, .* its values are 0, 9: use --ignore-l",
        ),
        ({}, gray([[0, 300]], np.uint16), r"x.png has label 300 but there are 4 classes"),
        ({"reduce_zero_label": True}, gray([[4, 5]]), r"label 5, less 1 by reduce_zero_label, but there are 4 classes"),
        ({}, png(Image.new("RGB", (2, 2))), r"x.png holds colors, not class numbers \(0,0,0\); give each class its"),
        ({}, png(Image.new("LA", (2, 2))), r"x.png has mode LA; expected a gray or palette PNG"),
        ({"colors": COLORS}, png(Image.new("RGB", (2, 2), (9, 8, 7))), r"x.png has the color 9,8,7 at 0,0, which"),
    ],
)
def test_labels_that_no_class_has_are_named(options, data, message):
    with pytest.raises(WrongLabels, match=message):
        LabelReader(total=4, **options).read(data, "x.png")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "x.png cannot be read as an image: the file is empty"),
        (gray(np.random.default_rng(0).integers(0, 4, (40, 40)))[:200], "x.png cannot be read as an image"),
        (b"GIF89a", "it is none of PNG"),
    ],
)
def test_what_cannot_be_decoded_is_unreadable(data, message):
    with pytest.raises(UnreadableImage, match=message):
        LabelReader(total=4).read(data, "x.png")


def test_a_decompression_bomb_is_refused():
    rows = 14_000
    data = png_of((b"IHDR", struct.pack(">IIBBBBB", rows, rows, 8, 0, 0, 0, 0)), (b"IDAT", b""))
    with pytest.raises(OversizedImage, match=r"x.png has more than 179 megapixels"):
        LabelReader(total=4).read(data, "x.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total": 256}, "256 classes: expected 1 to 255"),
        ({"total": 0}, "0 classes: expected 1 to 255"),
        ({"total": 2, "colors": ((1, 2, 3), (1, 2, 3))}, "1 different colors for 2 classes; give each class its own"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        LabelReader(**options)


def jpeg(width, height, orientation=1):
    image, stream = Image.new("RGB", (width, height)), BytesIO()
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(stream, "JPEG", exif=exif)
    return stream.getvalue()


def test_labels_are_those_of_the_upright_image():
    labels = gray(np.zeros((6, 4)))
    image, found = read_labeled(jpeg(6, 4, ROTATED), labels, LabelReader(total=2), "a.jpg", "a.png")
    assert image.size == (4, 6)
    assert found.shape == (6, 4)


def test_labels_of_another_size_are_an_error():
    for image, shown in ((jpeg(8, 4), "8×4"), (jpeg(4, 8, ROTATED), "8×4")):
        ending = rf"a.png is 6×4, but its image a.jpg is {shown}: every pixel needs one label$"
        with pytest.raises(WrongLabels, match=ending):
            read_labeled(image, gray(np.zeros((4, 6))), LabelReader(total=2), "a.jpg", "a.png")

"""Direct decoding gives what reading files gives: the same pixels, or the same error."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from globalvit.data.common.images import OversizedImage, UnreadableImage, read_image
from globalvit.data.storage import lmdb_decode
from globalvit.data.storage.lmdb_decode import decode, has_direct, is_ordinary_jpeg

SIZES = [(1, 1), (7, 5), (16, 16), (33, 50), (91, 75)]
WAYS = [
    {"subsampling": "4:4:4"},
    {"subsampling": "4:2:2"},
    {"subsampling": "4:2:0"},
    {"subsampling": "4:2:0", "progressive": True},
    {"optimize": True, "quality": 30},
    {"restart_marker_rows": 1},
    {"keep_rgb": True},
    {"comment": b"a comment", "icc_profile": b"x" * 200, "dpi": (72, 72)},
]


@pytest.fixture(scope="module")
def random():
    return np.random.default_rng(0)


def encoded(random, size, mode="RGB", **way):
    noise = Image.fromarray(random.integers(0, 256, (9, 11, 3), dtype=np.uint8))
    stream = io.BytesIO()
    noise.resize(size, Image.Resampling.BICUBIC).convert(mode).save(stream, "JPEG", **way)
    return stream.getvalue()


def outcome(read, data):
    """The pixels, or the error's text."""
    try:
        return np.asarray(read(data, "image")).tolist()
    except (UnreadableImage, OversizedImage) as error:
        return str(error)


def test_the_two_decoders_agree_here():
    assert has_direct()


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_the_same(random, way, mode):
    for size in SIZES:
        data = encoded(random, size, mode, **({} if mode == "L" and "keep_rgb" in way else way))
        assert is_ordinary_jpeg(data)
        assert np.array_equal(decode(data, "image"), read_image(data))


def test_damaged_files_have_the_same_outcome(random):
    data = encoded(random, (64, 48))
    for _ in range(300):
        damaged = bytearray(data[: random.integers(2, 2 * len(data))])
        for at in random.integers(0, len(damaged), random.integers(0, 4)):
            damaged[at] = random.integers(0, 256)
        assert outcome(decode, bytes(damaged)) == outcome(read_image, bytes(damaged))


def test_what_is_not_ordinary_goes_to_pillow(random):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(random, (8, 6), exif=exif)
    assert decode(turned, "image").size == (6, 8)
    png = io.BytesIO()
    Image.new("RGB", (3, 3)).save(png, "PNG")
    others = [turned, encoded(random, (8, 6), "CMYK"), png.getvalue(), b"", b"\xff\xd8", b"\xff\xd8\xff"]
    assert not any(map(is_ordinary_jpeg, others))
    for data in others:
        assert outcome(decode, data) == outcome(read_image, data)


def test_frames_that_decoders_may_see_differently_are_not_ordinary(random):
    data = encoded(random, (8, 6))
    at = data.index(b"\xff\xc0")
    head, frame = data[:at], data[at:]
    assert is_ordinary_jpeg(data)
    for changed in (
        frame.replace(b"\xff\xc0", b"\xff\xc9", 1),  # arithmetic coding
        frame[:4] + b"\x0c" + frame[5:],  # 12 bits
        frame[:5] + b"\0\0" + frame[7:],  # a height that comes later
        frame[:5] + struct.pack(">HH", 65000, 65000) + frame[9:],  # a decompression bomb
        frame[: 2 + frame[3]] + frame,  # two frames
    ):
        assert not is_ordinary_jpeg(head + changed)


def test_without_the_package_or_agreement_pillow_decodes(random, monkeypatch, caplog):
    data = encoded(random, (8, 6))
    monkeypatch.setattr(lmdb_decode, "find_spec", lambda _: None)
    assert not has_direct.__wrapped__()
    monkeypatch.undo()
    monkeypatch.setattr("simplejpeg.decode_jpeg", lambda *_: np.zeros((75, 91, 3), np.uint8))
    assert not has_direct.__wrapped__()
    assert "simplejpeg's pixels are not Pillow's here: Pillow decodes" in caplog.text
    assert np.array_equal(decode(data, "image", is_direct=False), read_image(data))

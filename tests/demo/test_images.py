"""What comes to the page is read safely, within bounds, and does not stay."""

import base64
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from globalvit.demo.images import RefusedUpload, bounded, data_url, enlarged, receive, shorten

MIB = 2**20


@pytest.fixture
def uploads(tmp_path):
    folder = tmp_path / "uploads"
    folder.mkdir()
    return folder


def encoded(image, kind, **options):
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def bomb():
    """A PNG of a few hundred bytes that says it has a thousand megapixels."""
    small = bytearray(encoded(Image.new("L", (8, 8)), "PNG"))
    small[16:24] = (40_000).to_bytes(4, "big") + (25_000).to_bytes(4, "big")
    small[29:33] = zlib.crc32(small[12:29]).to_bytes(4, "big")
    return bytes(small)


HOSTILE = [
    ("empty.png", b"", "the file is empty"),
    ("text.jpg", b"<script>alert(1)</script>", "it is none of JPEG, PNG"),
    ("page.svg", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "it is none of JPEG, PNG"),
    ("cut.jpg", encoded(noise(64, 64), "JPEG")[:900], "truncated"),
    ("script.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is none of JPEG, PNG"),
]


@pytest.mark.parametrize(("name", "data", "text"), HOSTILE)
def test_what_is_no_image_is_refused_in_one_line_and_deleted(name, data, text, uploads):
    (uploads / name).write_bytes(data)
    with pytest.raises(RefusedUpload, match=text) as refusal:
        receive(str(uploads / name), name, uploads, MIB)
    assert str(refusal.value).startswith(f"{name} cannot be read as an image: ")
    assert "\n" not in str(refusal.value)
    assert list(uploads.iterdir()) == []


def test_a_decompression_bomb_is_refused(uploads):
    (uploads / "bomb.png").write_bytes(bomb())
    with pytest.raises(RefusedUpload, match=r"^bomb\.png has more than 179 megapixels; make it smaller"):
        receive(str(uploads / "bomb.png"), "bomb.png", uploads, MIB)


def test_too_many_bytes_are_refused(uploads):
    (uploads / "a.png").write_bytes(b"x" * (MIB + 1))
    with pytest.raises(RefusedUpload, match=r"^a\.png: expected at most 1 MiB, got 1\.0 MiB; make it"):
        receive(str(uploads / "a.png"), "a.png", uploads, MIB)


@pytest.mark.parametrize(
    "claim", ["../secret.png", "", "gone.png", ".", "linked.png", "http://127.0.0.1/x.png", "a\0b", "x" * 5000]
)
def test_only_what_was_uploaded_is_read(claim, uploads):
    secret = uploads.parent / "secret.png"
    secret.write_bytes(encoded(noise(8, 8), "PNG"))
    (uploads / "linked.png").symlink_to(secret)
    with pytest.raises(RefusedUpload, match="was not uploaded; choose it again"):
        receive(str(uploads / claim), "a.png", uploads, MIB)
    assert secret.exists()


def test_a_readable_image_comes_upright_whatever_its_ending_and_is_deleted(uploads):
    exif = Image.Exif()
    exif[0x0112] = 6
    (uploads / "photo.txt").write_bytes(encoded(noise(30, 20), "JPEG", exif=exif))
    image = receive(str(uploads / "photo.txt"), "photo.txt", uploads, MIB)
    assert (image.mode, image.size) == ("RGB", (20, 30))
    assert list(uploads.iterdir()) == []


def test_the_first_frame_of_an_animation_is_taken(uploads):
    frames = [Image.new("RGB", (9, 9), color) for color in ("red", "blue")]
    (uploads / "a.gif").write_bytes(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert receive(str(uploads / "a.gif"), "a.gif", uploads, MIB).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("size", "kept"),
    [((4000, 2000), (1280, 640)), ((3, 4000), (1, 1280)), ((60, 40), (60, 40)), ((1280, 2), (1280, 2))],
)
def test_what_is_kept_is_bounded(size, kept):
    assert bounded(Image.new("RGB", size)).size == kept


@pytest.mark.parametrize(("size", "shown"), [((8, 8), (384, 384)), ((100, 50), (400, 200)), ((500, 3), (500, 3))])
def test_small_images_are_enlarged_by_whole_numbers(size, shown):
    assert enlarged(Image.new("RGB", size), 384).size == shown


@pytest.mark.parametrize(("size", "kind", "sent"), [((8, 8), "png", (8, 8)), ((2048, 1024), "jpeg", (1024, 512))])
def test_images_are_sent_within_the_page(size, kind, sent):
    head, data = data_url(Image.new("RGB", size)).split(",")
    assert head == f"data:image/{kind};base64"
    assert Image.open(BytesIO(base64.b64decode(data))).size == sent


@pytest.mark.parametrize(
    ("name", "short"), [("a.png", "a.png"), ("", "the image"), ("a\nb\x1b.png", "a?b?.png"), ("x" * 99, None)]
)
def test_names_are_short_and_printable(name, short):
    assert shorten(name) == (short or "x" * 30 + "…" + "x" * 20)

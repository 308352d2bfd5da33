"""Every kind of hostile image becomes upright RGB, or an error that names the file."""

import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from globalvit.data.common.images import OversizedImage, UnreadableImage, read_image, to_rgb

# Sizes that differ, so that a lost rotation shows.
WIDTH, HEIGHT = 24, 16


def make_image():
    values = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    values[: HEIGHT // 2, : WIDTH // 2] = (250, 20, 30)
    values[HEIGHT // 2 :] = (10, 60, 240)
    return Image.fromarray(values)


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def as_array(source):
    image = read_image(source)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP", "JPEG2000"])
def test_lossless_formats_come_back_as_they_were(kind):
    image = make_image()
    options = {"WEBP": {"lossless": True}, "JPEG2000": {"irreversible": False}}.get(kind, {})
    assert np.array_equal(as_array(encoded(image, kind, **options)), np.asarray(image))


def test_a_path_a_stream_and_bytes_are_read_alike(tmp_path):
    data = encoded(make_image(), "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for source in (path, str(path), io.BytesIO(data)):
        assert np.array_equal(as_array(source), as_array(data))


def test_the_content_counts_not_the_extension(tmp_path):
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(encoded(make_image(), "PNG"))
    assert np.array_equal(as_array(path), np.asarray(make_image()))


def test_cmyk_becomes_rgb():
    cmyk = make_image().convert("CMYK")
    came = as_array(encoded(cmyk, "JPEG", quality=100, subsampling=0))
    assert abs(came - np.asarray(make_image())).max() < 12


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr"])
def test_other_modes_become_rgb(mode):
    image = make_image().convert(mode)
    # Pillow 12 cannot read the YCbCr it writes without compression; with it, libtiff turns the colors, rounding.
    came = as_array(encoded(image, "TIFF", compression="tiff_lzw"))
    difference = np.abs(came.astype(int) - np.asarray(image.convert("RGB")))
    assert difference.max() <= (1 if mode == "YCbCr" else 0)


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bit_values_are_scaled(order):
    values = np.linspace(0, 65535, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH).astype(order)
    data = encoded(Image.fromarray(values), "TIFF" if order == ">u2" else "PNG")
    expected = np.round(values.astype(float) / 257)
    assert abs(as_array(data) - expected[..., None]).max() == 0


def test_a_16_bit_gray_map_is_scaled():
    values = np.array([[0, 257, 65535], [1000, 32768, 60000]], ">u2")
    data = b"P5 3 2 65535\n" + values.tobytes()
    assert np.array_equal(as_array(data)[..., 0], np.round(values / 257).astype(int))


@pytest.mark.parametrize(("values", "text"), [(np.ones((4, 4), np.float32), "floating-point"), ("big", "32 bits")])
def test_pixels_of_unknown_range_are_refused(values, text):
    values = np.full((4, 4), 70000, np.int32) if isinstance(values, str) else values
    with pytest.raises(UnreadableImage, match=text):
        read_image(encoded(Image.fromarray(values), "TIFF"))


def test_transparency_is_laid_over_white():
    image = make_image().convert("RGBA")
    image.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, WIDTH), (HEIGHT, 1)).astype(np.uint8)))
    alpha = np.asarray(image)[..., 3:] / 255
    expected = np.asarray(make_image()) * alpha + 255 * (1 - alpha)
    assert abs(as_array(encoded(image, "PNG")) - expected).max() <= 1


def test_a_transparent_palette_color_turns_white():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 10, 10])
    image.putpixel((0, 0), 0)
    came = as_array(encoded(image, "PNG", transparency=0))
    assert came[0, 0].tolist() == [255, 255, 255]
    assert came[1, 1].tolist() == [200, 10, 10]


def test_gray_with_alpha_and_a_transparent_rgb_color():
    gray = Image.new("LA", (2, 2), (40, 0))
    assert as_array(encoded(gray, "PNG")).min() == 255
    keyed = Image.new("RGB", (2, 2), (1, 2, 3))
    assert as_array(encoded(keyed, "PNG", transparency=(1, 2, 3))).min() == 255


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_is_taken(kind):
    first, second = Image.new("RGB", (8, 8), (200, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 200))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(first, kind, save_all=True, append_images=[second], **options)
    assert np.array_equal(as_array(data), np.asarray(first))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation, kind):
    """The stored image is turned away from upright, and EXIF tells how."""
    turn = Image.Transpose
    away = {2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE}
    away |= {6: turn.ROTATE_90, 7: turn.TRANSVERSE, 8: turn.ROTATE_270}
    stored = make_image().transpose(away[orientation]) if orientation > 1 else make_image()
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    came = as_array(encoded(stored, kind, exif=exif, **options))
    assert came.shape == (HEIGHT, WIDTH, 3)
    # Away from the edges between colors, which JPEG smears.
    assert abs(came[2:6, 2:10] - (250, 20, 30)).max() < 8
    assert abs(came[10:, 2:] - (10, 60, 240)).max() < 8


def test_an_orientation_that_is_none_is_passed_over():
    exif = Image.Exif()
    exif[0x0112] = 77
    assert as_array(encoded(make_image(), "PNG", exif=exif)).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_truncated_file_is_named(tmp_path, kind):
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(values), kind)
    path = tmp_path / "half.jpg"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UnreadableImage, match=r"half\.jpg cannot be read as an image: \S"):
        read_image(path)


def test_an_empty_file_and_a_text_are_told_apart(tmp_path):
    path = tmp_path / "nothing.jpg"
    path.touch()
    with pytest.raises(UnreadableImage, match=r"nothing\.jpg cannot be read as an image: the file is empty"):
        read_image(path)
    with pytest.raises(UnreadableImage, match="page cannot be read as an image: it is none of JPEG, PNG"):
        read_image(b"<html>not found</html>", name="page")


def test_programs_in_postscript_are_not_run():
    with pytest.raises(UnreadableImage, match="it is none of"):
        read_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")


def test_pipes_and_devices_are_refused_before_they_are_opened(tmp_path, make_pipe):
    make_pipe(tmp_path / "a.png")
    for path, kind in ((tmp_path / "a.png", r"pipe \(FIFO\)"), ("/dev/zero", "device")):
        with pytest.raises(OSError, match=f"{path} is a {kind}, expected a regular file; save the image to a file"):
            read_image(path)


def test_missing_files_and_folders_are_not_unreadable_images(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(IsADirectoryError):
        read_image(tmp_path)


def png_of_size(width, height):
    """A PNG that says it is large and holds nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("size", [(20000, 8949), (100_000, 100_000)])
def test_more_than_179_megapixels_is_an_error_of_its_own(size):
    with pytest.raises(OversizedImage, match="huge has more than 179 megapixels; make it smaller or remove it"):
        read_image(png_of_size(*size), "huge")


def test_the_bound_holds_where_pillows_is_off(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(OversizedImage):
        read_image(png_of_size(20000, 8949))


def test_large_images_below_the_bound_are_not_refused():
    """Pillow warns from half the bound on; here only the missing data is wrong."""
    with pytest.raises(UnreadableImage):
        read_image(png_of_size(10000, 10000))


def test_an_image_in_memory_is_treated_alike():
    image = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert to_rgb(image).getpixel((0, 0)) == (255, 255, 255)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP"]), st.randoms(use_true_random=False))
def test_damaged_files_are_images_or_unreadable_and_nothing_else(kind, random):
    data = bytearray(encoded(make_image(), kind))
    for _ in range(random.randint(1, 8)):
        data[random.randrange(len(data))] = random.randrange(256)
    with suppress(UnreadableImage, OversizedImage):
        assert read_image(bytes(data)).mode == "RGB"

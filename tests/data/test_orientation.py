"""All eight EXIF orientations: images, boxes and masks turn alike, once, whichever way an image is read."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from globalvit.data.classification.dataset import open_split
from globalvit.data.classification.transforms import EvalTransform
from globalvit.data.common.images import look, read_image, read_oriented, to_rgb
from globalvit.data.common.loading import eval_loader
from globalvit.data.common.orientation import UPRIGHT
from globalvit.data.segmentation.dataset import open_masks
from globalvit.data.storage.lmdb_build import build
from globalvit.demo.images import receive
from globalvit.explain.scene import Scene
from globalvit.tasks.inputs import as_image

HEIGHT, WIDTH = 16, 24
ORIENTATIONS = range(1, 9)
# EXIF's orientation → what turns an upright image into the stored one.
AWAY = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
OPTIONS = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}


def upright_image():
    """A white corner at the upper left, a red bar at the bottom: no turn leaves it as it is."""
    values = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    values[:8, :8] = 250
    values[-8:, :, 0] = 200
    return Image.fromarray(values)


def stored(orientation, kind="JPEG", xmp=False):
    """The bytes of a file that shows the upright image to whoever heeds EXIF."""
    image = upright_image()
    image = image.transpose(AWAY[orientation]) if orientation in AWAY else image
    stream = io.BytesIO()
    if xmp:
        data = f'<x:xmpmeta><rdf tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()
        image.save(stream, kind, xmp=data, **OPTIONS.get(kind, {}))
    else:
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(stream, kind, exif=exif, **OPTIONS.get(kind, {}))
    return stream.getvalue()


def is_upright(image):
    values = np.asarray(image).astype(int)
    expected = np.asarray(upright_image()).astype(int)
    return values.shape == expected.shape and abs(values - expected).max() < 40


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_an_image_is_turned_once(orientation, kind):
    data = stored(orientation, kind)
    image, stated = read_oriented(data)
    assert is_upright(image)
    assert stated == orientation
    assert is_upright(to_rgb(to_rgb(image)))
    assert is_upright(to_rgb(image.resize(image.size).convert("RGBA")))
    assert is_upright(to_rgb(pickle.loads(pickle.dumps(image))))
    assert is_upright(to_rgb(Image.open(io.BytesIO(data))))
    assert look(data) == (orientation, (WIDTH, HEIGHT) if orientation > 4 else (HEIGHT, WIDTH))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_an_orientation_in_xmp_counts_once_too(orientation):
    image = read_image(stored(orientation, xmp=True))
    assert is_upright(image)
    assert is_upright(to_rgb(image))


def test_the_image_that_was_given_keeps_its_pixels_and_its_data():
    given = Image.open(io.BytesIO(stored(6)))
    to_rgb(given)
    assert given.size == (HEIGHT, WIDTH)
    assert given.getexif()[0x0112] == 6


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_pixels_and_boxes_turn_as_images_do(orientation):
    turn = UPRIGHT[orientation]
    values = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    turned = turn.pixels(values)
    np.testing.assert_array_equal(turned, np.asarray(turn.image(Image.fromarray(values))))
    assert turn.size((5, 7)) == turned.shape[:2]
    assert turn.size(turn.size((5, 7))) == (5, 7)
    # A box around some pixels is around the same pixels afterwards.
    boxes = np.array([[1.0, 2, 4, 3], [0, 0, 7, 5]])
    mask = np.zeros((5, 7), bool)
    mask[2:3, 1:4] = True
    left, top, right, bottom = turn.boxes(boxes, (5, 7)).astype(int)[0]
    expected = np.zeros_like(turn.pixels(mask))
    expected[top:bottom, left:right] = True
    np.testing.assert_array_equal(turn.pixels(mask), expected)
    assert turn.boxes(boxes[:0], (5, 7)).shape == (0, 4)


@pytest.fixture
def photos(tmp_path):
    """A folder of one class and one split, with the image in every orientation."""
    folder = tmp_path / "data" / "train" / "photo"
    folder.mkdir(parents=True)
    for orientation in ORIENTATIONS:
        (folder / f"{orientation}.jpg").write_bytes(stored(orientation))
    return tmp_path / "data"


def test_folders_databases_and_their_batches_give_upright_images(photos, tmp_path):
    build(photos, tmp_path / "lmdb")
    for source in (open_split(photos, "train"), open_split(tmp_path / "lmdb", "train")):
        assert all(is_upright(source.read(index)) for index in range(8))
        transform = EvalTransform(image_size=(HEIGHT, WIDTH), crop_ratio=1.0, crop_mode="squash")
        (batch,) = eval_loader(source, transform, batch_size=8, rank=0, world=1, workers=0)
        assert all(is_upright(image.permute(1, 2, 0)) for image in batch["images"])


def test_databases_of_label_maps_turn_them_as_folders_do(tmp_path):
    folder = tmp_path / "masks"
    for part in ("images/train", "annotations/train"):
        (folder / part).mkdir(parents=True)
    for orientation in ORIENTATIONS:
        data = stored(orientation)
        (folder / "images/train" / f"{orientation}.jpg").write_bytes(data)
        labels = np.asarray(Image.open(io.BytesIO(data)))[..., 1] > 100
        Image.fromarray(labels.astype(np.uint8)).save(folder / "annotations/train" / f"{orientation}.png")
    (folder / "classes.json").write_text('["ground", "corner"]')
    build(folder, tmp_path / "lmdb")
    for data_dir in (folder, tmp_path / "lmdb"):
        source = open_masks(data_dir, "train")
        for index in range(8):
            image, labels = source.read(index)
            assert is_upright(image)
            np.testing.assert_array_equal(labels, np.asarray(image)[..., 1] > 100)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_prediction_and_the_page_see_the_upright_image(photos, tmp_path, orientation):
    path = photos / "train" / "photo" / f"{orientation}.jpg"
    opened = Image.open(path)
    for image in (path, str(path), opened, read_image(path), as_image(read_image(path))):
        assert is_upright(as_image(image))
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    (uploads / "a.jpg").write_bytes(path.read_bytes())
    image = receive(str(uploads / "a.jpg"), "a.jpg", uploads, 2**20)
    assert is_upright(as_image(image))
    # What the page keeps it draws on and asks about again.
    assert is_upright(as_image(as_image(image)))


class Eye(torch.nn.Module):
    """As much of a task as a scene asks for."""

    preprocessing = EvalTransform(image_size=(HEIGHT, WIDTH), crop_ratio=1.0, crop_mode="squash")

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_explanations_are_of_the_upright_image(photos, orientation):
    path = photos / "train" / "photo" / f"{orientation}.jpg"
    for image in (path, read_image(path), Image.open(path)):
        scene = Scene.of(Eye(), image)
        assert scene.original_size == (HEIGHT, WIDTH)
        values = Eye.preprocessing.denormalize(scene.images)[0].permute(1, 2, 0)
        assert is_upright(values)

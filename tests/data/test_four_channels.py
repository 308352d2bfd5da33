"""Images of four channels: alpha is a channel like the others, and other images are refused by name."""

import numpy as np
import pytest
from PIL import Image

from globalvit.data.classification.dataset import open_split
from globalvit.data.classification.transforms import EvalTransform
from globalvit.data.common.images import WrongChannels, read_image
from globalvit.data.common.loading import eval_loader
from globalvit.data.common.transforms import FitTransform
from globalvit.data.segmentation.dataset import open_masks
from globalvit.data.segmentation.transforms import SegmentEvalTransform, collate_images
from globalvit.tasks.inputs import as_image
from globalvit.weights.adapt import adapt_channels

FOUR = np.random.default_rng(0).integers(0, 256, (40, 48, 4), dtype=np.uint8)
PLAIN = FitTransform(short_side=None).for_channels(4)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_alpha_is_a_channel(tmp_path, suffix):
    Image.fromarray(FOUR).save(tmp_path / f"x.{suffix}")
    image = read_image(tmp_path / f"x.{suffix}", channels=4)
    np.testing.assert_array_equal(PLAIN.to_uint8(image).permute(1, 2, 0), FOUR)
    np.testing.assert_array_equal(np.asarray(as_image(image, 4)), FOUR)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), FOUR[..., :3])


def test_transparent_pixels_keep_their_colors_when_resized():
    values = np.full((40, 40, 4), 200, np.uint8)
    values[..., 3] = 0
    half = EvalTransform(image_size=(20, 20)).for_channels(4).to_uint8(as_image(values, 4))
    assert half[:3].unique().tolist() == [200]
    assert half[3].unique().tolist() == [0]


@pytest.mark.parametrize(
    ("mode", "channels"), [("RGB", "3 channels (RGB)"), ("L", "1 channels (L)"), ("LA", "2 channels (LA)")]
)
def test_other_images_are_refused_by_name(tmp_path, mode, channels):
    Image.new(mode, (8, 8)).save(tmp_path / "x.png")
    with pytest.raises(WrongChannels) as caught:
        read_image(tmp_path / "x.png", channels=4)
    assert str(caught.value) == (
        f"{tmp_path}/x.png has {channels}; expected 4, since the model takes --in-chans 4: save it as RGBA (PNG or "
        "TIFF, 8 bits), or train with --in-chans 3"
    )


def test_sources_read_what_the_transform_takes(tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.fromarray(FOUR).save(tmp_path / "train" / "a" / "x.png")
    (batch,) = eval_loader(
        open_split(tmp_path, "train"), EvalTransform(image_size=(32, 32)).for_channels(4), batch_size=1
    )
    assert batch["images"].shape == (1, 4, 32, 32)


def test_label_maps_have_images_of_four_channels(make_masks):
    data = make_masks({"train": 1})
    (data / "images" / "train" / "000.jpg").unlink()
    Image.fromarray(FOUR[:20, :24]).save(data / "images" / "train" / "000.png")
    source = open_masks(data, "train")
    (batch,) = eval_loader(source, PLAIN, make=SegmentEvalTransform(PLAIN), collate=collate_images, batch_size=1)
    assert batch["images"][0].shape == (4, 32, 32)


def test_data_of_three_channels_are_refused(toys):
    with pytest.raises(
        WrongChannels, match=r"an image has 3 channels \(RGB\), and the model takes 4; expected files of"
    ):
        next(iter(eval_loader(toys(1), PLAIN, batch_size=1)))


def test_statistics_beyond_three_channels_are_halves():
    assert PLAIN.mean == PLAIN.std == (0.5, 0.5, 0.5, 0.5)


def test_the_stem_repeats_its_channels():
    import torch

    kernel = torch.arange(3.0)[None, :, None, None]
    assert adapt_channels(kernel, 4).ravel().tolist() == pytest.approx([0, 0.75, 1.5, 0])

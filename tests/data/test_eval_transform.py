"""Evaluation's crop, resize and normalization: timm's, pixel for pixel."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from globalvit.data.classification.transforms import EvalTransform, TrainTransform


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def timms(transform):
    from timm.data.transforms_factory import transforms_imagenet_eval

    return transforms_imagenet_eval(
        transform.image_size,
        crop_pct=transform.crop_ratio,
        crop_mode=transform.crop_mode,
        interpolation=transform.interpolation,
        mean=transform.mean,
        std=transform.std,
    )


TRANSFORMS = [
    EvalTransform(image_size=64, crop_ratio=0.875),
    EvalTransform(image_size=64, crop_ratio=1.0, interpolation="bilinear"),
    EvalTransform(image_size=(48, 80), crop_ratio=0.9),
    EvalTransform(image_size=(80, 48), crop_ratio=1.0, interpolation="lanczos"),
    EvalTransform(image_size=(48, 64), crop_ratio=1.0, crop_mode="squash"),
]


@settings(max_examples=25, deadline=None)
@example(16, 160)
@example(64, 64)
@given(st.integers(16, 160), st.integers(16, 160))
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_every_value_equals_timms(transform, width, height):
    image = noise(width, height)
    assert torch.equal(transform(image), timms(transform)(image))


@pytest.mark.parametrize("size", [(1, 100_000), (100_000, 3)])
def test_very_long_images_cost_no_memory(size):
    assert EvalTransform(image_size=224)(Image.new("RGB", size)).shape == (3, 224, 224)


def test_cropping_first_or_last_gives_nearly_the_same(monkeypatch):
    transform, image = EvalTransform(image_size=(32, 40), crop_ratio=0.8), noise(90, 50)
    last = transform.to_uint8(image).int()
    monkeypatch.setattr("globalvit.data.classification.transforms.MOST_ENLARGED", 0)
    first = transform.to_uint8(image).int()
    assert (last - first).abs().max() <= 1


def test_the_kept_box_is_centered():
    assert EvalTransform(image_size=100, crop_ratio=0.5).kept_box(400, 300) == pytest.approx(
        (124.8, 75, 274.9, 225), 1e-2
    )
    assert EvalTransform(image_size=100, crop_mode="squash").kept_box(400, 300) == (0, 0, 400, 300)


def test_calling_is_normalizing_the_uint8_values():
    transform, image = EvalTransform(image_size=16), noise(20, 20)
    values = transform.to_uint8(image)
    assert values.dtype == torch.uint8
    assert torch.equal(transform(image), transform.normalize(values[None])[0])
    assert values.max() > 1, "normalizing must not change its input"


def test_denormalizing_gives_the_values_back():
    transform = EvalTransform(image_size=16)
    values = transform.to_uint8(noise(16, 16))
    assert torch.equal(transform.denormalize(transform.normalize(values)), values)


def test_one_mean_makes_gray_images():
    transform = EvalTransform(image_size=16, crop_ratio=1.0, mean=(0.5,), std=(0.25,))
    image = noise(16, 16)
    assert torch.equal(transform.to_uint8(image)[0], torch.from_numpy(np.array(image.convert("L"))))


def test_statistics_for_another_number_of_channels_are_the_mean():
    transform = EvalTransform(mean=(0.1, 0.2, 0.6), std=(1, 1, 4)).for_channels(1)
    assert transform.mean == pytest.approx((0.3,))
    assert transform.std == pytest.approx((2.0,))
    assert transform.for_channels(1) == transform


def test_files_with_other_channels_are_refused_with_the_way_out():
    text = r"image files give 3 channels, 1 as gray or 4 as RGBA, not 5; for other data make float tensors"
    with pytest.raises(ValueError, match=text):
        EvalTransform().for_channels(5)(noise(9, 9))


def test_plain_values_rebuild_it():
    transform = EvalTransform(image_size=(32, 48), crop_mode="squash")
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(transform).items()}
    assert EvalTransform(**values) == transform
    assert hash(EvalTransform(**values)) == hash(transform)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"crop_ratio": 0}, "crop_ratio=0 must be above 0 and at most 1"),
        ({"crop_ratio": 1.2}, "crop_ratio=1.2 must be above 0"),
        ({"crop_mode": "border"}, "crop_mode='border' must be 'center' or 'squash'"),
        ({"interpolation": "cubic"}, "interpolation='cubic' must be one of nearest, bilinear, bicubic"),
        ({"mean": (0.5,)}, r"mean=\(0.5,\) and std=\(.*\) need one value per channel each"),
        ({"std": (0.5, 0.5, 0.0)}, "std above 0"),
        ({"image_size": 0}, "image_size=0 must be 1 pixel or more"),
    ],
)
def test_wrong_values_are_named(wrong, text):
    with pytest.raises(ValueError, match=text):
        EvalTransform(**wrong)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"scale": (1.0, 0.5)}, "scale=1.0,0.5 must be the smaller number first, both above 0"),
        ({"ratio": (0, 1)}, "ratio=0,1 must be the smaller number first"),
        ({"interpolation": "cubic"}, "train interpolation='cubic' must be one of random, nearest"),
        ({"remode": "black"}, "remode='black' must be pixel, rand or const"),
        ({"recount": 0}, "recount=0 1 or more"),
    ],
)
def test_wrong_values_of_training_are_named(wrong, text):
    with pytest.raises(ValueError, match=text):
        TrainTransform(**wrong)

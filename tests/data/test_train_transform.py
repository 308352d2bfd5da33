"""Augmentation: timm's, a function of (seed, epoch, index), and nothing else changes."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from globalvit.data.classification.augment import build_pipeline
from globalvit.data.classification.transforms import EvalTransform, TrainTransform
from globalvit.data.common.randomness import Purpose, derive, seeded

PUBLISHED = TrainTransform(image_size=32, aa="rand-m9-mstd0.5-inc1", reprob=0.25)


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))


def test_a_sample_is_a_function_of_seed_epoch_and_index(image):
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    first = [PUBLISHED(image, *key) for key in keys]
    random.seed(5)
    again = [PUBLISHED(image, *key) for key in reversed(keys)][::-1]
    assert all(torch.equal(a, b) and r == s for (a, r), (b, s) in zip(first, again, strict=True))
    assert all(not torch.equal(first[0][0], other) for other, _ in first[1:])


def test_the_processes_own_random_state_is_left_alone(image):
    def state():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = state()
    PUBLISHED(image, 0, 0, 0)
    with pytest.raises(KeyError), seeded(7):
        raise KeyError
    assert state() == before


def test_seeds_of_different_purposes_and_keys_differ():
    seeds = {derive(purpose, *key) for purpose in Purpose for key in [(0,), (0, 1), (1, 0), (2**40, 3, 4)]}
    assert len(seeds) == 4 * len(Purpose)


def test_it_is_timms_transform(image):
    from timm.data import create_transform

    for aa, jitter in [("rand-m9-mstd0.5-inc1", 0.4), (None, 0.4), (None, None)]:
        ours = TrainTransform(image_size=(24, 32), aa=aa, color_jitter=jitter, vflip=0.5)
        theirs = create_transform(
            (3, 24, 32), is_training=True, auto_augment=aa, color_jitter=jitter, vflip=0.5, interpolation="random",
            normalize=False,
        )  # fmt: skip
        for index in range(20):
            with seeded(derive(Purpose.AUGMENT, 3, 4, index)):
                expected = theirs(image)
            assert torch.equal(ours(image, 3, 4, index)[0], expected)


@pytest.mark.parametrize(
    "aa",
    [
        "rand-m9-mstd0.5-inc1",
        "rand-m10-n4-p1.0-inc1",
        "rand-m0-n4-p1.0",
        "rand-m9-tweights",
        "rand-m9-n3-mstd101-inc1",
        "original-mstd0.5",
        "v0r",
        "augmix-m10-w2",
        "3a",
    ],
)
def test_no_notation_of_timms_ever_fails(image, aa):
    """Pillow refuses what timm asks of it at the highest magnitudes; that must reach nobody's training."""
    transform = TrainTransform(image_size=16, aa=aa)
    for index in range(60):
        assert transform(image, 0, 0, index)[0].shape == (3, 16, 16)


@pytest.mark.parametrize("name", ["Posterize", "PosterizeIncreasing", "PosterizeOriginal"])
@pytest.mark.parametrize("magnitude", [0, 5, 10])
def test_posterising_keeps_at_least_one_bit(image, name, magnitude):
    pipeline = build_pipeline(
        image_size=(16, 16), scale=(1, 1), ratio=(1, 1), hflip=0, vflip=0, aa="original", color_jitter=None,
        interpolation="bilinear", mean=(0, 0, 0),
    )  # fmt: skip
    assert pipeline(image).size == (16, 16)
    from timm.data.auto_augment import LEVEL_TO_ARG

    from globalvit.data.classification.augment import _posterize

    bits = LEVEL_TO_ARG[name](magnitude, {})[0]
    every_value = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    assert len(np.unique(_posterize(every_value, bits))) == 2 ** max(bits, 1)


def test_nonsense_is_refused_with_an_example():
    for wrong in ("rand-q9", "bogus"):
        with pytest.raises(ValueError, match=rf"aa='{wrong}'.* not understood; timm's notation is like rand-m9"):
            TrainTransform(aa=wrong).prepare()
    with pytest.raises(ValueError, match=r"color_jitter=\(0.1, 0.2\) are not understood"):
        TrainTransform(color_jitter=(0.1, 0.2)).prepare()


def test_without_augmentation_the_image_is_only_resized(image):
    transform = TrainTransform(
        image_size=32, scale=(1, 1), ratio=(1.25, 1.25), hflip=0, color_jitter=None, interpolation="bicubic"
    )
    expected = EvalTransform(image_size=32, crop_mode="squash").to_uint8(image)
    assert torch.equal(transform(image, 0, 0, 0)[0], expected)


def test_flips_and_colors_happen_as_asked(image):
    plain = {"image_size": (40, 50), "scale": (1, 1), "ratio": (1.25, 1.25), "color_jitter": None, "hflip": 0.0}
    values = TrainTransform(**plain)(image, 0, 0, 0)[0]
    assert torch.equal(TrainTransform(**plain | {"hflip": 1})(image, 0, 0, 0)[0], values.flip(2))
    assert torch.equal(TrainTransform(**plain, vflip=1.0)(image, 0, 0, 0)[0], values.flip(1))
    assert not torch.equal(TrainTransform(**plain | {"color_jitter": 0.9})(image, 0, 0, 0)[0], values)


def test_gray_images_are_augmented_too(image):
    transform = TrainTransform(image_size=16, aa="rand-m9-mstd0.5-inc1", mean=(0.5,), std=(0.5,))
    assert transform(image, 0, 0, 0)[0].shape == (1, 16, 16)

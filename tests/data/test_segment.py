"""Segmentation's training transform: images and labels stay together, and nothing but the key decides."""

import numpy as np
import pytest
import torch
from PIL import Image

from globalvit.data.built_in.shapes import SegmentShapes
from globalvit.data.common.loading import eval_loader, to_device, train_loader
from globalvit.data.common.transforms import FitTransform
from globalvit.data.segmentation.dataset import open_masks
from globalvit.data.segmentation.transforms import (
    SegmentEvalTransform,
    SegmentTrainTransform,
    collate_crops,
    collate_images,
)

COLORS = np.array([[250, 20, 20], [20, 250, 20], [20, 20, 250], [230, 230, 20]], np.uint8)
PLAIN = {"distortion": 0.0, "max_share": 1.0}


def blocks(height, width, cell=24):
    """An image whose colors say its labels: square cells of random classes."""
    random = np.random.default_rng(height)
    small = random.integers(0, 4, (-(-height // cell), -(-width // cell)), dtype=np.uint8)
    labels = small.repeat(cell, axis=0).repeat(cell, axis=1)[:height, :width]
    return Image.fromarray(COLORS[labels]), labels


def classes_of(image_CHW):
    """The class whose color is nearest, for each pixel."""
    pixels = image_CHW.permute(1, 2, 0).numpy().astype(int)
    return np.abs(pixels[:, :, None] - COLORS.astype(int)).sum(axis=3).argmin(axis=2)


@pytest.mark.parametrize("size", [(120, 200), (301, 97), (64, 64)])
@pytest.mark.parametrize("flips", [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_labels_stay_with_their_pixels(size, flips):
    transform = SegmentTrainTransform(
        image_size=(96, 128), short_side=110, long_side=300, hflip=flips[0], vflip=flips[1], **PLAIN
    )
    sample = blocks(*size)
    for index in range(6):
        image, labels = transform(sample, 0, 0, index)
        is_labeled = labels.numpy() != 255
        same = classes_of(image) == labels.numpy()
        # Bilinear edges are blended over a pixel or two; everywhere else color and label must say the same.
        assert same[is_labeled].mean() > 0.93
        inside = is_labeled & inner(labels.numpy())
        assert same[inside].all()


def inner(labels_HW, reach=3):
    """Pixels whose neighbors within `reach` all have their label."""
    padded = np.pad(labels_HW, reach, mode="edge")
    height, width = labels_HW.shape
    shifts = [(y, x) for y in range(2 * reach + 1) for x in range(2 * reach + 1)]
    return np.all([padded[y : y + height, x : x + width] == labels_HW for y, x in shifts], axis=0)


def test_only_the_key_decides():
    transform = SegmentTrainTransform(image_size=64, short_side=80)
    sample = SegmentShapes("train").read(3)
    first = transform(sample, 1, 2, 3)
    np.random.seed(5)
    torch.manual_seed(5)
    again = transform(sample, 1, 2, 3)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    others = [transform(sample, *key)[0] for key in ((0, 2, 3), (1, 1, 3), (1, 2, 4))]
    assert not any(torch.equal(first[0], other) for other in others)


@pytest.mark.parametrize("channels", [3, 1])
def test_what_is_missing_is_padded_with_the_mean_and_ignored(channels):
    statistics = FitTransform().statistics_for(channels)
    transform = SegmentTrainTransform(image_size=(80, 100), short_side=30, scale=(1, 1), **PLAIN, **statistics)
    image, labels = transform((Image.new("RGB", (60, 30), "white"), np.ones((30, 60), np.uint8)), 0, 0, 0)
    assert image.shape == (channels, 80, 100)
    assert (labels == 1).sum() == 30 * 60
    assert (labels[30:] == 255).all()
    assert (labels[:, 60:] == 255).all()
    normalized = transform.normalize(image)
    assert normalized[:, labels == 255].abs().max() < 0.01
    assert normalized[:, labels == 1].min() > 1


def test_sizes_follow_the_ratio_and_the_longer_side():
    sizes = set()
    transform = SegmentTrainTransform(image_size=2000, short_side=100, long_side=250, scale=(0.5, 2), **PLAIN)
    for index in range(40):
        _, labels = transform((Image.new("RGB", (600, 200)), np.zeros((200, 600), np.uint8)), 0, 0, index)
        height, width = (int((labels == 0).any(dim=dim).sum()) for dim in (1, 0))
        sizes.add(width)
        assert abs(width - 3 * height) <= 2
    # The longer side, 300 by the shorter one's rule, is held to 250 times the ratio.
    assert min(sizes) >= 125
    assert max(sizes) <= 500
    assert max(sizes) > 450
    assert min(sizes) < 160


def test_crops_that_one_class_fills_are_drawn_anew():
    labels = np.zeros((100, 800), np.uint8)
    labels[:, 300:320] = 1
    sample = Image.new("RGB", (800, 100)), labels
    shares = {}
    for max_share in (0.75, 1.0):
        transform = SegmentTrainTransform(
            image_size=(40, 60), short_side=100, scale=(1, 1), distortion=0, max_share=max_share
        )
        drawn = [transform(sample, 0, 0, index)[1] for index in range(60)]
        shares[max_share] = np.mean([(crop == 1).float().mean() > 0.25 for crop in drawn])
    assert shares[1.0] < 0.15
    assert shares[0.75] > 3 * shares[1.0]


def test_ignored_pixels_do_not_count_as_a_class():
    labels = np.full((64, 64), 255, np.uint8)
    labels[:, ::2] = 0
    labels[::4, ::2] = 1
    transform = SegmentTrainTransform(image_size=32, short_side=64, scale=(1, 1), max_share=0.8)
    _, crop = transform((Image.new("RGB", (64, 64)), labels), 0, 0, 0)
    assert set(crop.unique().tolist()) == {0, 1, 255}


def test_distortion_changes_colors_and_nothing_else():
    sample = SegmentShapes("train").read(0)
    plain, strong = (SegmentTrainTransform(image_size=96, short_side=128, distortion=value) for value in (0, 1))
    pairs = [(plain(sample, 0, 0, index), strong(sample, 0, 0, index)) for index in range(12)]
    assert all(torch.equal(one[1], other[1]) for one, other in pairs)
    changed = [(one[0].float() - other[0].float()).abs().mean() for one, other in pairs]
    assert np.mean([value > 1 for value in changed]) > 0.7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"short_side": 600, "long_side": 500}, "short_side=600, long_side=500 must be 1 or more, the smaller first"),
        ({"max_share": 0}, "max_share=0 must be above 0 and at most 1"),
        ({"hflip": 2}, "hflip=2, vflip=0.0 must be probabilities"),
        ({"distortion": -1}, "distortion=-1 must be 0 … 2"),
        ({"scale": (2, 1)}, "scale=2,1 must be the smaller number first"),
        ({"image_size": 0}, "image_size=0 must be 1 pixel or more"),
        ({"std": (1, 1, 0)}, "std above 0"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        SegmentTrainTransform(**options)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_the_loader_processes(workers):
    source, transform = SegmentShapes("train", 12), SegmentTrainTransform(image_size=48, short_side=64)
    loader = train_loader(source, transform, batch_size=4, seed=7, epoch=3, workers=workers, collate=collate_crops)
    batches = list(loader)
    loader.close()
    assert sorted(int(index) for batch in batches for index in batch["indices"]) == list(range(12))
    for batch in batches:
        assert batch["images"].shape == (4, 3, 48, 48)
        assert batch["labels"].shape == (4, 48, 48)
        for place, index in enumerate(batch["indices"].tolist()):
            image, labels = transform(source.read(index), 7, 3, index)
            assert torch.equal(batch["images"][place], image)
            assert torch.equal(batch["labels"][place], labels)


def test_evaluation_has_images_resized_and_labels_in_their_own_size():
    source, fit = SegmentShapes("val", 5), FitTransform(short_side=64, long_side=200)
    loader = eval_loader(source, fit, batch_size=2, make=SegmentEvalTransform(fit), collate=collate_images)
    batches = [to_device(batch, fit, "cpu") for batch in loader]
    assert [len(batch["images"]) for batch in batches] == [2, 2, 1]
    assert {tuple(image.shape) for batch in batches for image in batch["images"]} == {(3, 64, 64)}
    labels = [label for batch in batches for label in batch["labels"]]
    np.testing.assert_array_equal(torch.stack(labels), [source.read(index)[1] for index in range(5)])
    assert labels[0].dtype == torch.uint8


def test_unreadable_images_and_labels_are_skipped_and_counted(make_masks):
    root = make_masks({"train": 6})
    (root / "images" / "train" / "002.jpg").write_bytes(b"")
    (root / "annotations" / "train" / "004.png").write_bytes(b"\x89PNG")
    source, fit = open_masks(root, "train"), FitTransform(short_side=32)
    train = train_loader(source, SegmentTrainTransform(image_size=32), batch_size=6, seed=0, collate=collate_crops)
    (batch,) = train
    assert sorted(batch["indices"].tolist()) == [0, 1, 3, 3, 5, 5]
    evaluation = eval_loader(source, fit, batch_size=4, make=SegmentEvalTransform(fit), collate=collate_images)
    assert [index for batch in evaluation for index in batch["indices"].tolist()] == [0, 1, 3, 5]
    for loader in (train, evaluation):
        assert sorted(name[-7:] for name in loader.skipped.reasons) == ["002.jpg", "004.jpg"]


@pytest.mark.parametrize("workers", [0, 1])
def test_wrong_labels_stop_training_in_their_own_words(make_masks, workers):
    root = make_masks({"train": 4})
    Image.new("L", (24, 20), 9).save(root / "annotations" / "train" / "002.png")
    loader = train_loader(
        open_masks(root, "train"),
        SegmentTrainTransform(image_size=32),
        batch_size=4,
        seed=0,
        workers=workers,
        collate=collate_crops,
    )
    with pytest.raises(ValueError, match=r"^\S+002.png has label 9 but there are 3 classes, 0 … 2"):
        list(loader)
    loader.close()

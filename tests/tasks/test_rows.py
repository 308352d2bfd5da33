"""Scores made a few rows at a time are those made at once."""

import pytest
import torch
import torch.nn.functional as F

from globalvit.models.layers import resize_bilinear
from globalvit.tasks import rows
from globalvit.tasks.rows import Held, Mirrored, Resized, Windowed, likeliest, starts, whole

CLASSES = 4


def infer(images_BCHW):
    """Scores on a grid of stride 8 that depend on where in its window a pixel is, as a network's do."""
    pooled = F.adaptive_avg_pool2d(images_BCHW, [-(-side // 8) for side in images_BCHW.shape[-2:]])
    return torch.cat([pooled, pooled.flip(-1)[:, :1] * pooled.cumsum(-2)[:, 1:2]], 1)


def naive(image_CHW, crop, stride):
    """The formula: every window's logits at its own size, summed, divided by how many windows saw a pixel."""
    height, width = image_CHW.shape[-2:]
    total, visits = torch.zeros(CLASSES, height, width), torch.zeros(height, width)
    sides = min(crop, height), min(crop, width)
    for top in range(0, max(height - crop, 0) + stride, stride):
        for left in range(0, max(width - crop, 0) + stride, stride):
            y, x = min(top, height - sides[0]), min(left, width - sides[1])
            part = (slice(y, y + sides[0]), slice(x, x + sides[1]))
            total[:, *part] += resize_bilinear(infer(image_CHW[None, :, *part]), *sides)[0]
            visits[part] += 1
    assert visits.min() >= 1
    return total / visits


def in_bands(view, band):
    return torch.cat([view.rows(top, min(top + band, view.height)) for top in range(0, view.height, band)], 1)


def close(ours, reference):
    torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5 * float(reference.abs().max()))


@pytest.mark.parametrize("band", [1, 7, 1000])
@pytest.mark.parametrize(
    ("source", "wanted"),
    [((9, 13), (72, 104)), ((72, 104), (33, 200)), ((5, 5), (5, 40)), ((40, 30), (40, 30))],
    ids=str,
)
def test_resizing_rows_is_resizing_all(source, wanted, band):
    scores = torch.randn(CLASSES, *source)
    expected = F.interpolate(scores[None], wanted, mode="bilinear", align_corners=False)[0]
    close(in_bands(Resized(Held(scores), *wanted), band), expected)


@pytest.mark.parametrize("band", [1, 10, 1000])
@pytest.mark.parametrize(
    ("size", "crop", "stride"),
    [((70, 101), 32, 20), ((64, 96), 32, 32), ((100, 40), 48, 31), ((33, 32), 64, 43), ((65, 64), 64, 1)],
    ids=str,
)
def test_windows_in_bands_are_the_formula(size, crop, stride, band):
    image = torch.randn(3, *size)
    close(in_bands(Windowed(image, crop, stride, infer), band), naive(image, crop, stride))


def test_windows_resized_in_bands_are_the_formula_resized():
    image = torch.randn(3, 70, 101)
    expected = resize_bilinear(naive(image, 32, 20)[None], 140, 55)[0]
    close(in_bands(Resized(Windowed(image, 32, 20, infer), 140, 55), 9), expected)


def test_windows_are_seen_once_and_forgotten():
    seen = []
    view = Windowed(torch.randn(3, 320, 64), 32, 16, lambda images: seen.append(len(images)) or infer(images))
    held = []
    for top in range(0, 320, 8):
        view.rows(top, top + 8)
        held.append(len(view.seen))
    assert sum(seen) == len(view.tops) * len(view.lefts) == 19 * 3
    assert max(held) <= 3


def test_windows_start_a_stride_apart_and_end_with_the_side():
    assert starts(100, 32, 20) == [0, 20, 40, 60, 68]
    assert starts(32, 32, 20) == [0]
    assert starts(64, 32, 32) == [0, 32]


def test_mirrored_scores_are_mirrored():
    scores = torch.randn(CLASSES, 6, 9)
    assert torch.equal(Mirrored(Held(scores)).rows(2, 5), scores[:, 2:5].flip(-1))


def test_one_view_is_judged_by_its_scores_and_several_by_their_mean_softmax(monkeypatch):
    monkeypatch.setattr(rows, "BAND", 1)
    first, second = torch.randn(CLASSES, 6, 9), 5 * torch.randn(CLASSES, 6, 9)
    assert torch.equal(likeliest([Held(first)], CLASSES), first.argmax(0).to(torch.uint8))
    expected = (first.softmax(0) + second.softmax(0)).argmax(0)
    assert torch.equal(likeliest([Held(first), Held(second)], CLASSES).long(), expected)


def test_whole_images_go_through_the_size_that_was_seen():
    scores = torch.randn(CLASSES, 8, 12)
    expected = resize_bilinear(resize_bilinear(scores[None], 64, 96), 41, 50)[0]
    close(in_bands(whole(scores, (64, 96), (41, 50)), 6), expected)

"""Curves, score thresholds and the confusion matrix of boxes: what counting one by one gives."""

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from globalvit.metrics.coco_ap import CocoAP

CLASSES = ("cat", "dog", "eel")
FLOOR = 0.05


def boxes_of(random, total):
    corners = random.uniform(0, 60, (total, 2))
    return np.concatenate([corners, corners + random.uniform(8, 40, (total, 2))], axis=1)


def made(seed, images=12, crowds=True):
    """Detections near the objects and elsewhere, with ties among their scores."""
    random, metric = np.random.default_rng(seed), CocoAP(CLASSES, with_masks=False)
    for image_id in range(images):
        objects = boxes_of(random, 5)
        found = np.concatenate([objects + random.normal(0, 2.5, objects.shape), boxes_of(random, 4)])
        labels = random.integers(0, 3, 5)
        guesses = np.where(random.random(9) < 0.8, np.append(labels, random.integers(0, 3, 4)), 0)
        target = {
            "image_id": image_id, "size": (120, 120), "boxes": objects, "labels": labels, "masks": None,
            "areas": (objects[:, 2:] - objects[:, :2]).prod(1), "crowd": (random.random(5) < 0.2) & crowds,
        }  # fmt: skip
        metric.update([{"boxes": found, "labels": guesses, "scores": random.integers(6, 40, 9) / 40}], [target])
    return metric


@pytest.mark.parametrize("seed", range(4))
def test_the_area_under_the_curve_is_cocos_average_precision(seed):
    metric = made(seed)
    for curve, row in zip(metric.curves(), metric.report()["per_class"], strict=True):
        assert 100 * curve.ap == pytest.approx(row["ap_box_50"], abs=1e-9)
        assert curve.objects == row["objects"]


def counted(metric, label, threshold):
    """True and false detections above a threshold, image by image, without crowds."""
    true = false = 0
    for image in metric.images.values():
        free = [box for box, own in zip(image.target.boxes, image.target.labels, strict=True) if own == label]
        rows = [row for row in np.argsort(-image.found.scores, kind="stable") if image.found.labels[row] == label]
        for row in rows:
            if image.found.scores[row] <= threshold:
                continue
            ious = box_iou(torch.tensor(image.found.boxes[row])[None], torch.tensor(np.array(free)).reshape(-1, 4))[0]
            if len(free) and ious.max() >= 0.5:
                true += 1
                free.pop(int(ious.argmax()))
            else:
                false += 1
    return true, false


@pytest.mark.parametrize("seed", range(2))
def test_f1_and_the_best_threshold_are_those_of_counting_at_every_threshold(seed):
    metric = made(seed, crowds=False)
    tried = np.arange(2, 41) / 40 - 1 / 80
    for label, (curve, best) in enumerate(zip(metric.curves(), metric.score_thresholds(FLOOR), strict=True)):
        f1 = []
        for threshold in tried:
            true, false = counted(metric, label, threshold)
            f1.append(2 * true / (true + false + curve.objects))
        assert curve.f1_at(tried) == pytest.approx(f1)
        true, false = counted(metric, label, best)
        assert 2 * true / (true + false + curve.objects) == pytest.approx(max(f1))
        assert curve.best(FLOOR)[1] == pytest.approx(max(f1))


def test_the_confusion_matrix_counts_each_object_once_and_has_background():
    objects = np.array([[0, 0, 10, 10], [20, 20, 40, 40], [60, 60, 70, 70]], float)
    target = {
        "image_id": 1, "size": (90, 90), "boxes": objects, "labels": [0, 1, 2], "masks": None,
        "areas": [100, 400, 100], "crowd": [False, False, False],
    }  # fmt: skip
    found = {
        "boxes": [[0, 0, 10, 10], [20, 20, 40, 39], [23, 20, 40, 40], [80, 80, 90, 90]],
        "labels": [0, 2, 1, 1],
        "scores": [0.9, 0.8, 0.7, 0.6],
    }
    metric = CocoAP(CLASSES, with_masks=False)
    metric.update([found], [target])
    # The dog is taken for an eel, its second box is false, the eel is missed, and the last box is under its threshold.
    assert metric.confusion_matrix(FLOOR) == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0]]


def test_a_class_without_hits_has_no_threshold():
    target = {
        "image_id": 1, "size": (90, 90), "boxes": [[0, 0, 9, 9]], "labels": [0], "masks": None, "areas": [81],
        "crowd": [False],
    }  # fmt: skip
    metric = CocoAP(CLASSES, with_masks=False)
    metric.update([{"boxes": [[0, 0, 9, 9], [50, 50, 60, 60]], "labels": [0, 1], "scores": [0.5, 0.9]}], [target])
    assert metric.score_thresholds(FLOOR) == [pytest.approx(0.275), None, None]
    assert metric.curves()[1].ap is None

"""Accuracy counts as a person would, on one process and on many."""

import math

import pytest
import torch

from globalvit.metrics.accuracy import Accuracy

CLASSES = tuple("abcdefg")
# Seven classes, four images: right, right in the top five only, wrong altogether, right.
LOGITS = torch.tensor(
    [
        [9.0, 0, 0, 0, 0, 0, 0],
        [5.0, 4, 3, 2, 1, 0, -1],
        [6.0, 5, 4, 3, 2, 1, 0],
        [0.0, 0, 0, 0, 0, 0, 9],
    ]
)
LABELS = torch.tensor([0, 3, 6, 6])


def scored(*parts):
    metric = Accuracy(CLASSES)
    for part in parts:
        metric.update(LOGITS[part], LABELS[part])
    return metric


def test_a_case_counted_by_hand():
    scores = scored(slice(None)).compute()
    assert scores["top1"] == 50.0
    assert scores["top5"] == 75.0
    assert scores["count"] == 4
    rows = [sum(math.exp(x - row[label]) for x in row) for row, label in zip(LOGITS.tolist(), LABELS, strict=True)]
    assert scores["loss"] == pytest.approx(sum(map(math.log, rows)) / 4, rel=1e-6)


def test_merged_states_equal_one_process():
    merged = scored(slice(0, 1))
    merged.merge(scored(slice(1, 4)).state())
    whole = scored(slice(None))
    assert merged.compute() == pytest.approx(whole.compute(), rel=1e-12)
    assert merged.report() == whole.report()


def test_report_names_classes_and_says_nothing_of_those_without_images():
    report = scored(slice(None)).report()
    assert report["per_class"][6] == {"label": 6, "name": "g", "images": 2, "recall": 50.0, "precision": 100.0}
    assert report["per_class"][1]["recall"] is None
    assert report["per_class"][1]["precision"] is None
    assert report["confusion_matrix"][6] == [1, 0, 0, 0, 0, 0, 1]
    assert report["confusion_matrix"][3] == [1, 0, 0, 0, 0, 0, 0]


def test_with_few_classes_top5_is_everything():
    metric = Accuracy(("a", "b"))
    metric.update(torch.tensor([[0.0, 1.0]]), torch.tensor([0]))
    assert metric.compute()["top5"] == 100.0


def test_nothing_scored_is_an_error():
    with pytest.raises(ValueError, match="no image was scored; the validation split is empty or none of its files"):
        Accuracy(CLASSES).compute()

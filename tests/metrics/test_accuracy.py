"""Accuracy counts as a person would, on one process and on many."""

import math

import pytest
import torch

from globalvit.metrics.accuracy import Accuracy
from globalvit.metrics.confusion import Confusion

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


def test_a_batch_costs_the_same_with_any_number_of_classes(monkeypatch):
    def whole(*values, **options):
        raise AssertionError("the whole matrix was counted for one batch")

    monkeypatch.setattr(torch, "bincount", whole)
    monkeypatch.setattr(torch.Tensor, "bincount", whole)
    classes = tuple(map(str, range(2000)))
    metric = Accuracy(classes)
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(64, 2000, generator=generator), torch.arange(64) * 31
    for part in (slice(0, 40), slice(40, 64)):
        metric.update(logits[part], labels[part])
    expected = torch.zeros(2000, 2000, dtype=torch.int64)
    for label, guess in zip(labels.tolist(), logits.argmax(1).tolist(), strict=True):
        expected[label, guess] += 1
    assert torch.equal(metric.state()[0], expected)
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none").double()
    assert metric.compute()["loss"] == float(losses.mean())


def test_a_batch_is_counted_without_reading_from_its_device():
    # Tensors on the meta device have no values: any reading of them raises.
    metric = Accuracy(CLASSES)
    metric.update(LOGITS.to("meta"), LABELS.to("meta"))
    assert metric.confusion.device.type == "meta"


def test_labels_that_are_not_classes_are_named_at_once_and_when_counts_are_read():
    with pytest.raises(ValueError, match="expected labels from 0 to 6, got 9; correct the labels or num_classes"):
        Accuracy(CLASSES).update(LOGITS[:1], torch.tensor([9]))
    for label, words in ((9, "got 9; correct the labels"), (7, "got 7; count labels from 0"), (-1, "got -1; correct")):
        counts = Confusion(7)
        counts.add(torch.tensor([0, label]), torch.tensor([0, 0]))
        with pytest.raises(ValueError, match=words):
            counts.read()


def test_an_empty_batch_adds_nothing():
    metric = scored(slice(None))
    before = metric.compute()
    metric.update(LOGITS[:0], LABELS[:0])
    assert metric.compute() == before

"""Average precision and F1 of several labels per image, beside torchmetrics."""

import pytest
import torch
from torchmetrics.functional.classification import multilabel_average_precision, multilabel_f1_score

from globalvit.metrics.multi_label import MultiLabelScores


@pytest.fixture
def batch():
    """Logits with ties, and labels."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 4, generator=generator).mul(4).round() / 4
    return logits, (torch.rand(60, 4, generator=generator) < 0.3).float()


def test_scores_equal_those_of_torchmetrics(batch):
    logits, labels = batch
    metric = MultiLabelScores("abcd", (0.5,) * 4)
    metric.update(logits, labels)
    scores, expected_labels = metric.compute(), labels.long()
    probabilities = logits.sigmoid()
    expected = multilabel_average_precision(probabilities, expected_labels, 4, average=None)
    assert [row["ap"] for row in metric.report()["per_class"]] == pytest.approx((100 * expected).tolist(), rel=1e-6)
    assert scores["map"] == pytest.approx(100 * float(expected.mean()), rel=1e-6)
    for average in ("micro", "macro"):
        # A score of 0.5 counts here and not there.
        wanted = multilabel_f1_score(probabilities + 1e-7, expected_labels, 4, average=average)
        assert scores[f"f1_{average}"] == pytest.approx(100 * float(wanted), rel=1e-6)


def test_the_shares_of_processes_give_the_same_scores(batch):
    whole, merged = (MultiLabelScores("abcd", (0.5,) * 4) for _ in range(2))
    whole.update(*batch)
    for rank in range(2):
        share = MultiLabelScores("abcd", (0.5,) * 4)
        share.update(*(one[rank::2] for one in batch))
        merged.merge(share.state())
    scores, expected = merged.compute(), whole.compute()
    assert scores.pop("loss") == pytest.approx(expected.pop("loss"), rel=1e-12)
    assert scores == expected
    assert merged.best_thresholds() == whole.best_thresholds()


def test_best_thresholds_give_the_highest_f1(batch):
    logits, labels = batch
    metric = MultiLabelScores("abcd", (0.5,) * 4)
    metric.update(logits, labels)
    best = MultiLabelScores("abcd", metric.best_thresholds())
    best.update(logits, labels)
    for at, row in enumerate(best.report()["per_class"]):
        for value in logits[:, at].sigmoid().unique().tolist():
            other = MultiLabelScores("abcd", (value - 1e-6,) * 4)
            other.update(logits, labels)
            assert (other.report()["per_class"][at]["f1"] or 0) <= row["f1"] + 1e-9


def test_classes_without_images_are_left_out_with_a_warning(batch, caplog):
    logits, labels = batch
    labels[:, 2] = 0
    metric = MultiLabelScores(("cat", "dog", "fox", "owl"), (0.5,) * 4)
    metric.update(logits, labels)
    metric.compute()
    assert "1 of 4 classes have no image and no AP, such as 'fox'" in caplog.text
    assert metric.report()["per_class"][2]["ap"] is None
    assert metric.best_thresholds()[2] == 0.5

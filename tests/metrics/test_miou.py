"""Mean IoU counts as a person would, as torchmetrics does, and the same in any number of parts."""

import pytest
import torch

from globalvit.metrics.miou import IGNORE, MeanIoU

CLASSES = ("sky", "road", "car", "cat")
LABELS = torch.tensor([[0, 0, 0, 1], [1, 1, IGNORE, 1], [2, 2, 1, IGNORE]], dtype=torch.uint8)
PREDICTIONS = torch.tensor([[0, 0, 1, 1], [1, 0, 3, 1], [0, 0, 1, 2]])


def scored(*images):
    metric = MeanIoU(CLASSES)
    for predictions, labels in images:
        metric.update(predictions, labels)
    return metric


def images(count):
    for index in range(count):
        generator = torch.Generator().manual_seed(index)
        shape = (9, 7 + index)
        labels = torch.randint(0, 4, shape, generator=generator)
        labels[torch.rand(shape, generator=generator) < 0.1] = IGNORE
        yield torch.randint(0, 4, shape, generator=generator), labels.to(torch.uint8)


def test_a_case_counted_by_hand():
    # sky: 2 hits of 3, predicted 5; road: 4 of 5, predicted 5; car: none of 2; cat is nowhere that counts.
    scores = scored((PREDICTIONS, LABELS)).compute()
    assert scores["miou"] == pytest.approx(100 * (2 / 6 + 4 / 6 + 0) / 3)
    assert scores["macc"] == pytest.approx(100 * (2 / 3 + 4 / 5 + 0) / 3)
    assert scores["pacc"] == pytest.approx(60.0)
    assert scores["count"] == 1
    assert next(iter(scores)) == "miou"


def test_the_report_has_a_row_for_each_class():
    report = scored((PREDICTIONS, LABELS)).report()
    assert report["per_class"][1] == {
        "label": 1,
        "name": "road",
        "pixels": 5,
        "iou": pytest.approx(400 / 6),
        "accuracy": 80.0,
        "precision": 80.0,
    }
    assert report["per_class"][2]["precision"] is None
    assert [report["per_class"][3][key] for key in ("pixels", "iou", "accuracy", "precision")] == [0, None, None, None]
    assert report["confusion_matrix"] == [[2, 1, 0, 0], [1, 4, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0]]


def test_a_class_that_is_only_predicted_counts_as_missed():
    scores = scored((torch.tensor([[0, 3]]), torch.tensor([[0, 0]]))).compute()
    assert scores["miou"] == pytest.approx(25.0)
    assert scores["macc"] == pytest.approx(50.0)


def test_torchmetrics_agrees():
    from torchmetrics import JaccardIndex

    metric, oracle = MeanIoU(CLASSES), JaccardIndex("multiclass", num_classes=4, ignore_index=IGNORE, average="none")
    for predictions, labels in images(5):
        metric.update(predictions, labels)
        oracle.update(predictions, labels.long())
    ious = oracle.compute()
    assert [row["iou"] for row in metric.report()["per_class"]] == pytest.approx((100 * ious).tolist(), rel=1e-6)
    assert metric.compute()["miou"] == pytest.approx(100 * float(ious.mean()), rel=1e-6)


@pytest.mark.parametrize("cuts", [(0, 7), (1, 3), (2, 2), (4, 6)])
def test_merged_states_equal_one_process(cuts):
    shown = list(images(7))
    parts = [shown[: cuts[0]], shown[cuts[0] : cuts[1]], shown[cuts[1] :]]
    merged = MeanIoU(CLASSES)
    for part in parts:
        merged.merge(scored(*part).state())
    whole = scored(*shown)
    assert merged.compute() == whole.compute()
    assert merged.report() == whole.report()


def test_nothing_scored_is_an_error():
    with pytest.raises(ValueError, match="no pixel was scored; the validation split is empty, none of its files"):
        scored((PREDICTIONS, torch.full_like(LABELS, IGNORE))).compute()


def test_labels_above_the_classes_are_refused():
    with pytest.raises(ValueError, match="expected labels from 0 to 3, or 255 for pixels to ignore, got 7; correct"):
        scored((torch.zeros(1, 3), torch.tensor([[5, 7, IGNORE]])))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"expected predictions of the labels' shape \(3, 2\), got \(2, 3\)"):
        scored((torch.zeros(2, 3), torch.zeros(3, 2)))


def test_an_image_is_counted_without_reading_from_its_device():
    metric = scored((PREDICTIONS.to("meta"), LABELS.to("meta")))
    assert metric.confusion.device.type == "meta"
    assert metric.count == 1

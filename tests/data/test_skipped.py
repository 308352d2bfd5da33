"""Unreadable images are counted and named; too many stop the run."""

import pytest

from globalvit.data.classification.transforms import EvalTransform, TrainTransform
from globalvit.data.common.loading import eval_loader, train_loader
from globalvit.data.common.samples import SkippedFiles, most_unreadable

TRAIN = TrainTransform(image_size=8, color_jitter=None)
EVAL = EvalTransform(image_size=8)


def test_training_takes_the_next_readable_image(toys, caplog):
    loader = train_loader(toys(12, bad=(3, 4, 11)), TRAIN, batch_size=12, seed=0)
    (batch,) = loader
    seen = batch["indices"].tolist()
    assert sorted(seen) == [0, 0, 1, 2, 5, 5, 5, 6, 7, 8, 9, 10]
    assert batch["labels"].tolist() == [index % 3 for index in seen]
    # The image belongs to its index: the toys' first channel is filled with it.
    assert loader.skipped.reasons.keys() == {"toys/3", "toys/4", "toys/11"}
    assert caplog.text.count("skipped: toys/4 cannot be read") == 1


def test_evaluation_leaves_them_out(toys, caplog):
    loader = eval_loader(toys(9, bad=(3, 4, 5, 8)), EVAL, batch_size=3)
    batches = list(loader)
    assert [batch["indices"].tolist() for batch in batches] == [[0, 1, 2], [6, 7]]
    assert loader.skipped.reasons.keys() == {"toys/3", "toys/4", "toys/5", "toys/8"}
    assert "skipped: toys/8 cannot be read" in caplog.text
    assert batches[1]["skipped"] == [("toys/8", "toys/8 cannot be read")]


def test_files_that_vanish_or_are_forbidden_count_as_well(toys):
    loader = eval_loader(toys(4, bad=(1,), error=PermissionError), EVAL, batch_size=4)
    assert len(next(iter(loader))["labels"]) == 3
    assert len(loader.skipped) == 1


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_too_many_stop_the_run(toys, workers):
    source = toys(40, bad=range(0, 22, 2))
    text = (
        r"11 of 40 images cannot be read, a run stops above 10 and 1%; `globalvit data check` lists them, "
        r"the last was: toys/\d+ cannot be read"
    )
    for loader in (
        eval_loader(source, EVAL, batch_size=4, workers=workers),
        train_loader(source, TRAIN, batch_size=40, seed=0, workers=workers),
    ):
        with pytest.raises(ValueError, match=text):
            list(loader)
        loader.close()


def test_a_set_without_any_readable_image_stops_at_once(toys):
    with pytest.raises(ValueError, match="3 of 3 images cannot be read"):
        list(train_loader(toys(3, bad=range(3)), TRAIN, batch_size=1, seed=0))
    with pytest.raises(ValueError, match="11 of 500 images cannot be read"):
        list(train_loader(toys(500, bad=range(500)), TRAIN, batch_size=1, seed=0))


@pytest.mark.parametrize(("total", "most"), [(5, 10), (1000, 10), (1100, 11), (100_000, 1000)])
def test_the_bound_is_ten_files_or_one_in_a_hundred(total, most):
    assert most_unreadable(total) == most
    skipped = SkippedFiles(total)
    skipped.add((str(index), "why") for index in range(most))
    assert len(skipped) == most
    with pytest.raises(ValueError, match=f"{most + 1} of {total} images"):
        skipped.add([("one more", "why")])


def test_the_same_file_counts_once_and_accounts_merge():
    skipped = SkippedFiles(100)
    skipped.add([("a", "x"), ("a", "x"), ("b", "y")])
    other = SkippedFiles(100)
    other.merge(skipped.reasons)
    other.merge({"b": "y", "c": "z"})
    assert other.reasons == {"a": "x", "b": "y", "c": "z"}

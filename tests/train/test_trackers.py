"""Experiment trackers: their numbers are those of metrics.jsonl, also after a resume; failures never end a run."""

import importlib.util

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import globalvit as gv
from globalvit.train.record import read_metrics
from globalvit.train.trackers import IDS_FILE, Trackers


@pytest.fixture
def given(settings):
    """Settings of a short run as Python's arguments."""

    def named(**changes):
        flags = settings(**changes)
        return flags | {"weights": None, "image_size": flags.pop("img_size")}

    return named


class StopAfter:
    def __init__(self, step):
        self.step = step

    def on_step(self, step):
        if step.step == self.step:
            raise gv.StopTraining


def scalars(folder):
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    found = {(tag, one.step): one.value for tag in events.Tags()["scalars"] for one in events.Scalars(tag)}
    return found, events.Tags()["images"]


@pytest.mark.usefixtures("toy", "rendered")
def test_numbers_in_tensorboard_are_those_of_the_records_also_after_a_resume(given):
    log = given(log=["tensorboard"], checkpoint_every=1)
    folder = gv.train(**log, callbacks=[StopAfter(3)]).folder
    first = (folder / IDS_FILE).read_text()
    gv.train(resume=folder)
    found, images = scalars(folder)
    expected = {
        (f"{record['kind']}/{name}", record["step"]): pytest.approx(value, rel=1e-6)
        for record in read_metrics(folder)
        for name, value in record.items()
        if isinstance(value, float)
    }
    assert found == expected
    assert {"samples", "confusion_matrix"} <= set(images)
    assert (folder / IDS_FILE).read_text() == first


def test_a_tracker_that_is_not_installed_is_an_error_before_anything_begins(given, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    for name, package in {"trackio": r"'globalvit\[loggers\]'", "wandb": "wandb"}.items():
        text = f"^--log {name} requires the package {name}, which is not installed; run: pip install {package}$"
        with pytest.raises(ImportError, match=text):
            gv.train(**given(log=[name]))
    assert not (tmp_path / "runs").exists()


def test_an_unknown_tracker_is_answered_by_those_there_are(given):
    with pytest.raises(ValueError, match=r"log='neptune' is not a tracker; expected any of tensorboard, trackio, wand"):
        gv.train(**given(log=["neptune"]))


def test_a_tracker_that_fails_ends_with_a_warning(tmp_path, caplog):
    (tmp_path / IDS_FILE).write_text("[")
    trackers = Trackers(["tensorboard"], tmp_path, 0, {"lr": 0.1, "window": None})

    def fail(*_, **__):
        raise ConnectionError("no\nnetwork")

    trackers.open["tensorboard"].log = fail
    trackers.log("train", 1, {"loss": 0.5})
    trackers.log("train", 2, {"loss": 0.5})
    trackers.close()
    assert "tensorboard ends here, the run continues without it: ConnectionError: no network" in caplog.text
    assert caplog.text.count("ends here") == 1
    assert "trackers.json is damaged, so trackers begin a new run" in caplog.text

"""Resumed runs go on with the data and classes that they began with, or say what changed."""

import logging
import shutil

import pytest

from globalvit.train.config import load_config
from globalvit.train.identity import require_classes
from globalvit.train.loop import train


@pytest.fixture
def run(toy, straight, images, tmp_path):
    """A copy of a run and of its images, and how to resume it."""
    data, folder = tmp_path / "data", tmp_path / "run"
    shutil.copytree(images, data)
    shutil.copytree(straight, folder)

    def resume(**changes):
        return train(load_config(folder / "config.yaml", {"resume": str(folder), "data_dir": str(data)} | changes))

    return folder, data, resume


def test_renamed_classes_are_refused_by_name(run):
    folder, data, resume = run
    before = (folder / "classes.json").read_text()
    for split in ("train", "val"):
        (data / split / "blue").rename(data / split / "violet")
    words = (
        r"cannot resume .*step-12 with other classes than the run began with \(3, expected 3\): class 0 was 'blue' and "
        r"is now 'green'; class 1 was 'green' and is now 'red'; class 2 was 'red' and is now 'violet'; restore"
    )
    for changes in ({}, {"accept_changed_data": True}):
        with pytest.raises(ValueError, match=words):
            resume(**changes)
    assert (folder / "classes.json").read_text() == before


def test_a_class_more_or_less_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"\(3, expected 2\): 'c' is new; restore their names and order"):
        require_classes(["a", "b"], ["a", "b", "c"], tmp_path)
    with pytest.raises(ValueError, match=r"\(1, expected 2\): 'b' is missing; restore"):
        require_classes(["a", "b"], ["a"], tmp_path)


def test_changed_files_are_refused_until_they_are_accepted(run, caplog):
    _, data, resume = run
    shutil.copy(data / "train/blue/0.png", data / "train/blue/copy.png")
    words = (
        r"the data changed since the run in .*run began: train: 28 files, \+1 \('blue' \+1 files, now 10\); restore "
        r"the data, or resume with --accept-changed-data"
    )
    with pytest.raises(ValueError, match=words):
        resume()
    resume(accept_changed_data=True)
    assert "resuming although the data changed (--accept-changed-data): train: 28 files, +1" in caplog.text
    # Accepted once, for this change only.
    resume()
    (data / "val/red/0.png").unlink()
    with pytest.raises(ValueError, match=r"began: val: 10 files, -1 \('red' -1 files, now 2\); restore"):
        resume()


def test_moved_data_are_the_same_data(run, tmp_path):
    folder, data, resume = run
    data.rename(tmp_path / "moved")
    assert resume(data_dir=str(tmp_path / "moved")) == folder


def test_a_run_without_a_record_of_its_data_gets_one_note(run, caplog):
    folder, _, resume = run
    (folder / "data.json").unlink()
    with caplog.at_level(logging.INFO):
        resume()
    assert caplog.text.count("has no data.json: whether the data changed since the run began is not known") == 1
    assert (folder / "data.json").exists()


def test_a_damaged_record_is_named(run):
    folder, _, resume = run
    (folder / "data.json").write_text("[]")
    with pytest.raises(ValueError, match=r"data.json is damaged: .*; restore it, or remove it to resume without"):
        resume()

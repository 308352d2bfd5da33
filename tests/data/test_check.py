"""What `data check` finds in a folder."""

import shutil
from importlib import import_module
from pathlib import Path

import pytest

from globalvit.data.classification.checks import check_folder
from globalvit.data.common.checks import default_workers


def kinds(report):
    return [problem.kind for problem in report.problems]


def test_a_sound_folder_has_no_problems(make_folder):
    seen = []
    report = check_folder(
        make_folder({"train": {"a": 2, "b": 1}, "val": {"a": 1, "b": 1}}),
        on_start=lambda total: seen.append(f"{total} in all"),
        on_image=lambda: seen.append("one"),
    )
    assert not report.problems
    assert [(split.name, split.classes, split.images) for split in report.splits] == [("train", 2, 3), ("val", 2, 2)]
    assert seen == ["5 in all", *["one"] * 5]


def test_every_kind_of_problem_is_found_and_named(make_folder):
    data = make_folder({"train": {"a": 3, "b": 2, "empty": 0}, "val": {"a": 1, "c": 1}, "odd": {}})
    (data / "odd").mkdir()
    (data / "train" / "a" / "000.png").write_bytes(b"")
    (data / "train" / "a" / "notes.txt").touch()
    shutil.copy(data / "train" / "a" / "001.png", data / "val" / "a" / "leaked.png")
    shutil.copy(data / "train" / "b" / "000.png", data / "train" / "a" / "also_b.png")
    shutil.copy(data / "train" / "b" / "001.png", data / "train" / "b" / "twice.png")
    report = check_folder(data)
    assert kinds(report) == ["empty class", "other classes", "unreadable", "leak", "two labels"]
    texts = [problem.text for problem in report.problems]
    assert texts[0] == f"no images in {data}/train/empty"
    assert texts[1].startswith("the classes of val are not the 2 expected: unexpected 'c'; missing 'b'; give every")
    assert texts[2] == f"{data}/train/a/000.png cannot be read as an image: the file is empty"
    assert texts[4] == "the same image is in class 'a', 'b'"
    assert texts[3] == "the same image is in train and val"
    notes = [(note.kind, note.text) for note in report.notes]
    empty = f"{data}/odd holds no class folders, but no images; expected {data}/odd/CLASS/IMAGE.jpg"
    assert notes == [("no classes", empty), ("classes", "train has 2: 'a', 'b'")]
    assert report.problems[3].files == (f"{data}/train/a/001.png", f"{data}/val/a/leaked.png")
    assert report.repeated == 1
    assert [(split.other_files, split.unreadable) for split in report.splits] == [(1, 1), (0, 0)]


def test_processes_find_the_same(make_folder, monkeypatch):
    data = make_folder({"train": {"a": 3}, "val": {"a": 2}})
    (data / "val" / "a" / "001.png").write_bytes(b"no image")
    alone = check_folder(data)
    monkeypatch.setattr("globalvit.data.common.checks.FEWEST_FOR_PROCESSES", 1)
    assert check_folder(data, workers=2) == alone
    assert kinds(alone) == ["unreadable"]


def test_an_oversized_image_is_a_problem_of_its_own(make_folder, monkeypatch):
    data = make_folder({"train": {"a": 1}})
    monkeypatch.setattr("globalvit.data.common.images.MOST_PIXELS", 100)
    assert kinds(check_folder(data)) == ["oversized"]


def test_a_folder_without_splits_and_the_built_in_set(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"holds no splits; expected .*/train/CLASS/IMAGE\.jpg"):
        check_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        check_folder(tmp_path / "gone")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="the built-in digits need no check; give a folder"):
        check_folder(Path("digits"))


def test_a_reading_process_that_dies_is_explained(make_folder, tmp_path, monkeypatch):
    (tmp_path / "deadly.py").write_text("import os\ndef read(path):\n    os._exit(9)\n")
    monkeypatch.syspath_prepend(tmp_path)
    data = make_folder({"train": {"a": 3}})
    monkeypatch.setattr("globalvit.data.common.checks.FEWEST_FOR_PROCESSES", 1)
    monkeypatch.setattr("globalvit.data.classification.checks._read_one", import_module("deadly").read)
    with pytest.raises(OSError, match="a reading process died, most often for want of memory; lower --workers"):
        check_folder(data, workers=1)


def test_there_is_at_least_one_process():
    assert 1 <= default_workers() <= 8


def test_images_outside_class_folders_and_pipes_are_said(make_folder, make_pipe, caplog):
    data = make_folder({"train": {"a": 2, "b": 2}, "val": {"a": 1, "b": 1}})
    (data / "train" / "loose.png").write_bytes((data / "train" / "a" / "000.png").read_bytes())
    make_pipe(data / "train" / "a" / "pipe.png")
    report = check_folder(data)
    assert f"{data}/train: 1 images outside class folders are left out" in caplog.text
    pipe = f"{data}/train/a/pipe.png is a pipe, socket or device"
    assert [note.text for note in report.notes if note.kind == "not a file"] == [pipe]

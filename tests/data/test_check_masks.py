"""What is found in sets of images and label maps."""

import shutil

import numpy as np
import pytest
from PIL import Image

from globalvit.cli.main import main
from globalvit.data.segmentation.checks import check_masks, is_mask_set
from globalvit.data.storage.lmdb_build import build


def kinds(report):
    return sorted(problem.kind for problem in report.problems)


def test_a_sound_set_has_no_problems(make_masks, make_folder):
    data, seen = make_masks({"training": 3, "validation": 2}), []
    report = check_masks(data, on_start=seen.append, on_image=lambda: seen.append("one"))
    assert report.problems == []
    assert [(split.name, split.classes, split.images) for split in report.splits] == [
        ("training", 3, 3),
        ("validation", 3, 2),
    ]
    assert seen == [5, *["one"] * 5]
    assert is_mask_set(data)
    assert not is_mask_set(make_folder({"train": {"a": 1}}))


def test_every_kind_of_problem_is_found(make_masks):
    data = make_masks({"train": 7, "val": 2})
    images, labels = data / "images" / "train", data / "annotations" / "train"
    (images / "000.jpg").write_bytes(b"")
    (labels / "001.png").write_bytes(b"\x89PNG")
    Image.new("L", (24, 20), 7).save(labels / "002.png")
    Image.new("L", (20, 24), 0).save(labels / "003.png")
    (labels / "004.png").unlink()
    (images / "005.jpg").unlink()
    shutil.copy(images / "006.jpg", data / "images" / "val" / "001.jpg")
    report = check_masks(data)
    assert kinds(report) == sorted(
        ["unreadable", "unreadable", "wrong labels", "other size", "no labels", "no image", "leak"]
    )
    texts = {problem.kind: problem.text for problem in report.problems}
    assert texts["wrong labels"].startswith(f"{labels / '002.png'} has label 7 but there are 3 classes")
    assert texts["other size"].startswith(f"{labels / '003.png'} is 20×24, but its image")
    assert (texts["no labels"], texts["no image"]) == (str(images / "004.jpg"), str(labels / "005.png"))
    assert texts["leak"] == "the same image is in train and val"
    assert [(split.images, split.unreadable) for split in report.splits] == [(6, 2), (2, 0)]


def test_classes_that_training_never_shows_are_named(make_masks):
    data = make_masks({"train": 2, "val": 1})
    for index in range(2):
        labels = np.random.default_rng(0).integers(0, 2, (20, 24), dtype=np.uint8)
        Image.fromarray(labels).save(data / "annotations" / "train" / f"00{index}.png")
    report = check_masks(data)
    (problem,) = (note for note in report.notes if note.kind != "format")
    assert not report.problems
    assert (problem.kind, problem.text) == ("unused class", "train has no pixel of 'class 2'")


def test_an_empty_split_is_a_problem(make_masks):
    assert "no images" in kinds(check_masks(make_masks({"train": 1, "val": 0})))


def test_databases_are_looked_over_too(make_masks, tmp_path):
    data = make_masks({"train": 3, "val": 2})
    shutil.copy(data / "images" / "train" / "000.jpg", data / "images" / "val" / "000.jpg")
    Image.new("L", (24, 20), 7).save(data / "annotations" / "train" / "002.png")
    build(data, tmp_path / "lmdb")
    report = check_masks(tmp_path / "lmdb")
    assert kinds(report) == ["leak", "wrong labels"]
    assert [split.images for split in report.splits] == [3, 2]
    assert is_mask_set(tmp_path / "lmdb")


def test_labels_are_read_as_training_is_told_to(make_masks):
    data = make_masks({"train": 3}, classes=4, names=False)
    assert kinds(check_masks(data, num_classes=3)) == ["wrong labels"] * 3
    assert check_masks(data, num_classes=3, reduce_zero_label=True).problems == []
    with pytest.raises(ValueError, match=r"are not known; add classes\.json"):
        check_masks(data)


def test_a_folder_without_splits_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no splits; expected .*/images/train and .*/annotations/train"):
        check_masks(tmp_path)


def test_the_command_looks_label_maps_over(make_masks, capsys):
    data = make_masks({"train": 2}, classes=4, names=False)
    words = ["data", "check", "--data-dir", str(data), "--workers", "0"]
    assert main([*words, "--num-classes", "4"]) == 0
    assert "no problems found" in capsys.readouterr().out
    (data / "annotations" / "train" / "001.png").unlink()
    assert main([*words, "--num-classes", "3", "--reduce-zero-label"]) == 1
    out = capsys.readouterr().out
    assert f"no labels: {data / 'images' / 'train' / '001.jpg'}\n" in out
    assert "problems: 1 × no labels" in out
    assert main(words) == 1
    assert "are not known; add classes.json" in capsys.readouterr().err


def test_processes_find_the_same(make_masks, monkeypatch):
    data = make_masks({"train": 4})
    (data / "images" / "train" / "002.jpg").write_bytes(b"")
    monkeypatch.setattr("globalvit.data.common.checks.FEWEST_FOR_PROCESSES", 1)
    assert check_masks(data, workers=1) == check_masks(data)

"""`globalvit predict`: table, files, labeled images, and images that cannot be read."""

import csv
import json
import os
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from globalvit.cli.main import main
from globalvit.data.classification.dataset import open_split
from globalvit.data.common.transforms import FitTransform
from globalvit.jobs.opening import ModelOptions, _check_crop


@pytest.fixture
def digits(tmp_path):
    """A folder with three digits, one of them in a folder below under the name of another, and a broken file."""
    source = open_split("digits", "val")
    folder = tmp_path / "digits"
    (folder / "more").mkdir(parents=True)
    for index, name in enumerate(["a.png", "b[1].png", "more/a.png"]):
        source.read(index).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


def test_answers_are_those_of_the_model(run_folder, digits, tmp_path, capsys):
    from globalvit.build import open_checkpoint

    answers, table = tmp_path / "a.json", tmp_path / "a.csv"
    words = ["--checkpoint", str(run_folder), "--top-k", "3", "--json", str(answers), "--csv", str(table)]
    assert main(["predict", str(digits), *words, "--precision", "fp32"]) == 1
    predictions = json.loads(answers.read_text())["predictions"]
    task = open_checkpoint(run_folder)
    names = [str(digits / name) for name in ("a.png", "b[1].png", "more/a.png")]
    expected = task.predict(names, top_k=3)
    assert [answer["image"] for answer in predictions] == names
    for answer, known in zip(predictions, expected, strict=True):
        assert answer["names"] == known["names"]
        assert answer["scores"] == pytest.approx(known["scores"], rel=1e-4)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "2", "3"] * 3
    assert rows[3]["name"] == expected[1]["names"][0]
    assert str(digits / "b[1].png") in capsys.readouterr().out


def test_one_bad_image_costs_no_other_answer(run_folder, digits, tmp_path, capsys, make_pipe):
    make_pipe(digits / "pipe.png")
    (digits / "empty").mkdir()
    latin = os.fsdecode(b"caf\xe9\n\x1b[31m\r.png")
    (digits / "b[1].png").rename(digits / latin)
    Image.new("1", (20_000, 10_000)).save(digits / "huge.png")
    bad = ["gone.png", "http://127.0.0.1:1/x.png", "ftp://host/x.png", str(digits / "empty"), "/dev/zero"]
    words = [*bad, str(digits), "--checkpoint", str(run_folder), "--output", str(tmp_path / "out"), "--draw"]
    assert main(["predict", *words]) == 1
    shown = capsys.readouterr()
    assert f"skipped: {digits / 'broken.jpg'} cannot be read as an image" in shown.err
    assert f"skipped: {digits / 'huge.png'} has more than 179 megapixels" in shown.err
    assert f"skipped: {digits / 'pipe.png'} is a pipe (FIFO), expected a regular file" in shown.err
    assert "skipped 8 of 11 images: gone.png, ftp://host/x.png, " in shown.err.splitlines()[-1]
    assert "caf\\udce9\\n\\x1b[31m\\r.png" in shown.out
    assert "\x1b" not in shown.out + shown.err
    written = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))
    names = [str(digits / name) for name in ("a.png", latin, "more/a.png")]
    assert [answer["image"] for answer in written["predictions"]] == names
    assert [entry["image"] for entry in written["skipped"]][-4:] == [
        str(digits / "pipe.png"),
        "http://127.0.0.1:1/x.png",
        str(digits / "broken.jpg"),
        str(digits / "huge.png"),
    ]
    with (tmp_path / "out" / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows][::5] == [name.replace("\udce9", "\\udce9") for name in names]


def test_it_fails_at_once_where_nothing_can_be_answered(run_folder, digits, capsys):
    assert main(["predict", str(digits / "broken.jpg"), "--checkpoint", str(run_folder)]) == 1
    shown = capsys.readouterr().err
    assert "globalvit: error: none of the 1 images could be predicted; first error: " in shown
    assert main(["predict", "gone.png", "also_gone.png", "--checkpoint", "gone"]) == 1
    assert capsys.readouterr().err.startswith("globalvit: error: gone.png does not exist; give images, folders or http")


def test_an_image_that_fails_in_a_batch_costs_no_other_answer(run_folder, digits, monkeypatch, tmp_path, capsys):
    from globalvit.tasks.classify import Classifier

    predict = Classifier.predict

    def picky(self, images, **options):
        if any(image[0].std() < 1e-4 for image in images):
            raise ValueError("an image of one color")
        return predict(self, images, **options)

    monkeypatch.setattr(Classifier, "predict", picky)
    Image.new("L", (40, 40), 9).save(digits / "flat.png")
    (digits / "broken.jpg").unlink()
    words = ["--checkpoint", str(run_folder), "--json", str(tmp_path / "a.json")]
    assert main(["predict", str(digits), *words]) == 1
    shown = capsys.readouterr().err
    assert "an image of one color; predicting these 4 images one at a time" in shown
    assert f"skipped 1 of 4 images: {digits / 'flat.png'}" in shown
    assert len(json.loads((tmp_path / "a.json").read_text())["predictions"]) == 3


def test_answers_that_cannot_be_written_are_shown(run_folder, digits, tmp_path, capsys):
    (tmp_path / "a.json").mkdir()
    (tmp_path / "file").write_text("")
    for words in (["--json", str(tmp_path / "a.json")], ["--csv", str(tmp_path / "file" / "a.csv")]):
        assert main(["predict", str(digits / "a.png"), "--checkpoint", str(run_folder), *words]) == 1
        shown = capsys.readouterr()
        assert str(digits / "a.png") in shown.out
        assert shown.err.splitlines()[-1].startswith("globalvit: error: ")


def test_a_drawing_that_cannot_be_written_costs_no_other(run_folder, digits, tmp_path, capsys):
    (tmp_path / "out" / "a.png").mkdir(parents=True)
    words = ["--checkpoint", str(run_folder), "--output", str(tmp_path / "out"), "--draw"]
    assert main(["predict", str(digits / "a.png"), str(digits / "b[1].png"), *words]) == 1
    assert (tmp_path / "out" / "b[1].png").is_file()
    assert f"skipped 1 of 2 images: {digits / 'a.png'}" in capsys.readouterr().err


def test_scores_that_are_not_finite_are_no_answers(digits, tmp_path, capsys):
    from globalvit.build import create_model, save_weights

    task = create_model("gcvit_xxtiny", classes=("a", "b"), image_size=32)
    task.head.linear.weight.data.fill_(float("nan"))
    save_weights(task, tmp_path / "nan.safetensors")
    words = ["--checkpoint", str(tmp_path / "nan.safetensors"), "--json", str(tmp_path / "a.json")]
    assert main(["predict", str(digits / "a.png"), *words, "--allow-nonfinite"]) == 1
    assert "the model's scores are not finite numbers; try --precision fp32" in capsys.readouterr().err
    assert json.loads((tmp_path / "a.json").read_text())["predictions"] == []


def test_labeled_images_never_overwrite_each_other(run_folder, digits, tmp_path):
    out = tmp_path / "out"
    words = [str(digits), str(digits / "a.png"), "--checkpoint", str(run_folder), "--output", str(out), "--draw"]
    assert main(["predict", *words]) == 1
    drawn = sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))
    assert drawn == ["a-2.png", "a.png", "b[1].png", "more/a.png"]
    answers = json.loads((out / "predictions.json").read_text())["predictions"]
    assert [answer["drawn"] for answer in answers][-1] == str(out / "a-2.png")
    with Image.open(out / "a.png") as page:
        assert page.width == 480


def test_running_out_of_memory_says_what_to_lower(run_folder, digits, monkeypatch, capsys):
    def exhausted(*values, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("globalvit.tasks.classify.Classifier.predict", exhausted)
    assert main(["predict", str(digits), "--checkpoint", str(run_folder)]) == 1
    assert "out of memory with 3 images per batch; lower --batch-size; predicting these 3 images one at a time" in (
        shown := capsys.readouterr().err
    )
    assert (
        "a.png: out of memory with one image; make the model's input smaller with --img-size or --short-side" in shown
    )
    assert "globalvit: error: none of the 4 images could be predicted" in shown


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["x.png"], 2, "no model given; use --checkpoint PATH for a trained model, or --model NAME"),
        (["x.png", "--model", "gcvit_tiny", "--draw"], 2, "--draw requires --output DIR"),
        (["x.png", "--model", "gcvit_tiny", "--top-k", "0"], 2, "--top-k 0 must be at least 1"),
        (
            ["x.png", "--model", "gcvit_tiny", "--max-detections", "0"],
            2,
            "expected --max-detections from 1 to 1000, got 0",
        ),
        (["x.png", "--model", "gcvit_tiny", "--tile", "8"], 2, "expected --tile of 32 pixels or more, got 8"),
        (
            ["x.png", "--model", "gcvit_tiny", "--tile", "64", "--overlap", "1"],
            2,
            "expected --overlap from 0 to 0.9, got 1.0",
        ),
        (
            ["x.png", "--model", "gcvit_tiny", "--overlap", "0.1"],
            2,
            "--overlap requires --tile, the side of the tiles in pixels",
        ),
        (["x.png", "--checkpoint", "a", "--weights", "b"], 2, "--checkpoint and --weights were both given"),
        (
            ["x.png", "--model", "gcvit_tiny", "--weights", "none"],
            2,
            "--weights none gives a model with random weights",
        ),
        (["--model", "gcvit_tiny"], 2, "globalvit predict requires IMAGES"),
        (["x.png", "--model", "gcvit_tiny"], 1, "x.png does not exist"),
        ([".", "--model", "gcvit_tinny"], 1, "model 'gcvit_tinny' is not known. Did you mean 'gcvit_tiny'"),
        ([".", "--checkpoint", "gone"], 1, "gone does not exist; give a weight file"),
    ],
)
def test_mistakes_are_one_line(words, status, text, digits, monkeypatch, capsys):
    monkeypatch.chdir(digits)
    assert main(["predict", *words]) == status
    shown = capsys.readouterr().err
    assert text in shown
    assert shown.count("\n") == 1


def test_mirror_images_are_averaged_by_the_option(run_folder, digits, tmp_path):
    from globalvit.build import open_checkpoint

    words = ["--checkpoint", str(run_folder), "--precision", "fp32", "--json", str(tmp_path / "a.json")]
    assert main(["predict", str(digits / "a.png"), *words, "--eval-flip"]) == 0
    (answer,) = json.loads((tmp_path / "a.json").read_text())["predictions"]
    (expected,) = open_checkpoint(run_folder).predict(digits / "a.png", flip=True)
    assert answer["scores"] == pytest.approx(expected["scores"], rel=1e-4)


def test_only_detectors_see_images_in_tiles(run_folder, digits, capsys):
    assert main(["predict", str(digits / "a.png"), "--checkpoint", str(run_folder), "--tile", "64"]) == 1
    assert "globalvit: error: --tile requires a detector; gcvit_" in (shown := capsys.readouterr().err)
    assert shown.splitlines()[-1].endswith(" is not one")


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        (
            "segment",
            {"crop_pct": 0.5},
            "--crop-pct has no effect on gcvit_xxtiny_x; leave it out, or give --short-side",
        ),
        ("detect", {"img_size": 64}, "--img-size has no effect on gcvit_xxtiny_x; leave it out, or give --short-side"),
        ("segment", {"img_size": 64}, None),
    ],
)
def test_sizes_that_a_task_does_not_take_are_refused(kind, options, text):
    spec = SimpleNamespace(model="gcvit_xxtiny_x")
    task = SimpleNamespace(kind=kind, preprocessing=FitTransform(), spec=spec)
    asked = ModelOptions(model="gcvit_xxtiny", **options)
    if text is None:
        _check_crop(task, asked)
    else:
        with pytest.raises(ValueError, match=text):
            _check_crop(task, asked)

"""`globalvit explain`: overlays, sheets, arrays, table, and mistakes."""

import numpy as np
import pytest
from PIL import Image

from globalvit.cli.main import main
from globalvit.data.classification.dataset import open_split


@pytest.fixture
def digits(tmp_path):
    """A folder with two digits and a broken file."""
    source = open_split("digits", "val")
    folder = tmp_path / "digits"
    (folder / "more").mkdir(parents=True)
    for index, name in enumerate(["a.png", "more/a.png"]):
        source.read(index).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


def test_images_sheets_arrays_and_a_table(run_folder, digits, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--checkpoint", str(run_folder), "--output", str(out), "--kind", "all", "--target", "3", "--npz"]
    assert main(["explain", str(digits), "gone.png", *words, "--pixel", "2,3"]) == 1
    shown = capsys.readouterr()
    assert f"skipped: {digits / 'broken.jpg'} cannot be read as an image" in shown.err
    assert f"skipped 2 of 4 images: gone.png, {digits / 'broken.jpg'}" in shown.err
    kinds = ["global-stage-3-block-1", "grad_cam-stage-3", "local-stage-3-block-0", "rollout-stage-3"]
    made = [*(f"a-{kind}.png" for kind in kinds), "a-sheet.png", "a.npz"]
    assert sorted(path.name for path in out.glob("*.*")) == made
    assert sorted(path.name for path in (out / "more").iterdir()) == made
    with np.load(out / "a.npz") as arrays:
        values = arrays["global-stage-3-block-1"]
        assert values.sum() + arrays["global-stage-3-block-1-padding_share"] == pytest.approx(1, abs=1e-5)
        assert arrays["original_size"].tolist() == [8, 8]
    lines = [line.split() for line in shown.out.splitlines() if str(digits / "a.png") in line]
    assert [line[1] for line in lines] == ["local", "global", "rollout", "grad_cam"]
    assert lines[-1][-1] == "3"
    with Image.open(out / "a-sheet.png") as sheet:
        assert sheet.width > 900


@pytest.mark.parametrize(
    ("words", "made"),
    [
        ([], ["global-stage-2-block-5", "global-stage-3-block-1", "grad_cam-stage-2", "grad_cam-stage-3", "sheet"]),
        (["--kind", "local", "--stage", "3"], ["local-stage-3-block-0", "sheet"]),
        (["--kind", "local", "--stage", "1", "--block", "0", "--head", "2"], ["local-stage-1-block-0-head-2", "sheet"]),
    ],
)  # fmt: skip
def test_what_is_shown_follows_what_is_asked(run_folder, digits, tmp_path, words, made):
    out = tmp_path / "out"
    words = [str(digits / "a.png"), "--checkpoint", str(run_folder), "--output", str(out), *words]
    assert main(["explain", *words]) == 0
    assert sorted(path.stem.removeprefix("a-") for path in out.iterdir()) == made


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["--kind", "groups"], 1, "gcvit_xxtiny has no kind='groups'; it has local, global, rollout, grad_cam"),
        (["--kind", "globl"], 2, "--kind 'globl' is not understood: expected one of local, global"),
        (["--kind", "global", "--stage", "7"], 1, "stage=7 is not there; kind='global' of gcvit_xxtiny has"),
        (["--kind", "local", "--pixel", "8,0"], 1, "a.png: pixel=8,0 is not in the image; x goes from 0 to 7"),
        (["--kind", "all", "--stage", "9"], 1, "gcvit_xxtiny has nothing to show at --stage 9; add --kind"),
        (["--group", "2"], 1, "--group has no effect on grad_cam, global of gcvit_xxtiny; leave it out"),
        (["--kind", "rollout", "--target", "1"], 1, "--target has no effect on rollout of gcvit_xxtiny"),
        (["--target", "eleven"], 1, "class 'eleven' is not known. Known: 0, 1, 2, 3, 4, 5, 6, 7, …"),
        (["--stage", "9"], 1, "gcvit_xxtiny has nothing to show at --stage 9; add --kind"),
        (["--kind", "all", "--head", "99", "--stage", "1"], 1, "--head has no effect on rollout, grad_cam of gcvit_"),
        (["--kind", "global", "--head", "99"], 1, "head=99 is not there; kind='global' of gcvit_xxtiny in stage 3"),
        (["--batch-size", "2"], 2, "--batch-size has no effect on explain, which processes one image at a time"),
        (["--short-side", "64"], 1, "--short-side has no effect on gcvit_xxtiny; leave it out, or give --img-size"),
        (["--pixel", "3"], 2, "--pixel '3' is not understood: expected 2 whole numbers"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(run_folder, digits, words, status, text, capsys):
    assert main(["explain", str(digits / "a.png"), "--checkpoint", str(run_folder), *words]) == status
    *before, shown = capsys.readouterr().err.splitlines()
    assert text in shown
    assert all(line.startswith("precision ") for line in before)


def test_heads_that_only_some_stages_have_are_shown_there(run_folder, digits, tmp_path):
    out = tmp_path / "out"
    words = ["--checkpoint", str(run_folder), "--output", str(out), "--kind", "global", "--head", "6"]
    assert main(["explain", str(digits / "a.png"), *words]) == 0
    assert sorted(path.stem for path in out.iterdir()) == [
        "a-global-stage-2-block-5-head-6",
        "a-global-stage-3-block-1-head-6",
        "a-sheet",
    ]


@pytest.mark.parametrize("precision", [["--precision", "bf16"], ["--amp"]])
def test_lower_precision_shows_the_same_kinds(run_folder, digits, tmp_path, precision):
    words = ["--checkpoint", str(run_folder), "--output", str(tmp_path / "out"), *precision]
    assert main(["explain", str(digits / "a.png"), *words]) == 0
    assert len(list((tmp_path / "out").iterdir())) == 5


def test_what_one_image_lacks_is_left_out_of_that_one(run_folder, digits, tmp_path, capsys):
    with Image.open(digits / "a.png") as small:
        small.resize((40, 40)).save(digits / "large.png")
    words = ["--checkpoint", str(run_folder), "--output", str(tmp_path / "out"), "--kind", "local", "--pixel", "30,30"]
    assert main(["explain", str(digits / "a.png"), str(digits / "large.png"), *words]) == 0
    shown = capsys.readouterr()
    assert f"left out: {digits / 'a.png'}: pixel=30,30 is not in the image; x goes from 0 to 7" in shown.err
    assert {path.stem.split("-")[0] for path in (tmp_path / "out").iterdir()} == {"large"}


def test_it_fails_where_no_image_can_be_read(run_folder, digits, tmp_path, capsys):
    words = ["--checkpoint", str(run_folder), "--output", str(tmp_path / "out")]
    assert main(["explain", str(digits / "broken.jpg"), *words]) == 1
    assert "globalvit: error: none of the 1 images could be explained; first error: " in capsys.readouterr().err


def test_running_out_of_memory_says_what_to_lower(run_folder, digits, tmp_path, monkeypatch, capsys):
    def exhausted(*values, **options):
        raise MemoryError

    monkeypatch.setattr("globalvit.explain.explain", exhausted)
    words = ["--checkpoint", str(run_folder), "--output", str(tmp_path / "out")]
    assert main(["explain", str(digits / "a.png"), *words]) == 1
    assert "out of memory with one image; make the model's input smaller with --img-size" in capsys.readouterr().err

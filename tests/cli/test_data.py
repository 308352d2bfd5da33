"""`globalvit data check` and `globalvit data preview`, as typed."""

import json

import numpy as np
import pytest
from PIL import Image

from globalvit.cli.main import main


@pytest.fixture
def photos(tmp_path):
    """Three images in each of two classes and two splits."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("apple", "pear"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for index in range(3):
                Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return tmp_path / "photos"


def test_a_sound_folder_passes(photos, capsys):
    assert main(["data", "check", "--data-dir", str(photos)]) == 0
    output = capsys.readouterr().out
    assert "train" in output
    assert output.endswith("no problems found\n")


def test_problems_are_listed_and_fail(photos, tmp_path, capsys):
    broken = photos / "train" / "pear" / "1.png"
    broken.write_bytes(broken.read_bytes()[:90])
    (photos / "val" / "apple" / "0.png").write_bytes((photos / "train" / "apple" / "2.png").read_bytes())
    report = tmp_path / "report.json"
    assert main(["data", "check", "--data_dir", str(photos), "--json", str(report), "--workers", "0"]) == 1
    output = capsys.readouterr().out
    assert f"unreadable: {broken} cannot be read as an image: " in output
    leaked = [str(photos / place) for place in ("train/apple/2.png", "val/apple/0.png")]
    assert f"leak: the same image is in train and val: {', '.join(leaked)}\n" in output
    assert output.endswith("problems: 1 × unreadable, 1 × leak\n")
    written = json.loads(report.read_text())
    assert [problem["kind"] for problem in written["problems"]] == ["unreadable", "leak"]
    assert written["problems"][1]["files"] == leaked
    assert written["splits"][0] == {"name": "train", "classes": 2, "images": 6, "other_files": 0, "unreadable": 1}


def test_only_the_first_problems_of_a_kind_are_printed(photos, capsys):
    for index in range(25):
        (photos / "train" / "pear" / f"bad{index}.jpg").touch()
    assert main(["data", "check", "--data-dir", str(photos)]) == 1
    output = capsys.readouterr().out
    assert output.count("the file is empty") == 1
    assert "(and 24 more like it: " in output
    assert "use --json FILE to write all problems with their files\nproblems: 25 × unreadable" in output


def test_a_missing_folder_is_one_line(tmp_path, capsys):
    assert main(["data", "check", "--data-dir", str(tmp_path / "gone")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"globalvit: error: data folder {tmp_path}/gone does not exist.")
    assert error.count("\n") == 1
    assert main(["data", "check"]) == 2
    assert "requires --data-dir" in capsys.readouterr().err


@pytest.mark.parametrize(("images", "drawn"), [(2, 2), (3, 4), (99, 6)])
def test_a_preview_is_drawn_in_pairs(photos, tmp_path, capsys, images, drawn):
    output = tmp_path / "new" / "sheet.png"
    output.parent.mkdir()
    words = ["--config", "gcvit_xxtiny", "--data-dir", photos, "--img-size", 32, "--images", images, "--output", output]
    assert main(["data", "preview", *map(str, words)]) == 0
    # 32 pixels are enlarged five times; margins and two lines of text come on top.
    with Image.open(output) as sheet:
        assert sheet.size == (drawn * 166 + 6, 160 + 36 + 6 + 6)
    assert f"{output}: {drawn * 166 + 6}×208 pixels" in capsys.readouterr().out


def test_a_preview_is_a_function_of_epoch_and_seed(tmp_path):
    def sheet(*words):
        path = tmp_path / "sheet.png"
        words = ["--data-dir", "digits", "--config", "digits", "--images", "2", "--output", str(path), *words]
        assert main(["data", "preview", *words]) == 0
        return path.read_bytes()

    assert sheet() == sheet("--epoch", "0", "--seed", "0")
    assert len({sheet(), sheet("--epoch", "1"), sheet("--seed", "1"), sheet("--aa", "rand-m9-mstd0.5-inc1")}) == 4


def test_wrong_use_of_preview_is_one_line(capsys):
    assert main(["data", "preview", "--data-dir", "digits", "--images", "0"]) == 2
    assert "--images 0 must be 1 or more, --epoch 0 0 or more" in capsys.readouterr().err
    assert main(["data", "preview"]) == 2
    assert (
        "globalvit data preview requires --data-dir FOLDER with train/CLASS/ and val/CLASS/" in capsys.readouterr().err
    )
    assert main(["data", "preview", "--augment", "3"]) == 2
    assert "unknown option --augment" in capsys.readouterr().err
    assert main(["data", "prevew"]) == 2
    assert "Did you mean 'preview'?" in capsys.readouterr().err

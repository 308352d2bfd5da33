"""`globalvit benchmark`: tables, files, and what is said of wrong use."""

import csv
import json

import pytest
from PIL import Image

from globalvit.cli.main import main
from globalvit.models.variants import VARIANTS

SMALL = ["--image-size", "32", "--batch-size", "2", "--precision", "fp32", "--repeats", "1"]
TINY = ["--model", "gcvit_xxtiny", *SMALL]


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    from dataclasses import replace

    toy = replace(VARIANTS["gcvit_xxtiny"], depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), width=16)
    monkeypatch.setitem(VARIANTS, "gcvit_xxtiny", toy)


def test_a_run_shows_a_table_and_writes_everything(tmp_path, capsys):
    files = {name: tmp_path / "new" / f"speed.{name}" for name in ("json", "csv", "plot.png")}
    words = [*TINY, "--peer", "timm:test_resnet", "--json", str(files["json"]), "--csv", str(files["csv"])]
    assert main(["benchmark", *words, "--plot", str(files["plot.png"])]) == 0
    out = capsys.readouterr().out
    assert "inference, eager, fp32, batch 2, 32 pixels, cpu, × beside timm:test_resnet" in out
    assert "training step, eager, fp32, batch 2, 32 pixels, cpu" in out
    assert "speed ×" in out
    assert "memory ×" in out
    written = json.loads(files["json"].read_text())
    assert written["command"].startswith("globalvit benchmark --model gcvit_xxtiny")
    assert written["settings"]["image_size"] == [32]
    assert written["settings"]["seconds"] == 3.0
    assert {"cpu", "threads", "torch", "features"} <= written["machine"].keys()
    assert [(row["mode"], row["network"]) for row in written["rows"]] == [
        (mode, name) for mode in ("inference", "train") for name in ("gcvit_xxtiny", "timm:test_resnet")
    ]
    assert all(len(row["seconds"]) == 1 for row in written["rows"])
    with files["csv"].open() as opened:
        lines = list(csv.DictReader(opened))
    assert [line["network"] for line in lines] == [row["network"] for row in written["rows"]]
    assert float(lines[0]["speed_ratio timm:test_resnet"]) == written["rows"][0]["speed_ratios"]["timm:test_resnet"]
    assert lines[1]["speed_ratio timm:test_resnet"] == ""
    with Image.open(files["plot.png"]) as drawn:
        assert drawn.width > drawn.height


def test_without_a_peer_there_is_no_ratio(capsys):
    assert main(["benchmark", *TINY, "--mode", "inference"]) == 0
    out = capsys.readouterr().out
    assert "×" not in out
    assert "training" not in out


def test_several_sizes_are_lines_in_the_plot(tmp_path, capsys):
    words = [*TINY, "--mode", "inference", "--image-size", "64", "--plot", str(tmp_path / "a.svg")]
    assert main(["benchmark", *words]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [words[1] for words in shown if words[:1] == ["gcvit_xxtiny"]] == ["32", "64"]
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")


def test_a_model_that_timm_does_not_have_stands_alone(capsys, monkeypatch):
    from dataclasses import replace

    monkeypatch.setitem(VARIANTS, "gpvit_l1", replace(VARIANTS["gpvit_l1"], width=24))
    assert main(["benchmark", "--model", "gpvit_l1", *SMALL, "--peer", "auto", "--mode", "inference"]) == 0
    shown = capsys.readouterr()
    assert "×" not in shown.out
    assert "timm has no gpvit_l1 to compare with; choose another network with --peer timm:NAME" in shown.err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--kernels", "native"], "--kernels 'native' is not understood: expected one of auto, torch, c, triton"),
        (["--mode", "training"], "--mode 'training' is not one of inference, train."),
        (["--precision", "bf61"], "--precision 'bf61' is not one of auto, fp32, bf16, fp16. Did you mean 'bf16'"),
        (["--compile", "eagre"], "--compile 'eagre' is not one of eager, compiled, frozen, graphs, deployed,"),
        (["--batch-size", "0"], "--batch-size 0 must be at least 1"),
        (["--threads", "0"], "--threads 0 must be at least 1"),
        (["--repeats", "0"], "--repeats 0 must be at least 1"),
        (["--seconds", "0"], "--seconds 0 must be more than 0"),
        (["--image-size", "16"], "image_size=16 is too small; give 32 pixels or more a side"),
        (["--plot", "a.txt"], "--plot a.txt must end in .png, .pdf, .svg"),
        (
            ["--mode", "train", "--compile", "frozen"],
            "--compile frozen is for inference only, since weights are constant",
        ),
    ],
)
def test_wrong_use_is_one_line(words, text, capsys):
    assert main(["benchmark", *words]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--model", "gcvit_tny"], "model 'gcvit_tny' is not known. Did you mean 'gcvit_tiny'"),
        (["--model", "gcvit_y*"], "no model matches 'gcvit_y*'."),
        (["--peer", "swin"], "peer 'swin' is not understood; write timm:NAME, such as"),
        (["--peer", "timm:gcvit_tny"], "has no model 'gcvit_tny'. Did you mean 'gcvit_tiny'"),
        (
            ["--model", "gcvit_tiny_upernet", "--peer", "timm:test_vit"],
            "peers classify and gcvit_tiny_upernet does not;",
        ),
        (
            ["--compile", "graphs", "--device", "cpu"],
            "--compile graphs requires CUDA, but the device is cpu; use --compile compiled",
        ),
    ],
)
def test_what_cannot_be_measured_is_one_line(words, text, capsys):
    assert main(["benchmark", *words]) == 1
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1

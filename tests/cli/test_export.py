"""`globalvit export`: what it writes and prints, and what it says when it cannot."""

import json

import pytest
import torch

from globalvit.cli.main import main


def test_a_run_becomes_a_file_with_its_classes(run_folder, tmp_path, capsys):
    file = tmp_path / "digits.pt2"
    words = [
        "export",
        "--checkpoint",
        str(run_folder),
        "--output",
        str(file),
        "--image-size",
        "32",
        "--dynamic",
        "none",
    ]
    words.append("--postprocessing")
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "gcvit_xxtiny, softmax" in shown
    assert "input: 32×32 pixels, one image at a time, float32 NCHW, normalized; output: probabilities" in shown
    assert "license of the weights: not stated in the checkpoint" in shown
    extra = {"globalvit.json": ""}
    program = torch.export.load(file, extra_files=extra)
    assert json.loads(extra["globalvit.json"])["classes"] == list("0123456789")
    (probabilities,) = program.module()(torch.zeros(1, 3, 32, 32))
    assert probabilities.sum(1).tolist() == pytest.approx([1], abs=1e-5)
    assert main(words) == 1
    assert "digits.pt2 already exists; use --force to replace it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["--output", "a.onnx"], 2, "no model given; use --checkpoint PATH for a trained model, or --model NAME"),
        (["--model", "gcvit_xxtiny"], 2, "globalvit export requires --output"),
        (
            ["--checkpoint", "a", "--weights", "timm_in1k", "--output", "a.onnx"],
            2,
            "--checkpoint and --weights were both given; leave one out",
        ),
        (["--checkpoint", "nowhere", "--output", "a.onnx"], 1, "nowhere does not exist; give a weight file"),
        (
            ["--model", "gpvit_l1_upernet", "--output", "a.onnx"],
            1,
            "no weights are published for gpvit_l1_upernet; use --checkpoint PATH",
        ),
        (["--model", "gcvit_xxtiny", "--weights", "none", "--output", "a.onnx", "--opset", "9"], 2, "opset=9 must be"),
        (
            ["--model", "gcvit_xxtiny", "--output", "a.onnx", "--precision", "bf16"],
            2,
            "precision='bf16' is refused for",
        ),
        (
            ["--model", "gcvit_xxtiny", "--output", "a.txt"],
            2,
            "ending in .onnx (ONNX) or .pt2 (torch.export), got a.txt",
        ),
        (
            ["--model", "gcvit_xxtiny", "--output", "a.pt2", "--opset", "20"],
            2,
            "opset=20 does not apply to a .pt2 file",
        ),
        (
            ["--model", "gcvit_xxtiny", "--output", "a.onnx", "--score-threshold", "0.3"],
            2,
            "--score-threshold requires --postprocessing",
        ),
        (
            ["--model", "gcvit_xxtiny", "--output", "a.onnx", "--max-detections", "300"],
            2,
            "--max-detections requires --postprocessing; add it",
        ),
        (
            ["--model", "gcvit_xxtiny", "--output", "a.onnx", "--dynamic", "none,size"],
            2,
            "dynamic='none' must be 'batch', 'size', both or neither",
        ),
        (["--model", "gcvit_xxtiny", "--output", "a.onnx", "--image-size", "9"], 2, "image_size=9 is too small"),
    ],
)
def test_what_cannot_be_is_one_line(words, status, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *words]) == status
    assert text in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_files_place_is_named(tmp_path, capsys):
    (tmp_path / "a.pt2").mkdir()
    words = ["--model", "gcvit_xxtiny", "--weights", "none", "--force", "--output", str(tmp_path / "a.pt2")]
    assert main(["export", *words]) == 1
    assert f"{tmp_path / 'a.pt2'} is a folder; give a file name with --output" in capsys.readouterr().err

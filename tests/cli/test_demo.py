"""`globalvit demo` on the command line; the page itself is driven in tests/demo."""

import importlib.util
import socket
from pathlib import Path

import pytest

from globalvit.cli.demo import DemoOptions
from globalvit.cli.main import main
from globalvit.cli.options import parse


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["--port", "70000"], 2, "--port 70000 must be between 0 and 65535"),
        (["--max-upload-mb", "0"], 2, "--max-upload-mb 0 must be more than 0 and at most 1024"),
        (["--quick", "cats"], 2, "--quick 'cats' is not understood: expected one of digits, shapes, shapes_detection"),
        (["--runs", "gone"], 2, "--runs: expected a folder of globalvit train runs, got gone, which is not a folder"),
        (["--checkpoint", "gone"], 1, "gone does not exist; give a weight file, a checkpoint folder or a run folder"),
        (["--model", "gcvit_tinny"], 1, "model 'gcvit_tinny' is not known. Did you mean 'gcvit_tiny'"),
        (["--host", "192.0.2.1"], 1, "cannot listen on 192.0.2.1, port 7860: "),
    ],
)
def test_mistakes_are_one_line(words, status, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", *words]) == status
    shown = capsys.readouterr().err
    assert text in shown
    assert shown.count("\n") == 1


def test_a_taken_port_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["demo", "--port", str(taken.getsockname()[1])]) == 1
    assert "give another --port (0 picks any free port)" in capsys.readouterr().err


def test_without_gradio_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert main(["demo"]) == 1
    assert "gradio, which is not installed; run: pip install 'globalvit[demo]'" in capsys.readouterr().err


def test_checkpoints_are_given_one_by_one():
    options = parse(DemoOptions, ["--checkpoint", "runs/a b", "--checkpoint=c"], "globalvit demo", "")
    assert options.checkpoint == (Path("runs/a b"), Path("c"))

"""Files of a run that are cut, changed or replaced: each is named in one line, and the checkpoint before is offered."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from globalvit.cli.main import main
from globalvit.train.checkpoint import Checkpoints
from globalvit.train.record import METRICS_FILE, Recorder, read_metrics
from globalvit.train.report import read_confusion
from globalvit.train.state import read_state

STEP = "checkpoints/step-12"


@pytest.fixture
def run(toy, straight, images, tmp_path):
    """A copy of a finished run, and a function that damages one of its files."""
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)

    def damage(name, content):
        path = folder / name
        whole = path.read_bytes()
        path.unlink()
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content(whole) if callable(content) else content)
        return path

    return folder, damage


def half(data):
    return data[: len(data) // 2]


def flipped(data):
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (f"{STEP}/model.safetensors", half, "is damaged"),
        (f"{STEP}/ema.safetensors", flipped, "is damaged: its content has another checksum than when it was written"),
        (f"{STEP}/optimizer.pt", half, "is damaged: expected "),
        (f"{STEP}/optimizer.pt", flipped, "is damaged: its content has another checksum than when it was written"),
        (
            f"{STEP}/checksums.json",
            b"{}",
            "is damaged or of another version of globalvit: no entry 'model.safetensors'",
        ),
        (f"{STEP}/checksums.json", None, "is damaged or of another version of globalvit"),
        (f"{STEP}/state.json", half, "is damaged or of another version of globalvit: "),
        (f"{STEP}/state.json", b"[]", "is damaged or of another version of globalvit: "),
        (
            f"{STEP}/state.json",
            b"[" * 100_000,
            "is damaged or of another version of globalvit: it is nested too deeply",
        ),
        (
            f"{STEP}/state.json",
            lambda text: text.replace(b'"evaluated": 12', b'"evaluated": 11'),
            "has another checksum",
        ),
    ],
)
def test_a_damaged_checkpoint_is_named_with_the_one_before(run, capsys, name, content, words):
    folder, damage = run
    path = damage(name, content)
    assert main(["train", "--resume", str(folder)]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"globalvit: error: {path} "), last
    assert words in last
    assert last.endswith(f"; the checkpoint before it is --resume {folder}/checkpoints/step-10")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.yaml", b"seed: " + b"[" * 5000, "config.yaml is not readable as YAML"),
        ("config.yaml", b"seed: .inf", "seed=inf in "),
        (
            "config.yaml",
            b"",
            "config.yaml, got none; restore the file, or give --data-dir",
        ),
        (
            "config.yaml",
            lambda text: text.replace(b"workers: 0", b"workers: 1000000000"),
            "workers=1000000000 must be 0",
        ),
        ("config.yaml", b"#" * 2**21, "config.yaml is not a config file: expected at most 1048576 bytes, got 2097152"),
        (METRICS_FILE, b"{}\n", "metrics.jsonl, line 1 is damaged: expected a JSON record with kind, step and numbers"),
        (METRICS_FILE, None, "Is a directory: "),
        ("data.json", b'{"train": 1}', "data.json is damaged: "),
    ],
)
def test_other_damaged_files_are_named(run, capsys, name, content, words):
    folder, damage = run
    damage(name, content)
    assert main(["train", "--resume", str(folder)]) == 1
    assert words in capsys.readouterr().err.strip().splitlines()[-1]
    assert (folder / STEP).is_dir()


def test_what_a_run_writes_again_need_not_be_whole(run):
    folder, damage = run
    for name in ("classes.json", "summary.json", "report.json", "checkpoints/best", "checkpoints/last", "log.txt"):
        damage(name, b"\x00[]")
    assert main(["train", "--resume", str(folder)]) == 0
    assert json.loads((folder / "classes.json").read_text()) == ["blue", "green", "red"]


def test_checkpoints_of_older_versions_have_no_checksums(run, capsys):
    folder, _ = run
    (folder / STEP / "checksums.json").unlink()
    content = json.loads((folder / STEP / "state.json").read_text())
    del content["check"]
    (folder / STEP / "state.json").write_text(json.dumps(content))
    assert main(["train", "--resume", str(folder)]) == 0
    state = torch.load(folder / STEP / "optimizer.pt")
    first = next(iter(state["state"]))
    for values, words in (
        ({"state": {first: {"exp_avg": torch.zeros(1).expand(10**9)}}}, f"got that of '{first}'"),
        ({"groups": state["groups"][:1]}, "groups with the settings of AdamW, got others"),
        ({"groups": None}, "expected the state and groups of an optimizer"),
    ):
        torch.save(state | values, folder / STEP / "optimizer.pt")
        assert main(["train", "--resume", str(folder)]) == 1
        assert words in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("key", "value"),
    [("step", -1), ("step", "7"), ("step", True), ("best", "x"), ("scores", []), ("evaluated", 10**30)],
)
def test_values_of_a_state_are_checked(tmp_path, straight, key, value):
    content = json.loads((straight / STEP / "state.json").read_text())
    content["state"][key] = value
    del content["check"]
    (tmp_path / "state.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"state.json is damaged .*: .*{key}"):
        read_state(tmp_path)


def test_a_damaged_report_costs_only_the_matrix(tmp_path, caplog):
    path = tmp_path / "report.json"
    assert read_confusion(path, 2) == []
    for text in ("{", "[]", '{"confusion_matrix": [[1]]}', '{"confusion_matrix": [[1, 2], ["x", 3]]}'):
        path.write_text(text)
        assert read_confusion(path, 2) == []
    assert caplog.text.count("report.json is damaged, so the confusion matrix is not drawn") == 4
    path.write_text('{"confusion_matrix": [[1, 2], [0, 3]]}')
    assert read_confusion(path, 2) == [[1, 2], [0, 3]]


def test_a_full_disk_is_named_by_whatever_meets_it(tmp_path, caplog):
    recorder = Recorder(tmp_path)
    record = {"kind": "train", "step": 1, "loss": 0.5}
    recorder.add(record)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60, hard))
    try:
        with pytest.raises(OSError, match=r"(No space left on device|File too large): .*metrics\.jsonl"):
            recorder.add(record)
        recorder.logger.info("a line for the log that does not fit into it any more, however short the rest is")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        recorder.close()
    assert "log.txt ends here: [Errno 27] File too large" in caplog.text
    assert read_metrics(tmp_path) == [record]


def test_a_write_that_pytorch_cut_short_is_called_a_full_disk(tmp_path):
    def write(folder):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 201920 vs 201808")

    with pytest.raises(OSError, match=r"step-1: the disk is full, or a quota or limit is reached; there"):
        Checkpoints(tmp_path, keep=1).save(1, write)


@pytest.mark.slow
def test_a_sample_of_all_damages_ends_well():
    script = Path(__file__).parents[2] / "benchmarks" / "fuzz_runs.py"
    done = subprocess.run([sys.executable, script, "--cases=40"], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr

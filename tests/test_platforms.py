"""What Windows, macOS and simple file systems do not have is not needed: each such call fails here in turn."""

import builtins
import os
import signal
import sys
from pathlib import Path

import filelock  # noqa: F401 - libraries choose by platform when they are imported, so they are imported before it changes
import psutil
import pytest
import toy

from globalvit import atomic
from globalvit.cli.main import main
from globalvit.models.variants import VARIANTS
from globalvit.weights.pointers import follow

UNIX_MODULES = ("fcntl", "resource", "pwd", "grp", "termios")


def refuse(name):
    def call(*args, **kwargs):
        raise OSError(95, f"{name} is not supported")

    return call


def without_links(monkeypatch):
    """As exFAT, and mounted cloud folders: neither symbolic nor hard links."""
    monkeypatch.setattr(os, "symlink", refuse("symlink"))
    monkeypatch.setattr(os, "link", refuse("link"))
    monkeypatch.setattr(Path, "symlink_to", refuse("symlink_to"))
    monkeypatch.setattr(Path, "hardlink_to", refuse("hardlink_to"))


def without_folder_sync(monkeypatch):
    """As Windows: folders cannot be opened."""
    real = os.open

    def open_files(path, *flags, **words):
        if Path(path).is_dir() and not words:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *flags, **words)

    monkeypatch.setattr(os, "open", open_files)


def without_unix_modules(monkeypatch):
    """As Windows: the modules of Unix do not exist."""
    real = builtins.__import__

    def import_others(name, *rest, **words):
        if name.split(".")[0] in UNIX_MODULES:
            raise ImportError(f"No module named {name!r}", name=name)
        return real(name, *rest, **words)

    for name in UNIX_MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(builtins, "__import__", import_others)
    peak = type("Memory", (), {"peak_wset": 2**30, "rss": 2**29})
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _: peak)


def without_unix_calls(monkeypatch):
    """As Windows: calls of `os` and `signal` that exist on Unix only."""
    for name in ("fork", "geteuid", "getuid", "umask", "killpg", "setsid", "sync"):
        monkeypatch.delattr(os, name, raising=False)
    for name in ("SIGALRM", "SIGUSR1", "SIGHUP", "alarm", "setitimer", "pthread_kill"):
        monkeypatch.delattr(signal, name, raising=False)


def without_permissions(monkeypatch):
    """As FAT: modes cannot be changed."""
    monkeypatch.setattr(Path, "chmod", refuse("chmod"))
    monkeypatch.setattr(os, "chmod", refuse("chmod"))


def without_locks(monkeypatch):
    """As some network drives: files cannot be locked."""
    monkeypatch.setattr("fcntl.flock", refuse("flock"))


@pytest.fixture
def toy_models(monkeypatch):
    """The smallest variants, made tiny; curves are not rendered."""
    for name, network in toy.TOYS.items():
        monkeypatch.setitem(VARIANTS, name, network)
    monkeypatch.setattr("globalvit.train.plots._save", lambda _, path: atomic.write_text(path, ""))


PLATFORMS = (
    without_links,
    without_folder_sync,
    without_unix_modules,
    without_unix_calls,
    without_permissions,
    without_locks,
)


@pytest.mark.usefixtures("toy_models")
@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda platform: platform.__name__)
def test_training_resuming_and_predicting_need_none_of_it(platform, monkeypatch, tmp_path, capsys):
    platform(monkeypatch)
    words = ["--config", "digits", "--device", "cpu", "--precision", "fp32", "--batch-size", "32", "--workers", "0"]
    words += ["--checkpoint-every", "2", "--log-interval", "1", "--output", str(tmp_path), "--tag", "run"]
    assert main(["train", *words, "--steps", "3"]) == 0, capsys.readouterr().err
    run = tmp_path / "run"
    assert (run / "checkpoints" / "last").read_text() == "step-3\n"
    assert follow(run / "checkpoints" / "best" / "model.safetensors").is_file()
    assert main(["train", "--resume", str(run / "checkpoints" / "step-2")]) == 0, capsys.readouterr().err
    image = run / "samples" / "train_batch.png"
    assert main(["predict", "--checkpoint", str(run / "checkpoints" / "best"), str(image)]) == 0
    assert main(["validate", "--checkpoint", str(run), "--output", str(tmp_path / "scores")]) == 0
    assert (tmp_path / "scores" / "summary.json").is_file()


@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda platform: platform.__name__)
def test_splitting_and_packing_need_none_of_it(platform, monkeypatch, tmp_path, capsys):
    from PIL import Image

    for split in ("train", "val"):
        for name in ("a", "b"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8), "red" if name == "a" else "blue").save(folder / f"{split}.png")
    platform(monkeypatch)
    source, target = str(tmp_path / "data"), str(tmp_path / "packed")
    assert main(["data", "lmdb", "build", source, target]) == 0, capsys.readouterr().err
    assert main(["data", "lmdb", "verify", target, source]) == 0, capsys.readouterr().err
    unsplit = tmp_path / "unsplit"
    for name in ("a", "b"):
        (unsplit / name).mkdir(parents=True)
        for number in range(2):
            (unsplit / name / f"{number}.png").write_bytes((tmp_path / "data/val" / name / "val.png").read_bytes())
    assert main(["data", "split", str(unsplit), str(tmp_path / "new")]) == 0, capsys.readouterr().err
    assert len(list((tmp_path / "new/val").rglob("*.png"))) == 2

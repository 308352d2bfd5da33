"""One process trains in a run folder at a time; a second one waits, and then says who is there."""

import json
import os
import socket
import threading
import time

import pytest
from filelock import FileLock

from globalvit.locks import NO_LOCKS
from globalvit.train.owner import LOCK_FILE, OWNER_FILE, Owner


@pytest.fixture
def folder(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    return run


def test_a_second_owner_is_refused_with_the_name_of_the_first(folder, caplog):
    words = (
        rf"run folder {folder} is in use by process {os.getpid()} on {socket.gethostname()}, since .*; waited 0.2 s: "
        rf"wait for that run to end, stop it, or raise --lock-timeout"
    )
    (folder / "config.yaml").touch()
    with Owner(0.0) as first, Owner(0.2) as second:
        first.take(folder)
        first.take(folder)
        with pytest.raises(OSError, match=words):
            second.take(folder)
    with Owner(0.0) as third:
        third.take(folder)
        assert json.loads((folder / OWNER_FILE).read_text())["pid"] == os.getpid()
    assert sorted(path.name for path in folder.iterdir()) == [LOCK_FILE, "config.yaml"]


def test_a_second_owner_waits_for_the_first(folder):
    (folder / "config.yaml").touch()
    first = Owner(0.0)
    first.take(folder)
    threading.Timer(0.3, first.__exit__).start()
    start = time.monotonic()
    with Owner(10.0) as second:
        second.take(folder)
        assert 0.2 < time.monotonic() - start < 5


def test_what_a_dead_owner_left_is_removed(folder, caplog):
    caplog.set_level("INFO")
    (folder / OWNER_FILE).write_text(json.dumps({"host": socket.gethostname(), "pid": 2**22 + 1, "since": "1970"}))
    (folder / "plots").mkdir()
    for name in (".config-0123456789ab.yaml", "plots/.loss-0123456789ab.png", "kept.txt"):
        (folder / name).touch()
    with Owner(0.0) as owner:
        owner.take(folder)
        assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == [LOCK_FILE, OWNER_FILE, "kept.txt"]
    assert f"the last process that trained in {folder} did not exit cleanly: process {2**22 + 1} on " in caplog.text


@pytest.mark.parametrize("answer", [NotImplementedError(), *(OSError(code, "no locks") for code in NO_LOCKS)])
def test_a_file_system_without_locks_is_no_obstacle(folder, caplog, monkeypatch, answer):
    def refuse(*_, **__):
        raise answer

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with Owner(0.0) as owner:
        owner.take(folder)
        assert (folder / OWNER_FILE).exists()
    assert f"{folder / LOCK_FILE} cannot be locked on this file system; start only one process there" in caplog.text


def test_a_folder_that_cannot_be_written_is_an_error(folder, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with Owner(0.0) as owner, pytest.raises(PermissionError):
        owner.take(folder)


@pytest.mark.parametrize("has_saved", [False, True])
def test_a_new_run_that_ends_before_its_first_checkpoint_leaves_no_folder(folder, caplog, has_saved):
    caplog.set_level("INFO")
    with Owner(0.0) as owner:
        owner.take(folder, is_new=True)
        (folder / "log.txt").write_text("a line")
        (folder / "checkpoints").mkdir()
        if has_saved:
            (folder / "checkpoints" / "step-1").mkdir()
    assert folder.exists() == has_saved
    assert (f"no checkpoint was saved, so run folder {folder} was removed" in caplog.text) != has_saved


def test_a_run_that_failed_before_it_wrote_anything_leaves_no_folder(folder):
    with Owner(0.0) as owner:
        owner.take(folder)
    assert not folder.exists()


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"pid": "x"}'])
def test_a_damaged_note_hides_only_the_name(folder, note):
    with Owner(0.0) as first, Owner(0.0) as second:
        first.take(folder)
        (folder / OWNER_FILE).write_text(note)
        with pytest.raises(OSError, match="is in use by another process; waited 0 s"):
            second.take(folder)

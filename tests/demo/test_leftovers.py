"""Temporary folders of pages that were killed: removed by the next page, and no other folder is."""

import subprocess
import sys
import tempfile
import time

import psutil
import pytest

from globalvit.demo.leftovers import LOCK, PREFIX, own_folder

HOLD = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def make_folder(tmp_path, monkeypatch):
    """Make the folder of a page that began a number of seconds before this process, or after it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    # A folder's times cannot be set to the past, so the process is made younger.
    monkeypatch.setattr(psutil.Process, "create_time", lambda _: time.time() + 100)

    def make(name, is_locked=True):
        folder = tmp_path / f"{PREFIX}{name}"
        (folder / "uploads" / "deep").mkdir(parents=True)
        (folder / "uploads" / "deep" / "a.png").write_bytes(b"x")
        if is_locked:
            (folder / LOCK).touch()
        return folder

    return make


def test_only_folders_of_killed_pages_are_removed(make_folder, tmp_path, caplog):
    dead, unknown, live = make_folder("dead"), make_folder("unknown", is_locked=False), make_folder("live")
    link = tmp_path / f"{PREFIX}link"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / LOCK).touch()
    link.symlink_to(tmp_path / "photos")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(live / LOCK)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "locked\n"
        with caplog.at_level("INFO", logger="globalvit"), own_folder() as own:
            assert own.parent == tmp_path
            assert not dead.exists()
            assert all((folder / "uploads" / "deep" / "a.png").exists() for folder in (unknown, live))
            assert (link / LOCK).exists()
            assert f"removed temporary folders of killed pages in {tmp_path}: 1 folder(s)" in caplog.text
        assert not own.exists()
        holder.stdin.close()
    with own_folder():
        assert not live.exists()


def test_a_younger_folder_may_be_that_of_a_page_which_begins(make_folder, monkeypatch):
    young = make_folder("young")
    monkeypatch.setattr(psutil.Process, "create_time", lambda _: (young / LOCK).stat().st_ctime - 1)
    with own_folder():
        assert young.exists()


def test_two_pages_of_one_time_keep_their_folders(make_folder):
    assert callable(make_folder)
    with own_folder() as one, own_folder() as other:
        assert one.exists()
        assert other.exists()

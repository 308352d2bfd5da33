"""Files that are written as a whole: errors name the file that the user asked for."""

import os
import stat
from pathlib import Path

import pytest

from globalvit.atomic import replace_with, sync, write_text


def test_a_file_in_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(
        NotADirectoryError, match=r"a/b\.txt cannot be written: .*/a is not a folder; choose another path"
    ):
        write_text(tmp_path / "a" / "b.txt", "x")


def test_the_users_name_is_in_the_error(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(13, "Permission denied", "/somewhere/.x-0123456789ab.csv")

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(PermissionError, match=r"Permission denied: '.*/x\.csv'"):
        write_text(tmp_path / "x.csv", "x")


def test_a_file_has_the_mode_that_the_user_wants(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "x", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


def test_a_failure_keeps_the_old_content_and_leaves_nothing_else(tmp_path):
    write_text(tmp_path / "x", "old")
    with pytest.raises(FileNotFoundError), replace_with(tmp_path / "x") as temporary:
        temporary.write_text(Path(tmp_path / "gone").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "old"


def test_a_system_that_cannot_sync_folders_writes_all_the_same(tmp_path, monkeypatch):
    real = os.open

    def open_files_only(path, *flags):
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *flags)

    monkeypatch.setattr(os, "open", open_files_only)
    write_text(tmp_path / "x", "x")
    sync(tmp_path)
    assert (tmp_path / "x").read_text() == "x"

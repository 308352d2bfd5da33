"""Files that are written as a whole: what cannot be written is named as the user knows it."""

import tempfile

import pytest

from globalvit.atomic import write_text


def test_a_file_in_a_folders_place_is_said(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(
        NotADirectoryError, match=r"a/b\.txt cannot be written: what should be its folder is a file; give"
    ):
        write_text(tmp_path / "a" / "b.txt", "x")


def test_the_users_name_is_in_the_error(tmp_path, monkeypatch):
    def refused(**_):
        raise PermissionError(13, "Permission denied", "/somewhere/.x-vj_g60av.csv")

    monkeypatch.setattr(tempfile, "mkstemp", refused)
    with pytest.raises(PermissionError, match=r"Permission denied: '.*/x\.csv'"):
        write_text(tmp_path / "x.csv", "x")

"""Searching folders for images: links, cycles, folders that cannot be read, and what systems leave behind."""

import os

import pytest

from globalvit.data.common.walk import search
from globalvit.jobs.images import find_images


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def test_what_systems_leave_behind_is_left_out(tmp_path):
    junk = (".thumbnails/1.jpg", "@eaDir/2.jpg", "__MACOSX/3.jpg", "._4.jpg", ".DS_Store", "Thumbs.db", "desktop.ini")
    root = touch(tmp_path, "b.JPG", "a/c.png", "notes.txt", *junk, "a/@eaDir/5.jpg", "#recycle/6.jpg")
    found = search(root)
    assert (found.images, found.others) == (["a/c.png", "b.JPG"], 1)
    assert found.children == {"": 1, "a": 1}
    assert [image.name for image in find_images([str(root)]).images] == [str(root / "a/c.png"), str(root / "b.JPG")]


def test_links_are_followed_and_cycles_are_named(tmp_path, caplog):
    touch(tmp_path / "elsewhere", "far.png")
    root = touch(tmp_path / "root", "near.png", "deep/er/x.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "deep" / "er" / "up").symlink_to(root)
    (root / "itself").symlink_to(root / "itself")
    found = search(root)
    assert found.images == ["deep/er/x.png", "linked/far.png", "near.png"]
    assert found.cycles == [str(root / "deep/er/up")]
    (root / "again").symlink_to(tmp_path / "elsewhere")
    assert search(root).images == ["again/far.png", "deep/er/x.png", "linked/far.png", "near.png"]
    assert search(root, once=True).images == ["again/far.png", "deep/er/x.png", "near.png"]
    found.warn()
    assert f"links that lead back to a folder above them are not followed (1): {root}/deep/er/up" in caplog.text


def test_a_broken_link_is_found_so_that_reading_names_it(tmp_path, make_pipe):
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    make_pipe(tmp_path / "pipe.png")
    found = search(tmp_path)
    assert (found.images, found.others, found.irregular) == (["gone.png"], 1, [str(tmp_path / "pipe.png")])


def test_a_folder_that_cannot_be_read_is_named(tmp_path, caplog, forbid_reading):
    root = touch(tmp_path, "a/1.png", "b/2.png", "b/c/3.png")
    forbid_reading("c")
    found = search(root)
    assert (found.images, found.unreadable) == (["a/1.png", "b/2.png"], [str(root / "b" / "c")])
    found.warn()
    assert f"folders that cannot be read are left out (1): {root}/b/c; change their permissions" in caplog.text


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"line\nbreak.png", '"quoted", 🍎.png'.encode()])
def test_names_of_any_bytes_come_back(tmp_path, name):
    touch(tmp_path, os.fsdecode(name))
    assert [os.fsencode(image) for image in search(tmp_path).images] == [name]

"""What no file of the checkout may hold."""

import re
import subprocess

# Written apart, so that this file does not find itself.
MACHINE_PATH = re.compile("|".join(f"(?<![\\w./-])/{folder}/" for folder in ("root", "work", "home", "Users")))
UNFINISHED = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")


def lines(root):
    """(place, line) of every text line under version control."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, timeout=60, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        path = root / name
        data = path.read_bytes() if path.is_file() else b"\0"
        if b"\0" not in data:
            yield from ((f"{name}:{i}", line) for i, line in enumerate(data.decode().splitlines(), 1))


def test_no_file_names_a_folder_of_somebodys_machine(root):
    assert not [place for place, line in lines(root) if MACHINE_PATH.search(line)]


def test_nothing_is_left_for_later(root):
    assert not [place for place, line in lines(root) if UNFINISHED.search(line)]

"""README's set-up commands as .ci/run takes them out."""

import re
import runpy
import subprocess

import pytest


@pytest.fixture(scope="module")
def command(root):
    """The function that finds a set-up command in a page."""
    return runpy.run_path(str(root / ".ci" / "readme_command.py"))["command"]


PAGE = """# Title

<!-- setup:train -->
```bash
pip install . && run
```

<!-- setup:test -->
```bash
two
lines
```
"""


def test_the_marked_line_is_found(command):
    assert command(PAGE, "train") == "pip install . && run"


@pytest.mark.parametrize("name", ["test", "other"])
def test_a_missing_or_long_command_is_an_error(command, name):
    with pytest.raises(ValueError, match=rf"one line under <!-- setup:{name} -->; got"):
        command(PAGE, name)


@pytest.mark.parametrize(("name", "ending"), [("train", r"globalvit train --config digits"), ("test", r"pytest")])
def test_the_commands_make_their_own_environment_and_end_as_promised(command, root, name, ending):
    line = command((root / "README.md").read_text(), name)
    assert re.search(r"-m venv \.venv\b", line)
    assert re.search(rf"{ending}$", line)


@pytest.mark.parametrize("name", ["run", "keras_tensorflow"])
def test_what_ci_runs_is_valid_bash(root, name):
    subprocess.run(["bash", "-n", str(root / ".ci" / name)], check=True, timeout=60)
    assert (root / ".ci" / name).stat().st_mode & 0o111

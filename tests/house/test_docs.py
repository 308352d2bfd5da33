"""The code of README, CONTRIBUTING and docs: Python runs, and every `globalvit` command is understood.

A comment on the line above a block says what is special about it: `<!-- setup:... -->` marks the commands that
.ci/run runs, `<!-- needs network -->` a block that downloads, which is only compiled here.
"""

import re
import shlex
import subprocess
import sys

import pytest

from globalvit.cli.main import main
from globalvit.models.variants import PUBLISHED
from globalvit.weights import catalog

BLOCK = re.compile(r"(?:<!-- *(?P<mark>[^>]*?) *-->\s*\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S)
PAGES = ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")


def blocks(root, language):
    """(place, mark, code) of every fenced block of a language in the pages."""
    pages = [root / name for name in PAGES if (root / name).is_file()]
    for page in [*pages, *sorted((root / "docs").rglob("*.md"))]:
        text = page.read_text()
        for found in BLOCK.finditer(text):
            if found["language"] == language:
                yield f"{page.name}:{text.count(chr(10), 0, found.start()) + 1}", found["mark"] or "", found["code"]


def commands(root):
    """(place, words) of every `globalvit` command in the shell blocks."""
    for place, _, code in blocks(root, "bash"):
        for line in re.split(r"\n|&&|;", code.replace("\\\n", " ")):
            words = shlex.split(line, comments=True)
            if any(word.split("/")[-1] == "globalvit" for word in words):
                start = next(i for i, word in enumerate(words) if word.split("/")[-1] == "globalvit")
                yield place, words[start + 1 :]


def test_python_blocks_compile(root):
    for place, _, code in blocks(root, "python"):
        compile(code, place, "exec")


@pytest.mark.slow
def test_python_blocks_run(root, tmp_path):
    code = "\n".join(code for _, mark, code in blocks(root, "python") if mark != "needs network")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr


def test_commands_are_understood(root, tmp_path, monkeypatch, capsys):
    # What the pages name is not here, so a command that is understood ends with status 1, not with 2.
    monkeypatch.chdir(tmp_path)
    shown = list(commands(root))
    assert shown
    for place, words in shown:
        harmless = ["--print-config"] if words[0] == "train" else []
        assert main([*words, *harmless]) != 2, f"{place}: {capsys.readouterr().err}"


def test_the_table_of_models_is_that_of_the_registry(root):
    rows = [line.strip("| ").split(" | ") for line in (root / "README.md").read_text().splitlines() if "in1k |" in line]
    assert [row[0] for row in rows] == list(PUBLISHED)
    for name, params, gmacs, gflops, top1, weights in rows:
        figures = PUBLISHED[name]
        assert (float(params), float(gmacs)) == (round(figures.params / 1e6, 2), figures.gmacs)
        printed = ["–" if value is None else f"{value:.1f}" for value in (figures.published_gflops, figures.top1)]
        assert [gflops, top1] == printed
        assert weights.split(", ") == [record.weights for record in catalog.records(name)]

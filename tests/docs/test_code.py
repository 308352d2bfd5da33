"""The code of the pages runs: the Python of each page from top to bottom, and the commands of the pages to follow."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pages import Block, blocks_of, commands_of, pages
from PIL import Image

from globalvit.cli.main import main

ROOT = Path(__file__).parents[2]
NOT_RUN = ("needs network", "needs files")
WITH_PYTHON = [page for page in pages(ROOT) if any(block.mark not in NOT_RUN for block in blocks_of(page, "python"))]
RUN_PYTHON = """
import sys
for path in sys.argv[1:]:
    with open(path, encoding="utf-8") as file:
        exec(compile(file.read(), path, "exec"), globals())
"""


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
def test_python_runs(page, tmp_path):
    # Each block is a file of its own name, so that an error names the page and the line.
    files = []
    for place, mark, code in blocks_of(page, "python"):
        if mark not in NOT_RUN:
            files.append(tmp_path / place.replace(":", " line "))
            files[-1].write_text(code)
    done = subprocess.run(
        [sys.executable, "-c", RUN_PYTHON, *files],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr


PHOTOS = "globalvit train --data-dir photos --model gcvit_tiny --tag photos\n"
STREETS = "globalvit train --data-dir streets --model gcvit_tiny_segformer --tag streets\n"
# Pages whose commands are followed in a folder with the images they speak of → what has been done before.
FOLLOWED = {
    "start": "",
    "classification": "",
    "segmentation": "",
    "detection": "",
    "weights": PHOTOS + STREETS,
    "explaining": PHOTOS,
}
# Classes of the drawn shapes → those that the pages speak of.
FRUIT = {"circle": "apple", "square": "pear", "triangle": "plum"}
# What makes a training of any recipe short; a flag that comes twice counts as it comes last.
QUICK = "--weights none --steps 1 --batch-size 4 --grad-accum-steps 1 --global-batch 4 --workers 0 --device cpu"
SMALL = "--img-size 64 --short-side 64 --long-side 96 --roi-samples 8 --window ratio --precision fp32 --val-interval 1"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder with the images that the pages speak of: photos, streets, holiday and two files."""
    monkeypatch.chdir(tmp_path)
    assert main(["data", "shapes", "streets", "--train", "12", "--val", "6", "--size", "64"]) == 0
    for folder in Path("streets/classify").glob("*/*"):
        shutil.copytree(folder, Path("photos", folder.parent.name, FRUIT[folder.name]))
    shutil.copytree("streets/images/val", "holiday")
    with Image.open("holiday/00000.png") as image:
        image.resize((640, 480)).save("scan.png")
        image.save("cat.jpg")
    return tmp_path


def small(words):
    """A command as the page has it, made short: the smallest backbone, one step, small images."""
    words = [
        "gcvit_xxtiny" + word.removeprefix("gcvit_tiny") if word.startswith("gcvit_tiny") else word for word in words
    ]
    if words[0] != "train":
        return words
    return [*words, *QUICK.split(), *SMALL.split()]


# Keras with NumPy 2, as in tests/keras.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.slow
@pytest.mark.parametrize("name", FOLLOWED)
def test_commands_run(name, root, place, capsys):
    page = root / "docs" / f"{name}.md"
    for block in blocks_of(page, "yaml"):
        title = block.code.splitlines()[0].removeprefix("# ")
        Path(title).write_text(block.code.replace("gpvit_l1", "gcvit_xxtiny").replace("epochs: 30", "epochs: 6"))
    blocks = [Block("before", "", FOLLOWED[name]), *blocks_of(page, "bash")]
    for where, mark, code in blocks:
        for words in commands_of(code) if mark not in NOT_RUN else ():
            assert main(small(words)) == 0, f"{where}: {' '.join(words)}: {capsys.readouterr().err}"

"""The site is built without a warning, needs nothing from elsewhere, and shows what the package says."""

import re
import subprocess
import sys

import pytest

from globalvit.models.variants import PUBLISHED
from globalvit.train.config import available_recipes

pytestmark = pytest.mark.slow
# What a browser fetches by itself when it opens a page.
FETCHED = re.compile(r'<(?:script|img|link|iframe|source)\b[^>]*?\b(?:src|href)="(?P<address>[^"]+)"')


@pytest.fixture(scope="module")
def site(root, tmp_path_factory):
    """The site's folder, built afresh."""
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E", "-d", folder / "cache"]
    done = subprocess.run(
        [*build, root / "docs", folder / "html"], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "html"


def test_nothing_is_fetched_from_elsewhere(site):
    for page in site.rglob("*.html"):
        fetched = [found["address"] for found in FETCHED.finditer(page.read_text())]
        assert not [address for address in fetched if address.startswith(("http:", "https:", "//"))], page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(?:https?:)?//", sheet.read_text()), sheet.name


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("models", [*PUBLISHED, "gpvit_l1_upernet"]),
        ("ablations", ["full self-attention", "patch_merging"]),
        ("weights", ["CC-BY-NC-SA-4.0", "gcvit_1k_xxtiny.pth.tar"]),
        ("recipes", available_recipes()),
        ("commands", ["usage: globalvit train", "usage: globalvit data lmdb build", "--checkpoint-every"]),
        ("speed", ["GC ViT and GPViT beside timm", "Cost of a pixel"]),
        ("api", ["create_model", "list_models", "MeanIoU", "decode_predictions"]),
        ("networks", ["query generator", "@inproceedings{yang2023gpvit"]),
        ("finetune", ["gv.train(", "gv.explain("]),
    ],
)
def test_generated_parts_are_there(site, page, expected):
    shown = re.sub(r"<[^>]+>", "", (site / f"{page}.html").read_text())
    assert not [text for text in expected if text not in shown]

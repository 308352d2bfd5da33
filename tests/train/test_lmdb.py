"""Training and validation from LMDB are those from the folder it was built from, bit for bit."""

import re

import pytest
from PIL import Image

from globalvit.cli.main import main
from globalvit.data.storage.lmdb_build import build
from globalvit.train.loop import train

pytestmark = [pytest.mark.usefixtures("toy"), pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]


@pytest.fixture(scope="module")
def photos(images, tmp_path_factory):
    """The images as JPEGs, which are decoded directly, but for one class, which stays PNG."""
    root = tmp_path_factory.mktemp("photos")
    for path in images.rglob("*.png"):
        name = path.relative_to(images)
        target = root / (name if name.parts[1] == "red" else name.with_suffix(".jpg"))
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(target)
    build(root, root.with_name("lmdb"))
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_losses_to_the_last_bit(photos, config, metrics, workers):
    folders = [
        train(config(data_dir=str(data), tag=data.name, workers=workers, reprob=0.25, mixup=0.8, aa="rand-m9-inc1"))
        for data in (photos, photos.with_name("lmdb"))
    ]
    one, other = map(metrics, folders)
    assert len(one) > 12
    assert one == other


def test_validate_takes_a_database(photos, config, capsys):
    run = train(config(data_dir=str(photos), epochs=1))
    scores = []
    for data in (photos, photos.with_name("lmdb")):
        assert main(["validate", f"--checkpoint={run}", f"--data-dir={data}", "--workers=0", "--device=cpu"]) == 0
        scores.append(re.search("top1 .*", capsys.readouterr().out).group())
    assert scores[0] == scores[1]

"""Training from tar shards is training from the folder that was packed into them."""

import random
import time

import pytest

from globalvit.data.storage.shard_build import pack
from globalvit.train.config import load_config
from globalvit.train.loop import train


@pytest.fixture(scope="module")
def shards(images, tmp_path_factory):
    """The images as shards."""
    target = tmp_path_factory.mktemp("shards") / "data"
    pack(images, target)
    return target


@pytest.mark.usefixtures("toy")
def test_the_same_losses_to_the_last_bit(images, shards, config, metrics):
    one, other = (
        metrics(train(config(data_dir=str(data), tag=data.name, reprob=0.25, mixup=0.8, aa="rand-m9-inc1")))
        for data in (images, shards)
    )
    assert len(one) > 12
    assert one == other


@pytest.mark.slow
@pytest.mark.usefixtures("toy")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_killed_run_goes_on_as_the_folder_did(command, start, shards, rich, straight, metrics, tmp_path):
    run = tmp_path / "runs" / "killed"
    process = start(*command(tag="killed", workers=1, data_dir=str(shards), **rich))
    saved, end = random.Random().randint(1, 3), time.monotonic() + 90
    while len(list((run / "checkpoints").glob("step-*"))) < saved:
        assert process.poll() is None, process.finish()[1]
        assert time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    train(load_config(run / "config.yaml", {"resume": str(run), "workers": 2}))
    assert metrics(run) == metrics(straight)


@pytest.mark.slow
@pytest.mark.usefixtures("as_elsewhere")
def test_two_processes_read_what_they_read_of_the_folder(command, run_pair, images, shards, metrics, tmp_path):
    for name, data in (("folder", images), ("shards", shards)):
        run_pair(*command(tag=name, data_dir=str(data), batch_size=4, epochs=1))
    folder, packed = (metrics(tmp_path / "runs" / name) for name in ("folder", "shards"))
    assert folder
    assert folder == packed

"""Processes that differ are refused before the first step, and one that is lost ends the others with a sentence."""

import shutil
import signal
import time

import pytest
from processes import group_of

from globalvit.train.fields import TrainConfig
from globalvit.train.ranks import code_version, facts, require_equal

CLASSES = ("apple", "pear")


def shares(**changes):
    """The facts of two processes, the second with other settings."""
    counts = {"training": 10, "evaluation": 5}
    return [facts(TrainConfig(**more), CLASSES, counts, 0) for more in ({}, changes)]


def test_equal_processes_pass_whatever_is_their_own():
    require_equal(shares(workers=1, data_dir="/scratch/data", output="elsewhere"))


def test_differences_are_named_by_rank():
    one, two = shares(lr=0.1, seed=1)
    words = (
        "the processes differ from rank 0: rank 1: lr 0.1, not 0.0005; seed 1, not 0; start every process with the same"
    )
    with pytest.raises(ValueError, match=words):
        require_equal([one, two])
    two = one | {"classes": ("apple", "zebra"), "number of training images": 9}
    words = "rank 2: number of training images 9, not 10; class 1 is 'zebra', not 'pear'"
    with pytest.raises(ValueError, match=words):
        require_equal([one, one, two])


def test_the_code_is_part_of_it():
    one = shares()[0]
    assert "source" in code_version()
    with pytest.raises(ValueError, match=r"rank 1: code 0\.2, source 12, not 0\.1"):
        require_equal([one, one | {"code": "0.2, source 12"}])


@pytest.fixture
def pair(start):
    """Start a command as two processes of one group, the second with other words."""
    stores = []

    def run(first, second):
        store, environments = group_of(2)
        stores.append(store)
        return [start(*words, **environment) for words, environment in zip((first, second), environments, strict=True)]

    return run


@pytest.mark.parametrize(
    "other",
    ["setting", "missing", *(pytest.param(name, marks=pytest.mark.slow) for name in ("class", "file size"))],
)
def test_other_settings_or_data_end_every_process(command, pair, images, tmp_path, other):
    data = tmp_path / "other"
    shutil.copytree(images, data)
    changes, words = {"data_dir": str(data)}, ""
    if other == "setting":
        changes, words = {"batch_size": 8}, "rank 1: batch_size 8, not 4"
    elif other == "class":
        for split in ("train", "val"):
            (data / split / "blue").rename(data / split / "cyan")
        words = "rank 1: class 0 is 'cyan', not 'blue'"
    elif other == "file size":
        (data / "train/red/0.png").write_bytes(b"")
        words = "rank 1: train: 27 files ('red' has other file names or sizes)"
    else:
        shutil.rmtree(data / "train")
        words = f"no folder 'train' in {data}"
    for process in pair(command(dist_timeout=60), command(dist_timeout=60, **changes)):
        status, output = process.finish(60)
        assert status == 1, output
        assert words in output
        assert "Traceback" not in output
        assert output.strip().splitlines()[-1].startswith("globalvit: error: ")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_process_ends_the_other_in_time(command, pair, tmp_path, number):
    words = command(epochs=500, dist_timeout=10)
    staying, lost = pair(words, words)
    metrics = tmp_path / "runs" / "run" / "metrics.jsonl"
    end = time.monotonic() + 90
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
        assert time.monotonic() < end
        time.sleep(0.05)
    lost.send_signal(number)
    start = time.monotonic()
    status, output = staying.finish(60)
    assert status == 1, output
    assert time.monotonic() - start < 30
    last = output.strip().splitlines()[-1]
    assert last.startswith("globalvit: error: rank 0 cannot go on without the other processes: "), output
    assert "rank 1 finished step " in last
    assert "Traceback" not in output
    reason = "connection lost" if number == signal.SIGKILL else "no answer within 10 s (--dist-timeout)"
    assert reason in last

"""The batch that fits: the search, the line through two points, the memory of control groups."""

import logging

import pytest
import torch

from globalvit.build import create_model
from globalvit.train import autobatch
from globalvit.train.autobatch import choose_batch, extrapolate, peak_memory, resident, search
from globalvit.train.fields import TrainConfig

MIB = 2**20


@pytest.mark.parametrize("most", [1, 2, 5, 7, 8, 31, 100, 1000])
@pytest.mark.parametrize("limit", [1, 6, 64, 4096])
def test_the_search_finds_what_fits_to_an_eighth(most, limit):
    tried = []

    def fits(batch):
        tried.append(batch)
        return batch <= most

    found = search(fits, limit)
    assert found <= min(most, limit)
    assert found >= min(most, limit) * 7 / 8 - 1
    assert max(tried) <= limit
    assert len(tried) < 25


def test_the_search_says_zero_where_not_one_image_fits():
    assert search(lambda _: False, 64) == 0


def test_the_line_reaches_the_budget():
    assert extrapolate((2, 100.0), (8, 160.0), budget=1100.0) == 102
    assert extrapolate((2, 100.0), (8, 100.0), budget=1100.0) == 1002


def test_a_step_shows_in_the_peak():
    def step(batch):
        torch.ones(batch * MIB, dtype=torch.float32).sum()

    grown = peak_memory(step, 64) - resident()
    assert grown > 200 * MIB


def write_group(folder, limit, usage, names=("memory.max", "memory.current")):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{usage}\n")


def test_the_tightest_control_group_counts(tmp_path):
    write_group(tmp_path / "a" / "b", 1000, 300)
    write_group(tmp_path / "a", 900, 400)
    write_group(tmp_path, "max", 5000)
    own = tmp_path / "own"
    own.write_text("0::/a/b\n")
    assert sorted(autobatch._cgroup_rooms(tmp_path, own)) == [500, 700]


def test_control_groups_of_the_first_version_count(tmp_path):
    write_group(tmp_path / "memory", 800, 100, ("memory.limit_in_bytes", "memory.usage_in_bytes"))
    own = tmp_path / "own"
    own.write_text("5:cpu,cpuacct:/x\n4:memory:/x\n")
    assert autobatch._cgroup_rooms(tmp_path, own) == [700]


def test_without_control_groups_the_machine_counts(tmp_path):
    assert autobatch._cgroup_rooms(tmp_path, tmp_path / "none") == []
    assert autobatch.free_memory() > MIB


@pytest.fixture
def trial(toy, monkeypatch):
    # Batches of 4 and 16 instead of 16 and 64 are measured; a growth too small to stand out is filled up anyhow.
    monkeypatch.setattr(autobatch, "LARGEST_SMALL_BATCH", 16)
    config = TrainConfig(img_size=32, model_ema=True)
    return create_model("gcvit_xxtiny", num_classes=3, image_size=32), config, torch.device("cpu"), "fp32"


def test_on_a_processor_the_batch_is_extrapolated_from_two_small_ones(trial, monkeypatch, caplog):
    monkeypatch.setattr(autobatch, "free_memory", lambda: 1000 * MIB)
    with caplog.at_level(logging.INFO):
        found = choose_batch(*trial, limit=10**6, processes=1)
    assert 16 < found < 10**5
    assert "MiB may be used, room for" in caplog.text
    assert f"auto_batch: batch_size {found}" in caplog.text
    monkeypatch.setattr(autobatch, "free_memory", lambda: 4000 * MIB)
    assert choose_batch(*trial, limit=10**6, processes=1) > 2 * found


def test_never_more_than_is_of_use(trial, monkeypatch):
    monkeypatch.setattr(autobatch, "free_memory", lambda: 10**12)
    assert choose_batch(*trial, limit=24, processes=1) == 24


def test_not_even_one_image_is_an_error_that_says_what_to_lower(trial, monkeypatch):
    monkeypatch.setattr(autobatch, "_extrapolated", lambda *_: (0, "measured"))
    with pytest.raises(MemoryError, match=r"not one image of 32 pixels fits the memory \(measured\); lower --img-size"):
        choose_batch(*trial, limit=24, processes=1)

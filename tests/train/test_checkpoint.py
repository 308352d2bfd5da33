"""Checkpoint folders: whole or not at all, newest and best kept, and what can be resumed from."""

import resource
import shutil
from contextlib import contextmanager

import pytest
import torch

from globalvit.atomic import remove_leftovers, temporary_folder
from globalvit.build import create_model
from globalvit.train.checkpoint import STATE_FILE, Checkpoints, find_checkpoint
from globalvit.train.fields import TrainConfig
from globalvit.train.optim import create_optimizer
from globalvit.train.state import (
    State,
    read_snapshot,
    read_state,
    restore,
    seed_pass,
    take_snapshot,
    write_checkpoint,
    write_state,
)


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "run" / "checkpoints", keep=2)


def write(folder):
    (folder / STATE_FILE).write_text("{}")


def names(checkpoints):
    return sorted(path.name for path in checkpoints.folder.iterdir())


@contextmanager
def largest_file(size):
    """No file of this process may grow beyond `size` bytes: a full disk without one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_newest_and_the_best_are_kept(checkpoints):
    for step in (10, 20, 30, 40):
        saved = checkpoints.save(step, write)
        if step == 10:
            checkpoints.mark_best(saved)
    assert names(checkpoints) == ["best", "last", "step-10", "step-30", "step-40"]
    assert checkpoints.last.name == "step-40"
    assert checkpoints.best.name == "step-10"
    checkpoints.mark_best(checkpoints.last)
    assert names(checkpoints) == ["best", "last", "step-30", "step-40"]


def test_a_step_saved_again_replaces_the_folder(checkpoints):
    checkpoints.save(10, write)
    checkpoints.save(10, lambda folder: (folder / "new").write_text("x"))
    assert [path.name for path in checkpoints.last.iterdir()] == ["new"]


def test_a_full_disk_leaves_the_earlier_checkpoint(checkpoints, tmp_path):
    checkpoints.save(10, write)
    words = rf"cannot save checkpoint .*step-20: .*; .*step-10 is intact; free some space, then --resume {tmp_path}/run"
    with largest_file(1000), pytest.raises(OSError, match=words):
        checkpoints.save(20, lambda folder: (folder / "large").write_bytes(bytes(5000)))
    assert names(checkpoints) == ["last", "step-10"]
    assert checkpoints.last.name == "step-10"


def test_a_full_disk_at_the_first_checkpoint_says_that_there_is_none(checkpoints):
    with largest_file(1000), pytest.raises(OSError, match="there is no earlier one"):
        checkpoints.save(20, lambda folder: (folder / "large").write_bytes(bytes(5000)))


@pytest.mark.parametrize("size", [100, 50_000, 700_000])
def test_every_file_of_a_checkpoint_survives_a_full_disk(toy, checkpoints, size):
    """The limit hits the state, the weights or the optimizer's state, which different libraries write."""
    task = create_model("gcvit_xxtiny", num_classes=3, image_size=32)
    optimizer = create_optimizer(task, TrainConfig())
    task.losses({"images": torch.randn(2, 3, 32, 32), "labels": torch.tensor([0, 1])})["loss"].backward()
    optimizer.step()
    snapshot = take_snapshot(task, None, optimizer)
    fill = lambda folder: write_checkpoint(folder, task, snapshot, State(step=1), TrainConfig())  # noqa: E731
    checkpoints.save(1, fill)
    with largest_file(size), pytest.raises(OSError, match="step-1 is intact"):
        checkpoints.save(2, fill)
    assert names(checkpoints) == ["last", "step-1"]


def test_leftovers_of_a_crash_are_swept_up(checkpoints):
    checkpoints.save(10, write)
    temporary_folder(checkpoints.folder)
    for name in (".last-0123456789ab", ".0123456789ab.pt", "step-10/.0123456789ab.json"):
        (checkpoints.folder / name).touch()
    assert len(names(checkpoints)) == 5
    remove_leftovers(checkpoints.folder.parent)
    assert names(checkpoints) == ["last", "step-10"]
    assert [path.name for path in checkpoints.last.iterdir()] == [STATE_FILE]


def test_a_checkpoint_whose_replacement_was_killed_halfway_is_put_back(checkpoints):
    saved = checkpoints.save(10, write)
    saved.rename(saved.with_name(".former-step-10"))
    checkpoints.recover()
    assert names(checkpoints) == ["last", "step-10"]
    shutil.copytree(saved, saved.with_name(".former-step-10"))
    checkpoints.recover()
    assert names(checkpoints) == ["last", "step-10"]


def test_going_back_forgets_what_came_after(checkpoints):
    for step in (10, 20, 30):
        checkpoints.save(step, write)
        checkpoints.keep = 9
    checkpoints.mark_best(checkpoints.last)
    checkpoints.rewind(20, best_step=10)
    assert names(checkpoints) == ["best", "last", "step-10", "step-20"]
    assert (checkpoints.last.name, checkpoints.best.name) == ("step-20", "step-10")
    checkpoints.rewind(10, best_step=7)
    assert (checkpoints.last.name, checkpoints.best) == ("step-10", None)


def test_a_run_its_checkpoints_and_their_files_are_all_found(checkpoints):
    saved = checkpoints.save(10, write)
    (saved / "model.safetensors").write_bytes(b"")
    run = checkpoints.folder.parent
    last = run / "checkpoints" / "last"
    for path in (run, run / "checkpoints", last, last / "model.safetensors", saved, saved / "model.safetensors"):
        assert find_checkpoint(path) == saved


def test_folders_copied_without_the_file_last_are_found(checkpoints):
    saved = checkpoints.save(10, write)
    (checkpoints.folder / "last").unlink()
    assert find_checkpoint(checkpoints.folder.parent) == saved


def test_nothing_to_resume_from_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--resume .*nowhere does not exist; give a run folder or one of its"):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoint to resume from; expected .*checkpoints/last"):
        find_checkpoint(tmp_path)


def test_a_weight_file_alone_is_no_checkpoint(tmp_path):
    (tmp_path / "gcvit.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"gcvit.pth holds weights but not the state of a run; .* --weights"):
        find_checkpoint(tmp_path / "gcvit.pth")


def test_state_and_config_round_trip(tmp_path):
    state = State(step=7, best=0.1 + 0.2, loss_sum=1 / 3, loss_count=2, scores={"top1": 30.0})
    config = TrainConfig(img_size=(32, 48), lr=1 / 3, mean=(0.1, 0.2, 0.3))
    write_state(tmp_path, state, config)
    assert read_state(tmp_path) == (state, config)


def test_a_damaged_state_is_named(tmp_path):
    (tmp_path / STATE_FILE).write_text('{"state": {}}')
    with pytest.raises(
        ValueError, match=r"state.json is damaged or of another version of globalvit: no entry 'config'"
    ):
        read_state(tmp_path)


@pytest.mark.parametrize("opt", ["adamw", "sgd", "lamb", "adafactor"])
def test_model_and_optimizer_go_on_bit_for_bit(toy, tmp_path, opt):
    config = TrainConfig(opt=opt, lr=1e-3, layer_decay=0.7)
    batch = {"images": torch.randn(2, 3, 32, 32), "labels": torch.tensor([0, 1])}

    def build():
        torch.manual_seed(1)
        task = create_model("gcvit_xxtiny", num_classes=3, image_size=32)
        return task, create_optimizer(task, config)

    def advance(task, optimizer, steps):
        for step in steps:
            seed_pass(0, step, 0, 0)
            task.losses(batch)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()

    straight, optimizer = build()
    advance(straight, optimizer, range(4))
    halfway, optimizer = build()
    advance(halfway, optimizer, range(2))
    write_checkpoint(tmp_path, halfway, take_snapshot(halfway, None, optimizer), State(), config)
    resumed, optimizer = build()
    restore(tmp_path, read_snapshot(tmp_path, has_ema=False), resumed, None, optimizer)
    advance(resumed, optimizer, range(2, 4))
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_the_seed_of_a_pass_depends_on_every_number():
    def draw(*numbers):
        seed_pass(*numbers)
        return float(torch.rand(()))

    draws = [draw(0, 1, 2, 3), draw(1, 1, 2, 3), draw(0, 2, 2, 3), draw(0, 1, 3, 3), draw(0, 1, 2, 4)]
    assert len(set(draws)) == 5
    assert draw(0, 1, 2, 3) == draws[0]

"""Batches are the same whoever loads them, resume exactly, and divide among ranks exactly."""

import os
import signal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from globalvit.data.classification.dataset import open_split
from globalvit.data.classification.transforms import EvalTransform, TrainTransform
from globalvit.data.common.images import OversizedImage
from globalvit.data.common.loading import eval_loader, to_device, train_loader

TRAIN = TrainTransform(image_size=16, reprob=0.5, color_jitter=None)
EVAL = EvalTransform(image_size=16)
# From Python 3.12 on, forking a process with threads, which torch has, brings a warning.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


class Blank:
    """Many plain images, for properties that only need indices."""

    classes = ("a",)

    def __init__(self, total):
        self.total = total

    def __len__(self):
        return self.total

    def label(self, _):
        return 0

    def name(self, index):
        return str(index)

    def read(self, index):
        return Image.new("RGB", (4, 4), (index, index, index))


class Deadly(Blank):
    """Reading kills the process."""

    def read(self, _):
        os.kill(os.getpid(), signal.SIGKILL)


def assert_equal(ours, theirs):
    ours, theirs = list(ours), list(theirs)
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in ("images", "labels", "indices"))
        assert one.get("erase") == other.get("erase")


def indices(batches):
    return [index for batch in batches for index in batch["indices"].tolist()]


def test_what_a_batch_holds(toys):
    (batch,) = train_loader(toys(5), TRAIN, batch_size=4, seed=0)
    assert batch["images"].shape == (4, 3, 16, 16)
    assert batch["images"].dtype == torch.uint8
    assert batch["labels"].dtype == batch["indices"].dtype == torch.int64
    assert batch["labels"].tolist() == [index % 3 for index in batch["indices"].tolist()]
    assert len(batch["erase"]) == 4
    assert batch["skipped"] == []


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_processes_gives_the_same_batches(toys, workers):
    source = toys(40, bad=(7, 8))
    alone = train_loader(source, TRAIN, batch_size=4, seed=1, epoch=2)
    several = train_loader(source, TRAIN, batch_size=4, seed=1, epoch=2, workers=workers)
    assert_equal(several, alone)
    assert several.skipped.reasons == alone.skipped.reasons
    several.close()


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_spawned_processes_give_the_same_batches(make_folder, start_method):
    source = open_split(make_folder({"train": {"a": 6, "b": 6}}), "train")
    several = train_loader(source, TRAIN, batch_size=4, seed=1, workers=2, start_method=start_method)
    assert_equal(several, train_loader(source, TRAIN, batch_size=4, seed=1))
    several.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_loader_serves_every_epoch(toys, workers):
    loader = train_loader(toys(20), TRAIN, batch_size=4, seed=0, workers=workers)
    for epoch, start in [(0, 0), (1, 0), (1, 3), (0, 2)]:
        loader.start_at(epoch, start)
        assert len(loader) == 5 - start
        fresh = train_loader(toys(20), TRAIN, batch_size=4, seed=0, epoch=epoch, start_batch=start)
        assert_equal(loader, fresh)
    loader.close()


def test_a_loop_left_early_does_not_show_in_the_next(toys):
    loader = train_loader(toys(40), TRAIN, batch_size=2, seed=0, workers=2)
    next(iter(loader))
    loader.start_at(1)
    assert_equal(loader, train_loader(toys(40), TRAIN, batch_size=2, seed=0, epoch=1))
    loader.close()
    assert_equal(loader, train_loader(toys(40), TRAIN, batch_size=2, seed=0, epoch=1))
    loader.close()


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_resuming_at_a_batch_gives_the_rest_of_the_epoch(data):
    total, batch_size = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 5))
    world = data.draw(st.integers(1, 3))
    if total < batch_size * world:
        total += batch_size * world
    options = {
        "batch_size": batch_size,
        "seed": data.draw(st.integers(0, 2**40)),
        "epoch": data.draw(st.integers(0, 99)),
    }
    options |= {"world": world, "rank": data.draw(st.integers(0, world - 1))}
    whole = list(train_loader(Blank(total), TRAIN, **options))
    start = data.draw(st.integers(0, len(whole)))
    rest = train_loader(Blank(total), TRAIN, **options, start_batch=start)
    assert len(rest) == len(whole) - start
    assert indices(rest) == indices(whole[start:])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 4))
def test_the_ranks_batches_together_are_one_large_batch(total, batch_size, world):
    """World ranks with B images each see, side by side, what one rank with world × B images sees."""
    total = max(total, batch_size * world)
    options = {"seed": 3, "epoch": 1}
    alone = train_loader(Blank(total), TRAIN, batch_size=batch_size * world, **options)
    ranks = [
        train_loader(Blank(total), TRAIN, batch_size=batch_size, rank=rank, world=world, **options)
        for rank in range(world)
    ]
    assert {len(rank) for rank in ranks} == {total // (batch_size * world)}
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert torch.equal(torch.cat([part["images"] for part in parts]), whole["images"])
        assert torch.equal(torch.cat([part["indices"] for part in parts]), whole["indices"])
        assert [record for part in parts for record in part["erase"]] == whole["erase"]


def test_an_epoch_shows_no_image_twice_and_drops_the_incomplete_batch(toys):
    seen = indices(train_loader(toys(23), TRAIN, batch_size=5, seed=0))
    assert len(seen) == len(set(seen)) == 20


def test_order_and_augmentation_change_with_the_epoch_and_the_seed(toys):
    orders = [
        indices(train_loader(toys(20), TRAIN, batch_size=5, seed=s, epoch=e)) for s, e in [(0, 0), (0, 1), (1, 0)]
    ]
    assert len({tuple(order) for order in orders}) == 3


def test_the_image_size_can_change_with_the_epoch(toys):
    loader = train_loader(toys(4), TRAIN, batch_size=4, seed=0, workers=1)
    for size in [(24, 24), (16, 40)]:
        loader.start_at(0, image_size=size)
        (batch,) = loader
        assert batch["images"].shape[2:] == size
    loader.close()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 40), st.integers(1, 7), st.integers(1, 3))
def test_evaluation_shows_every_image_once_over_all_ranks(total, batch_size, world):
    seen = []
    for rank in range(world):
        loader = eval_loader(Blank(total), EVAL, batch_size=batch_size, rank=rank, world=world)
        mine = indices(loader)
        assert mine == list(range(rank, total, world))
        assert len(loader) == -(-len(mine) // batch_size)
        seen += mine
    assert sorted(seen) == list(range(total))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_is_the_transform_of_every_image(make_folder, workers):
    source = open_split(make_folder({"val": {"a": 3, "b": 4}}), "val")
    loader = eval_loader(source, EVAL, batch_size=3, workers=workers)
    for _ in range(2):
        batches = [to_device(batch, EVAL, "cpu") for batch in loader]
        images = torch.cat([batch["images"] for batch in batches])
        assert torch.equal(images, torch.stack([EVAL(source.read(index)) for index in range(7)]))
        assert torch.cat([batch["labels"] for batch in batches]).tolist() == [0, 0, 0, 1, 1, 1, 1]
    loader.close()


def test_the_device_normalizes_and_erases_as_recorded(toys):
    (batch,) = train_loader(toys(8), TRAIN, batch_size=8, seed=0)
    ready = to_device(batch, TRAIN, "cpu")
    assert ready["images"].dtype == torch.float32
    plain = TRAIN.normalize(batch["images"])
    changed = (ready["images"] != plain).flatten(1).any(1)
    assert changed.tolist() == [bool(record.boxes) for record in batch["erase"]]
    assert 0 < changed.sum() < 8
    assert batch["images"].dtype == torch.uint8, "the batch itself stays as it was"


def test_the_processes_random_state_is_left_alone(toys):
    before = torch.get_rng_state()
    for workers in (0, 1):
        loader = train_loader(toys(4), TRAIN, batch_size=2, seed=0, workers=workers)
        list(loader)
        loader.close()
    assert torch.equal(torch.get_rng_state(), before)


def test_too_few_images_for_a_batch(toys):
    text = r"5 training images do not fill one batch of 3 on 2 process\(es\); lower --batch-size"
    with pytest.raises(ValueError, match=text):
        train_loader(toys(5), TRAIN, batch_size=3, seed=0, world=2)


def test_what_files_cannot_give_is_refused_before_the_first_batch(toys):
    five = EvalTransform().for_channels(5)
    with pytest.raises(ValueError, match="image files give 3 channels, 1 as gray or 4 as RGBA, not 5"):
        eval_loader(toys(5), five, batch_size=1)
    with pytest.raises(ValueError, match="not understood"):
        train_loader(toys(5), TrainTransform(aa="bogus"), batch_size=1, seed=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_oversized_image_stops_the_loop(toys, workers):
    source = toys(4, bad=(2,), error=OversizedImage)
    for loader in (
        train_loader(source, TRAIN, batch_size=4, seed=0, workers=workers),
        eval_loader(source, EVAL, batch_size=4, workers=workers),
    ):
        with pytest.raises(OversizedImage, match=r"^toys/2 cannot be read$"):
            list(loader)
        loader.close()


def test_a_loader_process_that_dies_is_explained():
    loader = eval_loader(Deadly(4), EVAL, batch_size=2, workers=1)
    with pytest.raises(OSError, match=r"a worker died.* lower --workers, now 1, or --batch-size \(DataLoader"):
        list(loader)
    loader.close()


def test_loader_processes_outlive_the_signals_of_a_scheduler(toys):
    """A scheduler signals the whole group; the training process still needs its batches to stop in order."""
    loader = train_loader(toys(400), TRAIN, batch_size=2, seed=0, workers=2)
    batches = iter(loader)
    # One batch of each process: both have started by then.
    seen = [next(batches), next(batches)]
    for worker in loader._batches._iterator._workers:
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGINT)
    seen += batches
    assert len(seen) == 200
    workers = loader._batches._iterator._workers
    loader.close()
    assert not any(worker.is_alive() for worker in workers)

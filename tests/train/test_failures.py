"""Failures outside of a step: memory, workers and weights that are not finite end a run in a sentence, too."""

import pytest
import torch

from globalvit.train import loop, session
from globalvit.train.fields import TrainConfig
from globalvit.train.loop import Trainer, train
from globalvit.train.memory import explained
from globalvit.train.nonfinite import require_finite_loss
from globalvit.train.state import Snapshot

FULL = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: 99 bytes"
)


def failing(*args, **kwargs):
    raise FULL


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("place", "words"),
    [
        (
            (session, "create_optimizer"),
            "out of memory while building the model with batch_size=4 and img_size=32; lower",
        ),
        ((loop, "evaluate"), "out of memory in the evaluation after step 2 with batch_size=4"),
        ((loop, "write_checkpoint"), "out of memory while saving step 2 with batch_size=4"),
        ((Trainer, "_pause"), "out of memory outside of a step with batch_size=4"),
    ],
    ids=lambda value: getattr(value, "__name__", None) or value[-1],
)
def test_memory_that_runs_out_is_explained_wherever_that_is(config, monkeypatch, place, words):
    monkeypatch.setattr(*place, failing)
    with pytest.raises(MemoryError, match=words):
        train(config(steps=2, warmup_epochs=0))


def test_a_worker_that_dies_interrupts_whatever_the_process_does():
    error = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. \nMore of it.")
    words = r"a worker died while saving step 3, most often because memory .*now 2, or --batch-size \(DataLoader worker"
    with pytest.raises(OSError, match=words), explained(TrainConfig(workers=2), "while saving step 3"):
        raise error
    with pytest.raises(RuntimeError, match="another"), explained(TrainConfig(), "in step 1"):
        raise RuntimeError("another")


@pytest.mark.usefixtures("toy")
def test_weights_that_are_not_finite_are_not_saved(config, monkeypatch, tmp_path):
    plain = Trainer._step

    def spoil(self, *args):
        found = plain(self, *args)
        if self.state.step == 2:
            self.task.head.linear.bias.data[0] = torch.inf
        return found

    monkeypatch.setattr(Trainer, "_step", spoil)
    words = r"the weights are not finite after step 2: head\.linear\.bias; they were not saved; resume from the last"
    with pytest.raises(FloatingPointError, match=words):
        train(config(steps=4, warmup_epochs=0, checkpoint_every=1))
    assert [path.name for path in (tmp_path / "runs/run/checkpoints").glob("step-*")] == ["step-1"]


def test_averaged_weights_are_looked_at_too():
    bad = {"a": torch.tensor([1.0, torch.nan]), "b": torch.tensor(torch.inf)}
    with pytest.raises(FloatingPointError, match="averaged weights are not finite after step 5: a and 1 more tensors"):
        Snapshot({"a": torch.ones(1), "n": torch.ones(1, dtype=torch.int64)}, bad, {}).require_finite(5)


def test_scores_of_an_evaluation_without_a_finite_loss_are_refused():
    require_finite_loss({"top1": 3.0, "loss": 1.0}, 4)
    require_finite_loss({"miou": 3.0}, 4)
    with pytest.raises(FloatingPointError, match="the loss of the evaluation after step 4 is nan, so its scores were"):
        require_finite_loss({"top1": 3.0, "loss": float("nan")}, 4)

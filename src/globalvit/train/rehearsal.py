"""`--dry-run`: a batch of each split through everything a run does, to see that it works and what it will cost."""

import math
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice

import torch

from globalvit.train.engine import Engine, start_engine
from globalvit.train.evaluate import evaluate
from globalvit.train.fields import TrainConfig
from globalvit.train.loop import Trainer
from globalvit.train.memory import explained
from globalvit.train.owner import Owner
from globalvit.train.progress import memory_mib
from globalvit.train.report import Reporter
from globalvit.train.session import Session, prepare_session
from globalvit.train.signals import StopSignal


@dataclass(frozen=True)
class Rehearsal:
    """What one step and one evaluation batch took.

    Attributes:
        step: seconds of an optimizer step.
        evaluation: seconds of a whole evaluation.
        steps: of the run.
        evaluations: of the run.
        images: per optimizer step.
        memory: largest use in MiB.
        device: where it was measured.
    """

    step: float
    evaluation: float
    steps: int
    evaluations: int
    images: int
    memory: float
    device: str

    @property
    def seconds(self) -> float:
        """Estimate for the whole run, if reading images keeps up."""
        return self.step * self.steps + self.evaluation * self.evaluations

    def __str__(self) -> str:
        return (
            f"dry run: a step of {self.images} images and an evaluation work; {self.images / self.step:.3g} images/s, "
            f"{self.memory:.0f} MiB on {self.device}; about {_in_words(self.seconds)} for {self.steps} steps and "
            f"{self.evaluations} evaluations, if reading images keeps up; no run folder was written"
        )


def rehearse(config: TrainConfig, recipe: str = "run") -> Rehearsal:
    """Train a step and evaluate a batch as a run with this config would, and keep nothing.

    A run to resume is rehearsed with its settings and fresh weights.

    Raises:
        ValueError, OSError, FloatingPointError, MemoryError: see `globalvit.train.loop.train`.
    """
    fresh = replace(config, resume=None, tag=None, weights=None if config.resume else config.weights)
    with ExitStack() as stack:
        stack.enter_context(explained(config, "outside of a step"))
        engine = stack.enter_context(start_engine(fresh))
        stack.enter_context(engine.noted())
        # Every process must have the same settings, and so the same folder.
        folder = engine.on_main(lambda: stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        owner = stack.enter_context(Owner(config.lock_timeout))
        session = prepare_session(replace(fresh, output=folder), recipe, engine, owner)
        stack.callback(session.inputs.close)
        return _measured(session, engine)


def _measured(session: Session, engine: Engine) -> Rehearsal:
    config, inputs = session.config, session.inputs
    trainer = Trainer(session, engine, Reporter(session, engine), StopSignal())
    session.task.train()
    with explained(config, "in step 1"):
        batches = next(inputs.steps(0, 0))
        # The first step also compiles and allocates; the second is like all that follow.
        trainer.try_step(batches)
        start = _now(engine)
        trainer.try_step(batches)
        step = max(_now(engine) - start, 1e-9)
    modules = [session.task, *([session.ema.module] if session.ema else [])]
    first = list(islice(inputs.validation, 1))
    start = _now(engine)
    with explained(config, "in the evaluation"):
        for module in modules:
            evaluate(module, first, inputs.transform, engine.device, engine.precision, gather=engine.gather)
    evaluation = (_now(engine) - start) * len(inputs.validation)
    stretch = config.val_steps or config.val_interval * inputs.steps_per_epoch
    evaluations = math.ceil(session.total_steps / stretch)
    images = config.global_batch or config.batch_size
    memory = memory_mib(engine.device)
    return Rehearsal(step, evaluation, session.total_steps, evaluations, images, memory, str(engine.device))


def _now(engine: Engine) -> float:
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)
    return time.monotonic()


def _in_words(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"

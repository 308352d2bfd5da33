"""The training loop: steps, evaluations, checkpoints, and the ways in which a run ends."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from globalvit.data.common.loading import Batch
from globalvit.metrics.metric import Metric
from globalvit.tasks.reduce import counted
from globalvit.tasks.task import Task
from globalvit.train import nonfinite
from globalvit.train.callbacks import RECORDS, Callbacks
from globalvit.train.engine import Engine, start_engine
from globalvit.train.evaluate import StoppedError, evaluate
from globalvit.train.fields import TrainConfig
from globalvit.train.memory import explained
from globalvit.train.owner import Owner
from globalvit.train.report import Reporter
from globalvit.train.session import Session, keep_choices, prepare_session
from globalvit.train.signals import SIGNALS, StopSignal
from globalvit.train.state import seed_pass, take_snapshot, write_checkpoint, write_state
from globalvit.train.trackers import require_trackers
from globalvit.weights.find import EMA_FILE, MODEL_FILE
from globalvit.weights.thresholds import write_thresholds


def train(
    config: TrainConfig, recipe: str = "run", stop: StopSignal | None = None, callbacks: Sequence[object] = ()
) -> Path:
    """Train as `config` says; the same on every process of a launcher.

    Args:
        config: as `load_config` gives it.
        recipe: names the run's folder where the config has no tag.
        stop: notes signals; its `ended_by` then says which one ended the run early.
        callbacks: see `globalvit.train.callbacks`.

    Returns:
        The run's folder.

    Raises:
        ValueError, OSError: something asked for is not available, or a file cannot be read or written.
        FloatingPointError: a loss or gradient is not finite; the parameters are still those of the step before.
        MemoryError: a batch is too large.
        CallbackError: a callback failed.
        ImportError: the package of a tracker in `log` is not installed.
    """
    calls = Callbacks(callbacks)
    require_trackers(config.log)
    config = keep_choices(config)
    with ExitStack() as stack:
        stack.enter_context(explained(config, "outside of a step"))
        engine = stack.enter_context(start_engine(config))
        stack.enter_context(engine.noted())
        stop = stack.enter_context(StopSignal() if stop is None else stop)
        owner = stack.enter_context(Owner(config.lock_timeout))
        session = prepare_session(config, recipe, engine, owner)
        stack.callback(session.inputs.close)
        report = stack.enter_context(Reporter(session, engine))
        Trainer(session, engine, report, stop, calls).run()
        return session.folder


class Trainer:
    """Carries a session from its present step to its end."""

    def __init__(
        self, session: Session, engine: Engine, report: Reporter, stop: StopSignal, callbacks: Callbacks | None = None
    ) -> None:
        self.session, self.engine, self.report, self.stop = session, engine, report, stop
        self.callbacks = callbacks or Callbacks()
        # Rank 0 calls its own callbacks, and every process has to know what it waits for.
        self.called = engine.from_main(self.callbacks.names)
        self.stopped_by = ""
        self.epoch_losses: list[float] = []
        self.config, self.inputs, self.state = session.config, session.inputs, session.state
        self.task, self.ema, self.checkpoints = session.task, session.ema, session.checkpoints
        self.saved_step = self.state.step

    @property
    def is_stopping(self) -> bool:
        """Whether a signal, here or on another process, or a callback ends the run before its end."""
        return self.stop.ended_by > 0 or bool(self.stopped_by)

    def run(self) -> None:
        """Train to the end, or until a signal, a callback or early stopping ends it."""
        # A run that was stopped between a pause and its evaluation has that to do first.
        self._pause()
        while not (self.session.is_done or self.is_stopping):
            self._train_to(self.session.next_pause)
            self._pause()
        stopped_by = (self.stop.name or "another process") if self.stop.ended_by else self.stopped_by
        if self.session.is_done and self.state.evaluated == self.state.step and not self.stop.ended_by:
            # A callback that wanted to stop found nothing left to train.
            stopped_by = ""
        self.report.conclude(stopped_by)
        finished = "early stopping" if self.session.is_stale else "finished"
        self._notify("on_end", scores=dict(self.state.scores), reason=stopped_by or finished)

    def try_step(self, batches: list[Batch]) -> None:
        """Do a step of the first epoch that leaves no record."""
        self._step(batches, epoch=0)

    def _notify(self, name: str, **values: Any) -> None:
        """Call a method of the callbacks on rank 0; every process then knows whether the run is to stop."""
        if name not in self.called:
            return
        session, step = self.session, self.state.step
        where = {"run": session.folder, "step": step, "total_steps": session.total_steps, "epoch": session.epoch}
        record = RECORDS[name](**where, **values)
        saved = f"resume={str(session.folder)!r} goes on from step {self.saved_step}"
        remedy = saved if self.saved_step else "no checkpoint was saved yet"
        stopped_by = self.engine.on_main(lambda: self.callbacks.call(name, record, remedy))
        self.stopped_by = self.stopped_by or stopped_by
        # What callbacks do does not count as a step's time.
        self.report.start_clock()

    def _train_to(self, pause: int) -> None:
        """Train until step `pause` or the end of the epoch, whichever comes first."""
        self.task.train()
        self.report.start_clock()
        epoch, first = divmod(self.state.step, self.inputs.steps_per_epoch)
        for batches in islice(self.inputs.steps(epoch, first), pause - self.state.step):
            if self.state.step == 0:
                with explained(self.config, "while drawing the first batch"):
                    self.report.samples(batches[0])
            with explained(self.config, f"in step {self.state.step + 1}"):
                loss, norm, lr = self._step(batches, epoch)
            self.report.step(loss, norm, lr)
            self._notify("on_step", loss=loss, lr=lr, grad_norm=norm, speed=self.report.speed)
            self.epoch_losses.append(loss)
            if self.state.step % self.inputs.steps_per_epoch == 0:
                self._notify("on_epoch", loss=sum(self.epoch_losses) / len(self.epoch_losses))
                self.epoch_losses.clear()
            every = self.config.checkpoint_every
            if self.is_stopping or (every and self.state.step % every == 0):
                self._save()
            if self.is_stopping:
                return

    def _step(self, batches: list[Batch], epoch: int) -> tuple[float, float, float]:
        """One optimizer step; returns the loss over all processes, the gradient's norm and the learning rate."""
        lr = self.session.schedule.set_lr(self.state.step)
        own_loss = self._accumulate(batches, epoch)
        norm = self.engine.clip_gradients(self.config.clip_grad)
        loss, norm, signal = self._agree(own_loss, norm)
        self._refuse_nonfinite(loss, norm, float(own_loss), batches)
        self.engine.step()
        self.state.step += 1
        self.engine.notes.step(self.state.step)
        if self.ema is not None:
            self.ema.update(self.task, step=self.state.step)
        self.stop.ended_by = signal
        return loss, norm, lr

    def _accumulate(self, batches: list[Batch], epoch: int) -> torch.Tensor:
        """Add up the gradients of a step's passes; returns this process's loss, a scalar."""
        loss = torch.zeros((), device=self.engine.device)
        share, parts = 1 / len(batches), None
        if self.task.is_counted and len(batches) > 1:
            # What a pass divides by is known when all have counted; then its loss is its part of the step's.
            share, parts = 1.0, self.engine.count(self._passes(batches, epoch))
        for number, ready in enumerate(self._passes(batches, epoch)):
            is_last = number == len(batches) - 1
            with nullcontext() if parts is None else counted(parts):
                loss += self.engine.backward(ready, share, is_last=is_last)["loss"]
        return loss

    def _passes(self, batches: list[Batch], epoch: int) -> Iterator[Batch]:
        """The batch of each pass, ready to be computed, with torch's random state that belongs to it."""
        for number, batch in enumerate(batches):
            ready = self.inputs.ready(batch, epoch, self.state.step * len(batches) + number)
            seed_pass(self.config.seed, self.state.step, number, self.engine.rank)
            yield ready

    def _agree(self, loss: torch.Tensor, norm: torch.Tensor) -> tuple[float, float, int]:
        """Mean loss and gradient norm over all processes, and the signal that one of them got, in one exchange."""
        own = [float(self.stop.number == number) for number in SIGNALS]
        loss_sum, norm_sum, *counts = self.engine.total(loss, norm, *own)
        signal = next((int(number) for number, count in zip(SIGNALS, counts, strict=True) if count), 0)
        return loss_sum / self.engine.world, norm_sum / self.engine.world, signal

    def _refuse_nonfinite(self, loss: float, norm: float, own_loss: float, batches: list[Batch]) -> None:
        """Stop before the optimizer step where a number is not finite; fp16 may leave out some steps."""
        has_scaler = self.engine.loss_scale is not None
        self.state.count_overflow(loss, norm)
        if not nonfinite.is_tolerable(loss, norm, self.state.overflows, has_scaler=has_scaler):
            names = [name for batch in batches for name in self.inputs.names(batch)]
            raise nonfinite.explain(loss, norm, self.state.step + 1, self.engine.gather((own_loss, names)))

    def _pause(self) -> None:
        """At a pause, save and then evaluate: a long evaluation that is cut short costs nothing."""
        state = self.state
        if self.is_stopping or state.step == 0:
            return
        if self._is_due(self.config.checkpoint_interval):
            self._save()
        if not self.is_stopping and state.evaluated < state.step and self._is_due(self.config.val_interval):
            self._evaluate()
            if self.is_stopping:
                self._save()

    def _is_due(self, interval: int) -> bool:
        """Whether something that is done every `interval` epochs, or every `val_steps` steps, is to be done now."""
        step, end = self.state.step, self.session.total_steps
        return step == end or step % (self.config.val_steps or interval * self.inputs.steps_per_epoch) == 0

    def _evaluate(self) -> None:
        """Score model and average; the average's score, where there is one, says which checkpoint is the best."""
        try:
            metric = self._score(self.task)
            judged = metric if self.ema is None else self._score(self.ema.module)
        except StoppedError:
            self.stop.ended_by = max(self.engine.gather(self.stop.number))
            self._save()
            return
        scores = judged.compute()
        nonfinite.require_finite_loss(scores, self.state.step)
        averaged = {} if self.ema is None else {f"ema_{name}": value for name, value in scores.items()}
        measured = metric.compute() | averaged
        self.report.evaluation(measured, self.inputs.share_skipped(self.engine.gather))
        # The first of a metric's numbers is the one to compare.
        is_best = self.state.add_score(next(iter(scores.values())), scores)
        if is_best:
            self._keep_best(judged)
        elif self.saved_step == self.state.step and self.engine.is_main:
            write_state(self.checkpoints.at(self.state.step), self.state, self.config)
        self._keep_thresholds(judged)
        self.report.summarize(is_finished=False)
        self._notify("on_evaluate", scores=measured, is_best=is_best)

    def _score(self, task: Task) -> Metric:
        with explained(self.config, f"in the evaluation after step {self.state.step}"):
            return evaluate(
                task,
                self.inputs.validation,
                self.inputs.transform,
                self.engine.device,
                self.engine.precision,
                gather=self.engine.gather,
                should_stop=lambda: self.stop,
            )

    def _keep_best(self, metric: Metric) -> None:
        self._save()
        if self.engine.is_main:
            checkpoint = self.checkpoints.at(self.state.step)
            # It may have been saved before the evaluation, and must know of it.
            write_state(checkpoint, self.state, self.config)
            self.report.best(metric)
            self.checkpoints.mark_best(checkpoint)

    def _keep_thresholds(self, metric: Metric) -> None:
        """Store the best score thresholds in the checkpoint that was evaluated, if it was saved."""
        thresholds = self.task.best_thresholds(metric)
        if thresholds is not None and self.engine.is_main and self.saved_step == self.state.step:
            file = EMA_FILE if self.ema else MODEL_FILE
            write_thresholds(self.checkpoints.at(self.saved_step) / file, thresholds)

    def _save(self) -> None:
        """Save a checkpoint of the present step, unless there is one."""
        if self.saved_step == self.state.step:
            return
        engine, state = self.engine, self.state
        state.scaler = engine.scaler_state()
        if engine.is_main:
            with explained(self.config, f"while saving step {state.step}"):
                snapshot = take_snapshot(self.task, self.ema and self.ema.module, engine.optimizer)
                snapshot.require_finite(state.step)
                self.report.sync()
                self.checkpoints.save(
                    state.step, lambda folder: write_checkpoint(folder, self.task, snapshot, state, self.config)
                )
        self.saved_step = state.step
        self._notify("on_checkpoint", path=self.checkpoints.at(state.step))

"""The training loop: steps, records, evaluations, checkpoints, and the ways in which a run ends."""

import json
import logging
import math
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from globalvit import atomic
from globalvit.data.loading import Batch
from globalvit.metrics.metric import Metric
from globalvit.tasks.task import Task
from globalvit.train.checkpoint import Checkpoints
from globalvit.train.engine import Engine, start_engine
from globalvit.train.evaluate import StoppedError, evaluate
from globalvit.train.fields import TrainConfig
from globalvit.train.memory import explained
from globalvit.train.plots import plot_batch, plot_confusion, plot_run
from globalvit.train.progress import Display, memory_mib, open_display
from globalvit.train.record import Recorder, read_metrics
from globalvit.train.setup import Session, prepare_session
from globalvit.train.signals import StopSignal
from globalvit.train.state import seed_pass, take_snapshot, write_checkpoint, write_state

logger = logging.getLogger(__name__)

# fp16 steps left out in a row after which more halving of the loss scale is of no use.
MOST_OVERFLOWS = 30
MOST_NAMES = 16


def train(config: TrainConfig, recipe: str = "run") -> Path:
    """Train as `config` says; the same on every process of a launcher.

    Args:
        config: as `load_config` gives it.
        recipe: names the run's folder where the config has no tag.

    Returns:
        The run's folder.

    Raises:
        ValueError, OSError: something asked for is not to be had, or a file cannot be read or written.
        FloatingPointError: a loss or gradient is not finite; the parameters are still those of the step before.
        MemoryError: a batch is too large.
    """
    with ExitStack() as stack:
        engine = stack.enter_context(start_engine(config))
        stop = stack.enter_context(StopSignal())
        session = prepare_session(config, recipe, engine)
        stack.callback(session.inputs.close)
        trainer = Trainer(session, engine, stop)
        stack.callback(trainer.close)
        trainer.run()
        return session.folder


class Trainer:
    """Carries a session from its present step to its end."""

    def __init__(self, session: Session, engine: Engine, stop: StopSignal) -> None:
        self.session, self.engine, self.stop = session, engine, stop
        self.config, self.inputs, self.state = session.config, session.inputs, session.state
        self.task, self.ema = session.task, session.ema
        self.steps_per_epoch = session.inputs.steps_per_epoch
        self.recorder = Recorder(session.folder, self.state.step) if engine.is_main else None
        self.is_stopping = False
        self.clock = time.monotonic()
        self.saved_step = self.state.step

    def run(self) -> None:
        """Train to the end, or until a signal or early stopping ends it."""
        self._announce()
        session, state = self.session, self.state
        with open_display(session.total_steps, state.step, self.engine.device, is_main=self.engine.is_main) as display:
            self.display: Display = display
            self._end_epoch()
            while state.step < session.total_steps and not self._is_over:
                self._train_epoch(state.step // self.steps_per_epoch)
                self._end_epoch()
        self._conclude()

    def close(self) -> None:
        """Close the run's log files."""
        if self.recorder is not None:
            self.recorder.close()

    @property
    def _is_over(self) -> bool:
        return self.is_stopping or self._is_stale

    @property
    def _is_stale(self) -> bool:
        """Whether early stopping ends the run."""
        return 0 < self.config.early_stop <= self.state.stale

    @property
    def _epoch(self) -> float:
        """Epochs done."""
        return self.state.step / self.steps_per_epoch

    def _train_epoch(self, epoch: int) -> None:
        self.task.train()
        for batches in self.inputs.steps(epoch, self.state.step % self.steps_per_epoch):
            if self.state.step == 0:
                self._draw_samples(batches[0])
            with explained(self.config, self.state.step + 1):
                loss, norm, lr = self._step(batches, epoch)
            self._record_step(loss, norm, lr)
            every = self.config.checkpoint_every
            if self.is_stopping or (every and self.state.step % every == 0):
                self._save()
            if self.is_stopping:
                return

    def _step(self, batches: list[Batch], epoch: int) -> tuple[float, float, float]:
        """One optimiser step; returns the loss over all processes, the gradient's norm and the learning rate."""
        engine, state = self.engine, self.state
        lr = self.session.schedule.set_lr(state.step)
        loss = torch.zeros((), device=engine.device)
        for number, batch in enumerate(batches):
            count = state.step * len(batches) + number
            ready = self.inputs.ready(batch, epoch, count)
            seed_pass(self.config.seed, state.step, number, engine.rank)
            is_last = number == len(batches) - 1
            loss += engine.backward(ready, 1 / len(batches), is_last=is_last)["loss"]
        norm = engine.clip_gradients(self.config.clip_grad)
        mean_loss, mean_norm, stops = self._agree(loss, norm)
        self._refuse_nonfinite(mean_loss, mean_norm, float(loss), batches)
        engine.step()
        state.step += 1
        if self.ema is not None:
            self.ema.update(self.task, step=state.step)
        self.is_stopping = stops > 0
        return mean_loss, mean_norm, lr

    def _agree(self, loss: torch.Tensor, norm: torch.Tensor) -> tuple[float, float, float]:
        """Mean loss, gradient norm and wishes to stop over all processes, in one exchange."""
        loss_sum, norm_sum, stops = self.engine.total(loss, norm, float(bool(self.stop)))
        return loss_sum / self.engine.world, norm_sum / self.engine.world, stops

    def _refuse_nonfinite(self, loss: float, norm: float, own_loss: float, batches: list[Batch]) -> None:
        """Stop before the optimiser step where a number is not finite; fp16 may leave out some steps."""
        is_finite = math.isfinite(loss) and math.isfinite(norm)
        has_scaler = self.engine.loss_scale is not None
        self.state.overflows = 0 if is_finite else self.state.overflows + 1
        if is_finite or (has_scaler and math.isfinite(loss) and self.state.overflows < MOST_OVERFLOWS):
            return
        names = [name for batch in batches for name in self.inputs.names(batch)]
        raise FloatingPointError(self._nonfinite_text(loss, norm, self.engine.gather((own_loss, names))))

    def _nonfinite_text(self, loss: float, norm: float, shares: list[tuple[float, list[str]]]) -> str:
        what = f"gradient norm is {norm}" if math.isfinite(loss) else f"loss is {loss}"
        # The gradient is shared: where only it is not finite, every rank's files are suspects.
        guilty = [rank for rank, (own, _) in enumerate(shares) if not math.isfinite(own)] or range(len(shares))
        rank = next(iter(guilty))
        names = shares[rank][1]
        rest = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        where = f"step {self.state.step + 1} on rank {', '.join(map(str, guilty))}"
        logger.error("the batch of %s held: %s", where, ", ".join(names))
        return (
            f"{what} in {where}; rank {rank}'s batch held {', '.join(names[:MOST_NAMES])}{rest}. The last checkpoint "
            f"is from before; lower --lr, set --clip-grad, use --precision fp32, or look at these files"
        )

    def _record_step(self, loss: float, norm: float, lr: float) -> None:
        state, now = self.state, time.monotonic()
        images = self.config.batch_size * self.config.grad_accum_steps * self.engine.world
        speed, seconds = images / max(now - self.clock, 1e-9), now - self.clock
        self.clock = now
        state.seconds += seconds
        state.loss_sum += loss
        state.loss_count += 1
        self.display.show(state.step, self._epoch, loss, speed)
        if state.step % self.config.log_interval and state.step % self.steps_per_epoch:
            return
        usage = {"time": state.seconds, "speed": speed, "memory": memory_mib(self.engine.device)}
        self._record("train", {"loss": state.take_mean_loss(), "lr": lr, "grad_norm": norm} | usage)

    def _record(self, kind: str, values: dict[str, float]) -> None:
        if self.recorder is not None:
            self.recorder.add({"kind": kind, "step": self.state.step, "epoch": self._epoch, **values})

    def _end_epoch(self) -> None:
        """At the end of an epoch save, then evaluate; a run that was stopped in between evaluates when it goes on."""
        state, epoch = self.state, self.state.step // self.steps_per_epoch
        if self.is_stopping or state.step == 0 or state.step % self.steps_per_epoch:
            return
        is_end = state.step == self.session.total_steps
        if is_end or epoch % self.config.checkpoint_interval == 0:
            self._save()
        if state.evaluated < state.step and (is_end or epoch % self.config.val_interval == 0):
            self._evaluate()

    def _evaluate(self) -> None:
        try:
            metric = self._score(self.task)
            average = metric if self.ema is None else self._score(self.ema.module)
        except StoppedError:
            self.is_stopping = True
            self._save()
            return
        scores = metric.compute() if self.ema is None else metric.compute() | _prefixed("ema", average.compute())
        self._record("evaluate", scores)
        # The first of a metric's numbers is the one that says which checkpoint is better.
        name, score = next(iter(average.compute().items()))
        is_best = self.state.add_score(score, average.compute())
        skipped = self.inputs.share_skipped(self.engine.gather)
        logger.info("epoch %g: %s", self._epoch, _in_words(scores) + (f", {skipped} skipped" if skipped else ""))
        self._keep(is_best, average, name)
        self.clock = time.monotonic()

    def _score(self, task: Task) -> Metric:
        engine, inputs = self.engine, self.inputs
        return evaluate(
            task,
            inputs.validation,
            inputs.transform,
            engine.device,
            engine.precision,
            gather=engine.gather,
            should_stop=lambda: self.stop,
        )

    def _keep(self, is_best: bool, metric: Metric, name: str) -> None:
        """Save what an evaluation changed: the best checkpoint, the state, the summary."""
        if is_best and self.saved_step != self.state.step:
            self._save()
        if not self.engine.is_main:
            return
        folder, checkpoint = self.session.folder, self._checkpoints.folder / f"step-{self.state.step}"
        if self.saved_step == self.state.step:
            write_state(checkpoint, self.state, self.config)
        if is_best:
            self._checkpoints.mark_best(checkpoint)
            report = metric.report()
            atomic.write_text(folder / "report.json", json.dumps({"chosen_by": name, **report}) + "\n")
        self._summarise(is_finished=False)

    @property
    def _checkpoints(self) -> Checkpoints:
        return self.session.checkpoints

    def _save(self) -> None:
        """Save a checkpoint of the present step, unless there is one."""
        if self.saved_step == self.state.step:
            return
        engine, state = self.engine, self.state
        state.scaler = engine.scaler_state()
        if engine.is_main or engine.is_sharded:
            snapshot = take_snapshot(self.task, self.ema and self.ema.module, engine.optimizer)
            if self.recorder is not None:
                self.recorder.sync()
                self._checkpoints.save(
                    state.step, lambda folder: write_checkpoint(folder, self.task, snapshot, state, self.config)
                )
        self.saved_step = state.step

    def _announce(self) -> None:
        config, session = self.config, self.session
        logger.info(
            "%s on %s: %d pictures to train on, %d to evaluate on, %d classes, %d px, %s, %d process(es) on %s",
            *(config.model, config.data_dir, len(self.inputs.splits.train), len(self.inputs.splits.val)),
            *(len(self.inputs.splits.classes), max(self.inputs.transform.image_size), self.engine.precision),
            *(self.engine.world, self.engine.device),
        )
        logger.info(
            "%d steps of %s images, %d an epoch; run folder %s",
            *(session.total_steps, config.global_batch, self.steps_per_epoch, session.folder),
        )
        if self.state.step:
            logger.info("resumed at step %d, epoch %.2f", self.state.step, self._epoch)

    def _conclude(self) -> None:
        if self.recorder is None:
            return
        folder = self.session.folder
        self._summarise(is_finished=not self.is_stopping)
        self._draw_curves()
        if self._is_stale:
            logger.info("early stopping: no better score in %d evaluations", self.state.stale)
        if self.is_stopping:
            logger.info(
                "stopped by %s at step %d; go on with --resume %s",
                self.stop.name or "another process",
                self.state.step,
                folder,
            )
        else:
            logger.info("done in %.0f s: %s; run folder %s", self.state.seconds, _in_words(self.state.scores), folder)

    def _summarise(self, *, is_finished: bool) -> None:
        state = self.state
        if self.recorder is not None:
            about: dict[str, Any] = {
                "model": self.config.model,
                "weights": "model" if self.ema is None else "ema",
                "step": state.best_step,
                "epoch": state.best_step / self.steps_per_epoch,
                "steps_done": state.step,
                "finished": is_finished,
                "seconds": round(state.seconds, 1),
            }
            self.recorder.summarise(state.scores | about)

    def _draw_samples(self, batch: Batch) -> None:
        if not self.engine.is_main:
            return
        ready = self.inputs.ready(batch, 0, 0)
        images = self.inputs.transform.denormalise(ready["images"]).permute(0, 2, 3, 1).cpu().numpy() / 255
        classes = self.inputs.splits.classes
        titles = [classes[label] for label in batch["labels"].tolist()]
        plot_batch(self.session.folder / "samples" / "train_batch.png", images, titles)

    def _draw_curves(self) -> None:
        folder = self.session.folder
        plot_run(folder / "plots", read_metrics(folder))
        report = folder / "report.json"
        if report.exists():
            counts = json.loads(report.read_text())["confusion_matrix"]
            plot_confusion(folder / "plots" / "confusion_matrix.png", counts, self.inputs.splits.classes)


def _prefixed(prefix: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in values.items()}


def _in_words(scores: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in scores.items())

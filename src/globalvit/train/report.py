"""What a run tells while it goes: records, the progress display, the summary, images. Only rank 0 speaks."""

import json
import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from PIL import Image

from globalvit import atomic
from globalvit.data.common.folders import listed
from globalvit.data.common.loading import Batch
from globalvit.data.common.transforms import FitTransform
from globalvit.metrics.metric import Metric
from globalvit.tasks.task import Preprocessing
from globalvit.train.advice import warn_of_chance
from globalvit.train.engine import Engine
from globalvit.train.integrity import read_json
from globalvit.train.plots import confusion_figure, plot_confusion, plot_run, to_image
from globalvit.train.progress import memory_mib, open_display
from globalvit.train.record import Recorder, read_metrics
from globalvit.train.session import Session
from globalvit.train.trackers import Trackers

logger = logging.getLogger(__name__)

REPORT_FILE = "report.json"
# Seconds between two drawings of the curves while the run goes on.
DRAW_EVERY = 300.0
# Class names in the log at the start of a run.
MOST_CLASSES = 20


class Reporter:
    """Everything a run writes beside its checkpoints; entered, it holds the log files open."""

    def __init__(self, session: Session, engine: Engine) -> None:
        self.session, self.engine = session, engine
        self.state = session.state
        self.recorder: Recorder | None = None
        self.clock = self.drawn = time.monotonic()
        self.speed = 0.0

    def __enter__(self) -> "Reporter":
        session, engine = self.session, self.engine
        with ExitStack() as stack:
            if engine.is_main:
                self.recorder = Recorder(session.folder)
                stack.callback(self.recorder.close)
                # After log.txt is open, which says why a tracker did not start.
                config = session.config
                self.recorder.trackers = Trackers(config.log, session.folder, self.state.step, config.to_dict())
                self._announce()
            display = open_display(session.total_steps, self.state.step, engine.device, is_main=engine.is_main)
            self.display = stack.enter_context(display)
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *reason: object) -> None:
        self.stack.close()

    def start_clock(self) -> None:
        """Count the time from here, as after an evaluation."""
        self.clock = time.monotonic()

    def step(self, loss: float, norm: float, lr: float) -> None:
        """Show a step that was done, and record the mean loss where an interval or an epoch ends."""
        session, state = self.session, self.state
        seconds = time.monotonic() - self.clock
        self.start_clock()
        self.speed = speed = (session.config.global_batch or 0) / max(seconds, 1e-9)
        state.add_loss(loss, seconds)
        self.display.show(state.step, session.epoch, loss, speed)
        if state.step % session.config.log_interval and state.step % session.inputs.steps_per_epoch:
            return
        usage = {"time": state.seconds, "speed": speed, "memory": memory_mib(self.engine.device)}
        self._record("train", {"loss": state.take_mean_loss(), "lr": lr, "grad_norm": norm} | usage)

    def evaluation(self, scores: dict[str, float], skipped: int) -> None:
        """Record the scores of the present step."""
        self._record("evaluate", scores)
        logger.info("epoch %g: %s%s", self.session.epoch, _in_words(scores), f", {skipped} skipped" if skipped else "")

    def best(self, metric: Metric) -> None:
        """Keep the details behind the best score: rows by class and the confusion matrix."""
        if self.recorder is not None:
            atomic.write_text(self.session.folder / REPORT_FILE, json.dumps(metric.report()) + "\n")

    def summarize(self, *, is_finished: bool) -> None:
        """Write summary.json, and now and then the curves."""
        if self.recorder is None:
            return
        session, state = self.session, self.state
        about: dict[str, Any] = {
            "model": session.config.model,
            "weights": "model" if session.ema is None else "ema",
            "step": state.best_step,
            "epoch": state.best_step / session.inputs.steps_per_epoch,
            "steps_done": state.step,
            "finished": is_finished,
            "seconds": round(state.seconds, 1),
        }
        self.recorder.summarize(state.scores | about)
        if is_finished or time.monotonic() - self.drawn > DRAW_EVERY:
            self.draw()

    def samples(self, batch: Batch) -> None:
        """Draw a sheet of the first batch as the network sees it, Mixup and random erasing included."""
        if self.recorder is None:
            return
        inputs = self.session.inputs
        sheet = inputs.sheet(inputs.ready(batch, 0, 0))
        with atomic.replace_with(self.session.folder / "samples" / "train_batch.png") as temporary:
            sheet.save(temporary, format="PNG")
        self._show("samples", sheet)

    def draw(self) -> None:
        """Draw the curves of metrics.jsonl and the confusion matrix of the best checkpoint."""
        folder = self.session.folder
        plot_run(folder / "plots", read_metrics(folder))
        classes = self.session.inputs.splits.classes
        counts = read_confusion(folder / REPORT_FILE, len(classes))
        if counts:
            plot_confusion(folder / "plots" / "confusion_matrix.png", counts, classes)
            self._show("confusion_matrix", lambda: to_image(confusion_figure(counts, classes)))
        self.drawn = time.monotonic()

    def sync(self) -> None:
        """Force the records to disk, before a checkpoint that builds on them."""
        if self.recorder is not None:
            self.recorder.sync()

    def conclude(self, stopped_by: str) -> None:
        """Say how the run ended, and leave its summary and images; `stopped_by` is empty at its proper end."""
        if self.recorder is None:
            return
        state, folder = self.state, self.session.folder
        self.summarize(is_finished=not stopped_by)
        if stopped_by:
            self.draw()
            logger.info("stopped by %s at step %d; go on with --resume %s", stopped_by, state.step, folder)
            return
        if self.session.is_stale:
            logger.info("early stopping: no better score in %d evaluations", state.stale)
        if "top1" in state.scores:
            val, data_dir = self.session.inputs.splits.val, self.session.config.data_dir
            warn_of_chance(read_metrics(folder), state.scores["top1"], val, data_dir)
        logger.info("done in %.0f s: %s; run folder %s", state.seconds, _in_words(state.scores), folder)

    def _show(self, title: str, image: Image.Image | Callable[[], Image.Image]) -> None:
        trackers = self.recorder and self.recorder.trackers
        if trackers and trackers.open:
            trackers.image(title, image() if callable(image) else image, self.state.step)

    def _record(self, kind: str, values: dict[str, float]) -> None:
        if self.recorder is not None:
            self.recorder.add({"kind": kind, "step": self.state.step, "epoch": self.session.epoch, **values})

    def _announce(self) -> None:
        config, session, inputs = self.session.config, self.session, self.session.inputs
        logger.info(
            "%s on %s: %d images to train on, %d to evaluate on, %d classes, %s, %d process(es) on %s",
            *(config.model, config.data_dir, len(inputs.splits.train), len(inputs.splits.val)),
            *(len(inputs.splits.classes), describe(inputs.transform), self.engine.world, self.engine.device),
        )
        logger.info("classes: %s", listed(inputs.splits.classes, MOST_CLASSES))
        logger.info(
            "precision %s (%s), kernels %s%s",
            *(self.engine.precision, self.engine.precision_reason, self.engine.kernels),
            f", PyTorch for {', '.join(self.engine.torch_operations)}" if self.engine.torch_operations else "",
        )
        logger.info(
            "%d steps of %s images, %d an epoch; run folder %s",
            *(session.total_steps, config.global_batch, inputs.steps_per_epoch, session.folder),
        )
        if self.state.step:
            logger.info("resumed at step %d, epoch %.2f", self.state.step, session.epoch)


def read_confusion(path: Path, classes: int) -> list[list[int]]:
    """The confusion matrix in a report; empty where there is none, with a warning where the report is damaged."""
    if not path.exists():
        return []
    try:
        counts = read_json(path).get("confusion_matrix") or []
        is_square = len(counts) in (0, classes) and all(len(row) == classes for row in counts)
        if is_square and all(type(count) is int and 0 <= count < 2**53 for row in counts for count in row):
            return counts
    except (OSError, ValueError, TypeError, AttributeError):
        pass
    logger.warning("%s is damaged, so the confusion matrix is not drawn; the next better score replaces it", path)
    return []


def describe(transform: Preprocessing) -> str:
    """The size of the images that are evaluated, in words."""
    if not isinstance(transform, FitTransform):
        return f"{max(transform.image_size)} px"
    return f"{transform.short_side} to {transform.long_side} px" if transform.short_side else "their own size"


def _in_words(scores: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in scores.items())

"""Training a small model on the spot, in a process of its own, for a page that has no weights at hand."""

import json
import logging
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from globalvit.demo.shelf import Choice

logger = logging.getLogger(__name__)
# Seconds that a training has to end in when it is asked to.
PATIENCE = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """A training that takes a minute or two.

    Attributes:
        title: what the model will be able to do.
        data: the built-in set that it learns from.
        recipe: the shipped recipe that it shortens.
        steps: of the training.
        cost: how long it takes on two processor cores, in words.
    """

    title: str
    data: str
    recipe: str
    steps: int
    cost: str


LESSONS = {
    "digits": Lesson(title="Read handwritten digits", data="digits", recipe="digits", steps=110, cost="under a minute"),
    "shapes": Lesson(
        title="Outline shapes", data="shapes", recipe="shapes_segmentation", steps=120, cost="under 2 minutes"
    ),
    "shapes_detection": Lesson(
        title="Find shapes", data="shapes", recipe="shapes_detection", steps=100, cost="under 3 minutes"
    ),
}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training is.

    Attributes:
        part: done, 0 … 1.
        text: a line about it.
        is_running: whether it goes on.
        made: the model, once it is there.
    """

    part: float
    text: str
    is_running: bool
    made: Choice | None = None


class Training:
    """At most one training at a time, as a child process whose run folder lies in `folder`."""

    def __init__(self, folder: Path, device: str) -> None:
        self.folder, self.device = folder, device
        self.name = ""
        self.number = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._start = 0.0

    @property
    def run(self) -> Path:
        """The run folder of the training begun last."""
        return self.folder / f"{self.name}-{self.number}"

    @property
    def is_running(self) -> bool:
        """Whether a training goes on."""
        return self._child is not None and self._child.poll() is None

    def begin(self, name: str) -> None:
        """Start the lesson of a name.

        Raises:
            ValueError: another one goes on.
        """
        if self.is_running:
            raise ValueError(f"a training goes on: {LESSONS[self.name].title}; wait for it, or stop it")
        self.name, self.number, self._start = name, self.number + 1, time.monotonic()
        logger.info("training: %s", LESSONS[name].title)
        self._log = (self.folder / f"{name}-{self.number}.txt").open("wb")
        # A session of its own: Ctrl-C in the terminal is for the page, which ends the training itself.
        self._child = subprocess.Popen(
            command(LESSONS[name], self.run, self.device),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def progress(self) -> Progress:
        """How far the training begun last is."""
        lesson = LESSONS[self.name]
        seconds = time.monotonic() - self._start
        if self.is_running:
            step, loss = last_step(self.run)
            text = f"step {step} of {lesson.steps}, loss {loss:.2f}" if step else "starting"
            return Progress(0.97 * step / lesson.steps, f"{lesson.title}: {text}, {seconds:.0f} s", True)
        scores = summary(self.run)
        if not scores.get("finished"):
            return Progress(0, f"{lesson.title}: the training ended early. {self._last_words()}".strip(), False)
        return Progress(1, f"{lesson.title}: learned. {score(scores)}", False, self._choice(lesson))

    def stop(self, patience: float = PATIENCE) -> None:
        """End the training, if one goes on; it has `patience` seconds to end by itself."""
        if self._child is not None and self.is_running:
            self._child.terminate()
            try:
                self._child.wait(patience)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait(PATIENCE)
        if self._log is not None:
            self._log.close()

    def _choice(self, lesson: Lesson) -> Choice:
        title = f"{lesson.title} · trained here"
        return Choice(key=str(self.run), title=title, checkpoint=self.run, data=lesson.data)

    def _last_words(self) -> str:
        lines = (self.folder / f"{self.name}-{self.number}.txt").read_text(errors="replace").split("\n")
        errors = [line for line in lines if line.startswith("globalvit: error: ")]
        return errors[-1].removeprefix("globalvit: error: ") if errors else ""


def command(lesson: Lesson, run: Path, device: str) -> list[str]:
    """The words that train a lesson."""
    steps = str(lesson.steps)
    words = ["train", "--config", lesson.recipe, "--steps", steps, "--val-steps", steps, "--log-interval", "2"]
    words += ["--warmup-steps", str(lesson.steps // 10), "--workers", "0", "--device", device]
    return [sys.executable, "-m", "globalvit", *words, "--output", str(run.parent), "--tag", run.name]


def last_step(run: Path) -> tuple[int, float]:
    """Step and loss of the last record of a run that goes on; 0 where there is none yet."""
    try:
        lines = (run / "metrics.jsonl").read_text().split("\n")
    except FileNotFoundError:
        return 0, 0.0
    # The last line is empty, or still being written.
    records = [json.loads(line) for line in lines[:-1]]
    steps = [(record["step"], record["loss"]) for record in records if record["kind"] == "train"]
    return steps[-1] if steps else (0, 0.0)


def summary(run: Path) -> dict[str, Any]:
    """The `summary.json` of a run; nothing where there is none."""
    path = run / "summary.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def score(scores: dict[str, Any]) -> str:
    """What a run that is done scored, in words."""
    titles = {"top1": "right of the held-out images", "miou": "mIoU", "ap_box": "box AP", "ap_mask": "mask AP"}
    return ", ".join(f"{scores[key]:.1f} % {title}" for key, title in titles.items() if key in scores)

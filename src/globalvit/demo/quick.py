"""Training a small model on the spot, in a process of its own, for a page that has no weights yet."""

import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any, NamedTuple

from globalvit.demo.shelf import Choice

logger = logging.getLogger(__name__)
# Seconds that a training has to end in when it is asked to.
PATIENCE = 10.0
SCORES = {"top1": "right of the held-out images", "miou": "mIoU", "ap_box": "box AP", "ap_mask": "mask AP"}


class Lesson(NamedTuple):
    """A shortened recipe on a built-in set; the cost is on two processor cores, in words."""

    title: str
    data: str
    recipe: str
    steps: int
    cost: str


LESSONS = {
    "digits": Lesson("Read handwritten digits", "digits", "digits", 110, "under a minute"),
    "shapes": Lesson("Outline shapes", "shapes", "shapes_segmentation", 120, "under 2 minutes"),
    "shapes_detection": Lesson("Find shapes", "shapes", "shapes_detection", 100, "under 3 minutes"),
}


class Progress(NamedTuple):
    """How far a training is: the part that is done, a line about it, and the model once it is there."""

    part: float
    text: str
    is_running: bool
    made: Choice | None = None


class Training:
    """At most one training at a time, as a child process whose run folder lies in `folder`."""

    def __init__(self, folder: Path, device: str) -> None:
        self.folder, self.device = folder, device
        self.name, self.number = "", 0
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
        """Start the lesson of a name; raise ValueError if another one goes on."""
        if self.is_running:
            raise ValueError(f"a training goes on: {LESSONS[self.name].title}; wait for it, or stop it")
        self.name, self.number, self._start = name, self.number + 1, time.monotonic()
        logger.info("training: %s", LESSONS[name].title)
        self._log = self.run.with_suffix(".txt").open("wb")
        # A session of its own: Ctrl-C in the terminal is for the page, which ends the training itself.
        self._child = subprocess.Popen(
            command(LESSONS[name], self.run, self.device),
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def progress(self) -> Progress:
        """Return how far the training begun last is."""
        lesson, seconds = LESSONS[self.name], time.monotonic() - self._start
        if self.is_running:
            step, loss = last_step(self.run)
            text = f"step {step} of {lesson.steps}, loss {loss:.2f}" if step else "starting"
            return Progress(0.97 * step / lesson.steps, f"{lesson.title}: {text}, {seconds:.0f} s", True)
        path = self.run / "summary.json"
        scores: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        if not scores.get("finished"):
            said = self.run.with_suffix(".txt").read_text(errors="replace").split("\n")
            errors = [line for line in said if line.startswith("globalvit: error: ")]
            words = errors[-1].removeprefix("globalvit: error: ") if errors else ""
            return Progress(0, f"{lesson.title}: the training ended early. {words}".strip(), False)
        score = ", ".join(f"{scores[key]:.1f} % {title}" for key, title in SCORES.items() if key in scores)
        made = Choice(str(self.run), f"{lesson.title} · trained here", checkpoint=self.run, data=lesson.data)
        return Progress(1, f"{lesson.title}: learned. {score}", False, made)

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


def command(lesson: Lesson, run: Path, device: str) -> list[str]:
    """Return the words that train a lesson."""
    steps = str(lesson.steps)
    words = ["train", "--config", lesson.recipe, "--steps", steps, "--val-steps", steps, "--log-interval", "2"]
    words += ["--warmup-steps", str(lesson.steps // 10), "--workers", "0", "--device", device]
    return [sys.executable, "-m", "globalvit", *words, "--output", str(run.parent), "--tag", run.name]


def last_step(run: Path) -> tuple[int, float]:
    """Return step and loss of the last record of a run that goes on; 0 if there is none yet."""
    try:
        lines = (run / "metrics.jsonl").read_text().split("\n")
    except FileNotFoundError:
        return 0, 0.0
    # The last line is empty, or still being written.
    records = [json.loads(line) for line in lines[:-1]]
    steps = [(record["step"], record["loss"]) for record in records if record["kind"] == "train"]
    return steps[-1] if steps else (0, 0.0)

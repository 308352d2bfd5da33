"""Training of a small model in a child process, for a page that has no weights yet."""

import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any, NamedTuple

from globalvit.demo.shelf import Choice

logger = logging.getLogger(__name__)
# Seconds that a training has to stop before it is killed.
PATIENCE = 10.0
SCORES = {"top1": "accuracy on held-out images", "map": "mAP", "miou": "mIoU", "ap_box": "box AP", "ap_mask": "mask AP"}


class Lesson(NamedTuple):
    """A shortened recipe on a built-in data set; the cost describes the time on two CPU cores."""

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
    """Progress of a training: the fraction done, a line of text, and the model once it is trained."""

    part: float
    text: str
    is_running: bool
    made: Choice | None = None


class Training:
    """At most one training at a time, as a child process with its run folder in `folder`."""

    def __init__(self, folder: Path, device: str) -> None:
        self.folder, self.device = folder, device
        self.name, self.number = "", 0
        self._child: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._start = 0.0

    @property
    def run(self) -> Path:
        """Run folder of the most recent training."""
        return self.folder / f"{self.name}-{self.number}"

    @property
    def is_running(self) -> bool:
        """Whether a training is running."""
        return self._child is not None and self._child.poll() is None

    def begin(self, name: str) -> None:
        """Start a lesson by name; raise ValueError if another one is running."""
        if self.is_running:
            raise ValueError(f"a training is already running: {LESSONS[self.name].title}; wait for it or stop it")
        self.name, self.number, self._start = name, self.number + 1, time.monotonic()
        logger.info("training: %s", LESSONS[name].title)
        self._log = self.run.with_suffix(".txt").open("wb")
        # A separate session: Ctrl-C in the terminal stops the page, which then stops the training.
        self._child = subprocess.Popen(
            command(LESSONS[name], self.run, self.device),
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def progress(self) -> Progress:
        """Return the progress of the most recent training."""
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
            return Progress(0, f"{lesson.title}: training failed. {words}".strip(), False)
        score = ", ".join(f"{scores[key]:.1f} % {title}" for key, title in SCORES.items() if key in scores)
        made = Choice(str(self.run), f"{lesson.title} · trained here", checkpoint=self.run, data=lesson.data)
        return Progress(1, f"{lesson.title}: done. {score}", False, made)

    def stop(self, patience: float = PATIENCE) -> None:
        """Stop the running training, if any; kill it after `patience` seconds."""
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
    """Return the command that trains a lesson."""
    steps = str(lesson.steps)
    words = ["train", "--config", lesson.recipe, "--steps", steps, "--val-steps", steps, "--log-interval", "2"]
    words += ["--warmup-steps", str(lesson.steps // 10), "--workers", "0", "--device", device]
    return [sys.executable, "-m", "globalvit", *words, "--output", str(run.parent), "--tag", run.name]


def last_step(run: Path) -> tuple[int, float]:
    """Return step and loss of the last record of a running training; 0 if there is none yet."""
    try:
        lines = (run / "metrics.jsonl").read_text().split("\n")
    except FileNotFoundError:
        return 0, 0.0
    # The last line is empty or incomplete.
    records = [json.loads(line) for line in lines[:-1]]
    steps = [(record["step"], record["loss"]) for record in records if record["kind"] == "train"]
    return steps[-1] if steps else (0, 0.0)

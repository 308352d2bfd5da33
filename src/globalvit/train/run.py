"""The folder of a run as an object: its scores, its records, its curves. Nothing is read before it is asked for."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from globalvit.train.config import read_run_config
from globalvit.train.fields import TrainConfig
from globalvit.weights.pointers import follow

if TYPE_CHECKING:
    from PIL import Image

# What summary.json holds beside the scores.
ABOUT = ("model", "weights", "step", "epoch", "steps_done", "finished", "seconds")


class Run(os.PathLike[str]):
    """A training's run folder; it is a path, so that it serves wherever a checkpoint is asked for.

    Attributes:
        folder: its path.

    Raises:
        FileNotFoundError: the folder holds no run.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not (self.folder / "config.yaml").is_file():
            raise FileNotFoundError(f"{self.folder} is not a run folder: it has no config.yaml")

    def __fspath__(self) -> str:
        return str(self.folder)

    def __str__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in self.scores.items())
        return f"<Run {self.folder}: {shown or 'not evaluated yet'}>"

    @property
    def summary(self) -> dict[str, Any]:
        """What summary.json holds; empty before the first evaluation."""
        path = self.folder / "summary.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @property
    def scores(self) -> dict[str, float]:
        """Scores of the best checkpoint by name: percent for accuracies, plain for a loss."""
        return {name: value for name, value in self.summary.items() if name not in ABOUT}

    @property
    def is_finished(self) -> bool:
        """Whether the run reached its end; one that was stopped can be resumed."""
        return bool(self.summary.get("finished"))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl; `kind` is `train` or `evaluate`, and each has `step` and `epoch`."""
        from globalvit.train.record import read_metrics

        return read_metrics(self.folder)

    @property
    def classes(self) -> list[str]:
        """Names of the labels 0 … K−1."""
        return json.loads((self.folder / "classes.json").read_text(encoding="utf-8"))

    @property
    def config(self) -> TrainConfig:
        """The settings of the run, none of them left open."""
        return read_run_config(self.folder)

    @property
    def best(self) -> Path:
        """Folder of the checkpoint with the best score."""
        return follow(self.folder / "checkpoints" / "best")

    @property
    def last(self) -> Path:
        """Folder of the last checkpoint."""
        return follow(self.folder / "checkpoints" / "last")

    def plot(self) -> "Image.Image":
        """Draw loss and scores over the epochs, as an image that notebooks show and `save` writes."""
        from globalvit.train.plots import run_figure, to_image

        return to_image(run_figure(self.metrics))

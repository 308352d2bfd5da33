"""Experiment trackers of a run: TensorBoard, Trackio, Weights & Biases and MLflow, through Accelerate's trackers."""

import importlib.util
import json
import logging
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from globalvit import atomic
from globalvit.train.fields import TRACKERS

logger = logging.getLogger(__name__)

PROJECT = "globalvit"
# Names of the run at the trackers, so that a resumed run continues there.
IDS_FILE = "trackers.json"
INSTALL = dict.fromkeys(TRACKERS, "'globalvit[loggers]'") | {"wandb": "wandb", "mlflow": "mlflow"}


def require_trackers(names: Sequence[str]) -> None:
    """Check that the packages of trackers are installed.

    Raises:
        ImportError: one is not; the message says how to install it.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ImportError(
                f"--log {name} requires the package {name}, which is not installed; run: pip install {INSTALL[name]}",
                name=name,
            )


class Trackers:
    """The trackers of a run, in the process of rank 0. One that fails ends with a warning; the run continues."""

    def __init__(self, names: Sequence[str], folder: Path, step: int, config: Mapping[str, Any]) -> None:
        """Start or continue the run in `folder` at every tracker.

        Args:
            names: of `TRACKERS`.
            folder: of the run.
            step: to continue after; TensorBoard hides what a run that was killed logged beyond it.
            config: the settings of the run.
        """
        self.folder, self.open = folder, dict[str, Any]()
        self.former_hook = threading.excepthook
        if not names:
            return
        # TensorBoard's thread would print a traceback; what went wrong is raised again at the next record.
        threading.excepthook = self._pass_over
        ids = _read_ids(folder)
        for name in names:
            self._attempt(name, lambda name=name: self._start(name, ids, step, config))
        atomic.write_text(folder / IDS_FILE, json.dumps(ids) + "\n")

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Log numbers as `train/loss`, `evaluate/top1`, …."""
        numbers = {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, float)}
        for name, tracker in list(self.open.items()):
            self._attempt(name, lambda tracker=tracker: tracker.log(numbers, step=step))

    def image(self, title: str, image: Image.Image, step: int) -> None:
        """Log an image at the trackers that show images."""
        for name, tracker in list(self.open.items()):
            if name == "tensorboard":
                pixels = np.asarray(image.convert("RGB"))[None]
                self._attempt(name, lambda t=tracker, p=pixels: t.log_images({title: p}, step, dataformats="NHWC"))
            elif name == "wandb":
                self._attempt(name, lambda t=tracker: t.log_images({title: [image]}, step))
            elif name == "trackio":
                self._attempt(name, lambda t=tracker: _to_trackio(t, title, image, step))

    def close(self) -> None:
        """Write what is left."""
        for name, tracker in list(self.open.items()):
            self._attempt(name, tracker.finish)
        threading.excepthook = self.former_hook

    def _start(self, name: str, ids: dict[str, str], step: int, config: Mapping[str, Any]) -> None:
        from accelerate import tracking

        is_new = name not in ids
        own = ids.setdefault(name, uuid.uuid4().hex[:8])
        title = f"{self.folder.name}-{own}"
        if name == "tensorboard":
            tracker = tracking.TensorBoardTracker(name, self.folder, purge_step=step + 1)
        elif name == "wandb":
            tracker = tracking.WandBTracker(PROJECT, name=self.folder.name, id=own, resume="allow", dir=self.folder)
        elif name == "trackio":
            tracker = tracking.TrackioTracker(PROJECT, name=title, resume="allow")
        else:
            tracker = tracking.MLflowTracker(PROJECT, run_id=None if is_new else own, run_name=title)
        tracker.start()
        if isinstance(tracker, tracking.MLflowTracker):
            ids[name] = tracker.tracker.info.run_id
        self.open[name] = tracker
        if is_new:
            tracker.store_init_configuration({key: _plain(value) for key, value in config.items()})

    def _attempt(self, name: str, work: Callable[[], Any]) -> None:
        try:
            work()
        except Exception as error:
            # Whatever a tracker's network, disk or service does, the training goes on.
            self.open.pop(name, None)
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            logger.warning("%s ends here, the run continues without it: %s", name, reason)

    def _pass_over(self, failure: threading.ExceptHookArgs) -> None:
        if not isinstance(failure.exc_value, OSError):
            self.former_hook(failure)


def _to_trackio(tracker: Any, title: str, image: Image.Image, step: int) -> None:
    import trackio  # pyright: ignore[reportMissingImports]

    tracker.log({title: trackio.Image(image)}, step=step)


def _plain(value: Any) -> str | int | float | bool:
    return value if isinstance(value, int | float | bool | str) else json.dumps(value)


def _read_ids(folder: Path) -> dict[str, str]:
    try:
        ids = json.loads((folder / IDS_FILE).read_text(encoding="utf-8"))
        return {name: str(own) for name, own in ids.items() if name in TRACKERS}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        logger.warning("%s is damaged, so trackers begin a new run: %s", folder / IDS_FILE, error)
        return {}

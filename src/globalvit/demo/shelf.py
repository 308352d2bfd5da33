"""Models that can be chosen, with one at a time in memory."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import torch
import yaml

from globalvit import build
from globalvit.data.classification.imagenet import readable
from globalvit.tasks.task import Task
from globalvit.weights import catalog
from globalvit.weights.download import find_copy
from globalvit.weights.load import find_file

logger = logging.getLogger(__name__)
TASKS = {"classify": "classifies images", "segment": "labels every pixel", "detect": "finds objects"}
# Number of path components that the page shows.
LONGEST_PATH = 3


class Choice(NamedTuple):
    """An available model: a checkpoint, or the names of a model and its published weights."""

    key: str
    title: str
    checkpoint: Path | None = None
    model: str = ""
    weights: str = ""
    data: str | None = None  # `digits` or `shapes` if it was trained on that built-in set


class Shelf:
    """Choices by key, in the order of the page; keeps the most recently opened model in memory."""

    def __init__(self, choices: Sequence[Choice], device: str) -> None:
        self.device = device
        self.choices = {choice.key: choice for choice in choices}
        self._opened: tuple[str, Task] | None = None
        self._lock = Lock()

    def open(self, key: str | None) -> Task:
        """Return the model of a key, ready to predict, and release the previous one.

        Raises ValueError or OSError if the key is unknown, or its file is missing or invalid.
        """
        with self._lock:
            if self._opened is not None and self._opened[0] == key:
                return self._opened[1]
            self._opened = None
            if key is None or key not in self.choices:
                raise ValueError("this model no longer exists; choose another")
            choice = self.choices[key]
            logger.info("opening %s", choice.title)
            if choice.checkpoint is not None:
                task = build.open_checkpoint(choice.checkpoint)
            else:
                task = build.create_model(choice.model, choice.weights).eval()
            self._opened = key, task.to(torch.device(self.device))
            return task


def describe(task: Task) -> str:
    """Return a one-line description of a model: its task, classes and parameters."""
    names = readable(task.class_names)
    some = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
    millions = sum(parameter.numel() for parameter in task.parameters()) / 1e6
    return f"{task.spec.model} {TASKS[task.kind]}: {len(names)} classes ({some}), {millions:.1f} M parameters"


def of_checkpoint(path: Path) -> Choice:
    """Return the choice for a weight file, a checkpoint folder or a run folder, or raise FileNotFoundError."""
    find_file(path)
    config: dict[str, str] = {}
    places = (folder / "config.yaml" for folder in (path, *path.resolve().parents[:3]))
    if (found := next(filter(Path.is_file, places), None)) is not None:
        try:
            read = yaml.safe_load(found.read_text())
            config = read if isinstance(read, dict) else {}
        except (yaml.YAMLError, OSError, UnicodeDecodeError):
            logger.debug("%s cannot be read", found)
    short = str(path) if len(path.parts) <= LONGEST_PATH else str(Path("…", *path.parts[-LONGEST_PATH:]))
    title = f"{short} · {config['model']}" if "model" in config else short
    data = config.get("data_dir")
    return Choice(str(path), title, checkpoint=path, data=data if data in ("digits", "shapes") else None)


def of_runs(folder: Path) -> Iterator[Choice]:
    """Yield the runs in a folder that have weights, newest first."""
    for config in sorted(folder.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            yield of_checkpoint(config.parent)
        except (OSError, ValueError):
            # A run that was stopped before its first checkpoint has no weights.
            continue


def of_catalog() -> Iterator[Choice]:
    """Yield the published weights whose files are already on this machine."""
    yield from (of_published(record) for record in catalog.RECORDS if find_copy(record) is not None)


def of_model(name: str) -> Choice:
    """Return the choice for a model's first published weights, or raise ValueError if there are none."""
    return of_published(catalog.find(build.resolve_name(name), catalog.FIRST))


def of_published(record: catalog.WeightRecord) -> Choice:
    """Return the choice for a catalog record."""
    title = f"{record.model} · {record.weights} ({record.license})"
    return Choice(f"{record.model}:{record.weights}", title, model=record.model, weights=record.weights)

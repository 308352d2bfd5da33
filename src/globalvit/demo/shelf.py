"""The models that can be chosen, of which one at a time is held in memory."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import torch
import yaml

from globalvit import build
from globalvit.data.classification.imagenet import readable
from globalvit.tasks.task import Task
from globalvit.weights import catalog
from globalvit.weights.download import find_copy
from globalvit.weights.load import find_file

logger = logging.getLogger(__name__)
TASKS = {"classify": "says what an image shows", "segment": "labels every pixel", "detect": "finds objects"}

# Parts of a path that the page shows.
LONGEST_PATH = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A model on offer.

    Attributes:
        key: stands for it; no two have the same.
        title: what the page calls it.
        checkpoint: what `open_checkpoint` takes; None for published weights.
        model: name of the model, for published weights.
        weights: their name.
        data: `digits` or `shapes` where it was trained on that built-in set.
    """

    key: str
    title: str
    checkpoint: Path | None = None
    model: str | None = None
    weights: str | None = None
    data: str | None = None


class Shelf:
    """Choices by key. The model opened last is kept, so that moving a slider opens nothing.

    Attributes:
        choices: in the order in which the page lists them.
        device: where models compute.
    """

    def __init__(self, choices: Sequence[Choice], device: str) -> None:
        self.device = device
        self.choices: dict[str, Choice] = {}
        self._opened: tuple[str, Task] | None = None
        self._lock = Lock()
        for choice in choices:
            self.add(choice)

    def add(self, choice: Choice) -> None:
        """Offer another model; one of the same key takes the place of the former."""
        self.choices[choice.key] = choice

    def open(self, key: str | None) -> Task:
        """The model of a key, ready to predict; the one that was open before is let go.

        Raises:
            ValueError: no such choice, or its file is not what it should be.
            OSError: its file is gone or cannot be read.
        """
        with self._lock:
            if self._opened is not None and self._opened[0] == key:
                return self._opened[1]
            self._opened = None
            if key is None or key not in self.choices:
                raise ValueError("this model is no longer there; choose another")
            task = _open(self.choices[key]).to(torch.device(self.device))
            self._opened = key, task
            return task


def _open(choice: Choice) -> Task:
    logger.info("opening %s", choice.title)
    if choice.checkpoint is not None:
        return build.open_checkpoint(choice.checkpoint)
    assert choice.model is not None
    return build.create_model(choice.model, choice.weights).eval()


def describe(task: Task) -> str:
    """A line about a model: what it does, with how many classes and parameters."""
    names = readable(task.class_names)
    some = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
    millions = sum(parameter.numel() for parameter in task.parameters()) / 1e6
    return f"{task.spec.model} {TASKS[task.kind]}: {len(names)} classes ({some}), {millions:.1f} M parameters"


def of_checkpoint(path: Path) -> Choice:
    """The choice of a weight file, a checkpoint folder or a run folder.

    Raises:
        FileNotFoundError: nothing is there.
    """
    find_file(path)
    config = _config(path)
    about = f" · {config['model']}" if "model" in config else ""
    return Choice(key=str(path), title=f"{_short(path)}{about}", checkpoint=path, data=_built_in(config))


def of_runs(folder: Path) -> Iterator[Choice]:
    """The runs in a folder that have weights, the newest first."""
    configs = sorted(folder.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime, reverse=True)
    for run in (path.parent for path in configs):
        try:
            yield of_checkpoint(run)
        except (OSError, ValueError):
            # A run that was stopped before its first checkpoint has nothing to offer.
            continue


def of_catalog() -> Iterator[Choice]:
    """The published weights whose files are at hand."""
    for record in catalog.RECORDS:
        if find_copy(record) is not None:
            yield of_published(record)


def of_model(name: str) -> Choice:
    """The choice of a model's first published weights, at hand or not.

    Raises:
        ValueError: no such model, or none are published for it.
    """
    return of_published(catalog.find(build.resolve_name(name), catalog.FIRST))


def of_published(record: catalog.WeightRecord) -> Choice:
    """The choice of a record of the catalog."""
    title = f"{record.model} · {record.weights} ({record.license})"
    return Choice(key=f"{record.model}:{record.weights}", title=title, model=record.model, weights=record.weights)


def _short(path: Path) -> str:
    """The end of a path that is long."""
    return str(path) if len(path.parts) <= LONGEST_PATH else str(Path("…", *path.parts[-LONGEST_PATH:]))


def _config(path: Path) -> dict[str, str]:
    """What a run's `config.yaml`, in or above a checkpoint, says; nothing where there is none or it is broken."""
    for folder in (path, *path.resolve().parents[:3]):
        if (folder / "config.yaml").is_file():
            try:
                config = yaml.safe_load((folder / "config.yaml").read_text())
            except (yaml.YAMLError, OSError, UnicodeDecodeError):
                return {}
            return config if isinstance(config, dict) else {}
    return {}


def _built_in(config: dict[str, str]) -> str | None:
    return config.get("data_dir") if config.get("data_dir") in ("digits", "shapes") else None

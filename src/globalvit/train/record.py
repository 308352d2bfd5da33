"""What a run writes about itself: metrics.jsonl, TensorBoard, summary.json, log.txt. Only rank 0 has one."""

import json
import logging
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from globalvit import atomic

Record = dict[str, Any]


class Recorder:
    """The open log files of a run folder."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        """Start writing after `step`; what a run that was killed wrote beyond it must be cut before."""
        self.folder = folder
        self.metrics = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self.tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self.log = logging.FileHandler(folder / "log.txt", encoding="utf-8", errors="backslashreplace")
        self.log.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        self.logger = logging.getLogger("globalvit")
        self.former_level = self.logger.level
        # Also where nobody has set up logging, log.txt tells the run.
        self.logger.setLevel(min(self.logger.getEffectiveLevel(), logging.INFO))
        self.logger.addHandler(self.log)

    def add(self, record: Record) -> None:
        """Append a record with `kind` (`train` or `evaluate`), `step` and numbers."""
        self.metrics.write(json.dumps(record) + "\n")
        self.metrics.flush()
        for name, value in record.items():
            if isinstance(value, float):
                self.tensorboard.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def sync(self) -> None:
        """Force the records to disk, so that a checkpoint never knows more steps than they do."""
        self.metrics.flush()
        atomic.sync(self.folder / "metrics.jsonl")

    def summarize(self, summary: Record) -> None:
        """Write summary.json."""
        atomic.write_text(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")

    def close(self) -> None:
        """Close the files."""
        self.metrics.close()
        self.tensorboard.close()
        self.logger.removeHandler(self.log)
        self.logger.setLevel(self.former_level)
        self.log.close()


def new_folder(output: Path, tag: str | None, recipe: str, *, may_exist: bool = False) -> Path:
    """Make the folder of a new run: OUTPUT/TAG, or OUTPUT/RECIPE-N with the first free N.

    Args:
        output: the folder of runs.
        tag: the run's name.
        recipe: what numbered folders are called.
        may_exist: take over the folder of the tag, which a run left that ended before it saved anything.

    Raises:
        FileExistsError: OUTPUT/TAG is there already; runs are never overwritten.
    """
    output.mkdir(parents=True, exist_ok=True)
    if tag is not None:
        return output / tag if may_exist and (output / tag).is_dir() else _made(output / tag)
    number = 1
    while True:
        try:
            return _made(output / f"{recipe}-{number}")
        except FileExistsError:
            number += 1


def read_metrics(folder: Path) -> list[Record]:
    """The records of a run; a last line that was cut off by a crash is left out."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def cut_metrics(folder: Path, step: int, evaluated: int) -> None:
    """Drop the records after `step`, and evaluations after the step `evaluated`."""
    limits = {"train": step, "evaluate": evaluated}
    kept = [record for record in read_metrics(folder) if record["step"] <= limits[record["kind"]]]
    atomic.write_text(folder / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in kept))


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise FileExistsError(f"run folder {folder} exists; choose another --tag, or --resume {folder}") from error
    return folder

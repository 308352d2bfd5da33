"""What a run writes about itself: metrics.jsonl, trackers, summary.json, log.txt. Only rank 0 has one."""

import errno
import json
import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from globalvit import atomic
from globalvit.train.trackers import Trackers

logger = logging.getLogger(__name__)

Record = dict[str, Any]
METRICS_FILE = "metrics.jsonl"
KINDS = ("train", "evaluate")
# Far beyond any number of a run, and within what floating-point numbers hold.
LARGEST = 2**1000


class Recorder:
    """The open log files of a run folder."""

    def __init__(self, folder: Path, trackers: Trackers | None = None) -> None:
        """Start writing; what a run that was killed wrote beyond its checkpoint must be cut before."""
        self.folder = folder
        # Without a buffer, so that what a full disk did not take is not written later.
        self.metrics = (folder / METRICS_FILE).open("ab", buffering=0)
        self.log = _LogFile(folder / "log.txt", encoding="utf-8", errors="backslashreplace")
        self.trackers = trackers
        self.log.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        self.logger = logging.getLogger("globalvit")
        self.former_level = self.logger.level
        # Also where nobody has set up logging, log.txt tells the run.
        self.logger.setLevel(min(self.logger.getEffectiveLevel(), logging.INFO))
        self.logger.addHandler(self.log)

    def add(self, record: Record) -> None:
        """Append a record with `kind` (`train` or `evaluate`), `step` and numbers.

        Raises:
            OSError: the disk is full; the text names the file.
        """
        line = (json.dumps(record) + "\n").encode()
        try:
            written = self.metrics.write(line)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.folder / METRICS_FILE)) from error
        if written != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder / METRICS_FILE))
        if self.trackers is not None:
            values = {name: value for name, value in record.items() if name not in ("kind", "step")}
            self.trackers.log(record["kind"], record["step"], values)

    def sync(self) -> None:
        """Force the records to disk, so that a checkpoint never knows more steps than they do."""
        atomic.sync(self.folder / METRICS_FILE)

    def summarize(self, summary: Record) -> None:
        """Write summary.json."""
        atomic.write_text(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")

    def close(self) -> None:
        """Close the files."""
        self.metrics.close()
        if self.trackers is not None:
            self.trackers.close()
        self.logger.removeHandler(self.log)
        self.logger.setLevel(self.former_level)
        self.log.close()


class _LogFile(logging.FileHandler):
    """A log file that ends with one warning where it cannot be written, as on a full disk."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, ARG002 - as in `logging`
        """Stop writing."""
        logging.getLogger("globalvit").removeHandler(self)
        logger.warning("%s ends here: %s", self.baseFilename, sys.exc_info()[1])


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
    """Read the records of a run; a last line that was cut off by a crash is left out.

    Raises:
        ValueError: a line is not a record; the text names file and line.
    """
    path = folder / METRICS_FILE
    if not path.exists():
        return []
    records = []
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith("\n"):
                records.append(_record(line, f"{path}, line {number}"))
    return records


def cut_metrics(records: Iterable[Record], step: int, evaluated: int) -> list[Record]:
    """Leave out the records after `step`, and evaluations after the step `evaluated`."""
    limits = {"train": step, "evaluate": evaluated}
    return [record for record in records if record["step"] <= limits[record["kind"]]]


def write_metrics(folder: Path, records: Iterable[Record]) -> None:
    """Replace the records of a run."""
    atomic.write_text(folder / METRICS_FILE, "".join(json.dumps(record) + "\n" for record in records))


def _record(line: str, where: str) -> Record:
    try:
        record = json.loads(line)
        numbers = [value for key, value in record.items() if key != "kind"]
        if record["kind"] in KINDS and type(record["step"]) is int and all(map(_is_number, numbers)):
            return record
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise ValueError(
        f"{where} is damaged: expected a JSON record with kind, step and numbers, got {line.strip()!r:.60}; repair or "
        f"remove the file, which only the curves are drawn from"
    )


def _is_number(value: Any) -> bool:
    is_huge = isinstance(value, int) and abs(value) > LARGEST
    return isinstance(value, int | float) and not isinstance(value, bool) and not is_huge


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        saved = any(folder.glob("checkpoints/step-*"))
        remedy = f"or --resume {folder}" if saved else "or remove the folder, which has no checkpoint to resume from"
        raise FileExistsError(f"run folder {folder} exists; choose another --tag, {remedy}") from error
    return folder

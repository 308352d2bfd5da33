"""Checkpoint folders of a run: written whole or not at all, the newest and the best kept.

`checkpoints/step-N/` holds the state after a step; the files `last` and `best` name such folders.
"""

import errno
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from globalvit.atomic import sync, temporary_folder
from globalvit.train.memory import is_out_of_memory
from globalvit.weights.pointers import follow, point

logger = logging.getLogger(__name__)

STATE_FILE = "state.json"
# What the name of a checkpoint begins with while another takes its place.
FORMER = ".former-"
# The system's numbers for a full disk, a full quota and a file that may not grow.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# The system's own words for it are shorter.
MOST_WORDS = 40
# What a full disk raises, depending on who was writing.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)


class Checkpoints:
    """The folder `checkpoints` of a run.

    Args:
        folder: made when the first checkpoint is saved.
        keep: newest checkpoints to keep; the best is kept beside them.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    @property
    def last(self) -> Path | None:
        """The newest complete checkpoint."""
        return _target(self.folder / "last") or _newest(self.folder)

    @property
    def best(self) -> Path | None:
        """The checkpoint with the best score so far."""
        return _target(self.folder / "best")

    def at(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.folder / f"step-{step}"

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Let `write` fill a folder, then make it `step-N` and `last`, and remove what is no longer kept.

        Raises:
            OSError: it could not be written, for example because the disk is full; earlier checkpoints are intact.
        """
        target = self.at(step)
        try:
            self._write(target, write)
            point(self.folder / "last", target)
        except WRITE_ERRORS as error:
            if is_out_of_memory(error):
                raise
            raise OSError(f"cannot save checkpoint {target}: {_cause(error)}; {self._remedy(error)}") from error
        self._rotate()
        return target

    def mark_best(self, checkpoint: Path) -> None:
        """Make `best` point to a saved checkpoint, and remove what is no longer kept."""
        point(self.folder / "best", checkpoint)
        self._rotate()

    def recover(self) -> None:
        """Put back a checkpoint that a killed process was replacing; only for the owner of the run folder."""
        for former in self.folder.glob(f"{FORMER}step-*"):
            target = self.folder / former.name.removeprefix(FORMER)
            if target.exists():
                shutil.rmtree(former)
            else:
                former.rename(target)

    def rewind(self, step: int, best_step: int) -> bool:
        """Forget what lies beyond `step`, which a run that goes on from there writes again.

        Returns:
            Whether the best checkpoint of that time is still there.
        """
        for path in _steps(self.folder):
            if _step_of(path) > step:
                logger.info("resuming at step %d: %s is removed", step, path)
                shutil.rmtree(path)
        for name, kept in (("last", step), ("best", best_step)):
            target = self.at(kept)
            if target.is_dir():
                point(self.folder / name, target)
            else:
                (self.folder / name).unlink(missing_ok=True)
        return self.best is not None

    def _write(self, target: Path, write: Callable[[Path], None]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        fresh = temporary_folder(self.folder)
        try:
            write(fresh)
            for file in fresh.iterdir():
                sync(file)
            sync(fresh)
            _replace_folder(fresh, target)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        sync(self.folder)

    def _rotate(self) -> None:
        kept = {path.resolve() for path in (self.last, self.best) if path}
        for old in _steps(self.folder)[: -self.keep]:
            if old.resolve() not in kept:
                shutil.rmtree(old)

    def _remedy(self, error: BaseException) -> str:
        if self.last is None:
            return "there is no earlier one; free some space or choose another --output"
        # PyTorch and safetensors hide the system's number behind errors of their own.
        is_known = isinstance(error, OSError) and error.errno not in FULL
        first = "remove the cause" if is_known else "free some space"
        return f"{self.last} is intact; {first}, then --resume {self.folder.parent}"


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """The checkpoint folder to resume from: the last of a run folder, or the folder given.

    Raises:
        FileNotFoundError: nothing is there, or the run has saved nothing yet.
        ValueError: it is a weight file without the state of a run.
    """
    given = follow(path)
    if not given.exists():
        raise FileNotFoundError(f"--resume {path} does not exist; give a run folder or one of its checkpoints")
    folder = given.parent if given.is_file() else given
    for candidate in (folder, follow(folder / "last"), follow(folder / "checkpoints" / "last")):
        if (candidate / STATE_FILE).is_file():
            return candidate.resolve()
    newest = _newest(folder / "checkpoints")
    if newest is not None:
        return newest
    if given.is_file():
        raise ValueError(f"{given} holds weights but not the state of a run; start a new one with --weights {given}")
    raise FileNotFoundError(f"{given} holds no checkpoint to resume from; expected {given / 'checkpoints' / 'last'}")


def _steps(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=_step_of)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _newest(folder: Path) -> Path | None:
    steps = _steps(folder)
    return steps[-1] if steps else None


def _target(pointer: Path) -> Path | None:
    found = follow(pointer)
    return found.resolve() if found.is_dir() else None


def _replace_folder(fresh: Path, target: Path) -> None:
    """Move `fresh` to `target`; a folder that is there from an earlier attempt at the same step goes."""
    former = fresh.with_name(FORMER + target.name)
    if target.exists():
        target.rename(former)
    fresh.rename(target)
    shutil.rmtree(former, ignore_errors=True)


def _cause(error: BaseException) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
    # PyTorch and safetensors say in words of their own that a write was cut short.
    is_full = any(words in text for words in ("No space left", "unexpected pos", "file write failed", "File too large"))
    return "the disk is full, or a quota or limit is reached" if is_full and len(text) > MOST_WORDS else text

"""Whether a resumed run continues on the data and classes that it began with, and all processes train on the same."""

import json
import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path

from globalvit import atomic
from globalvit.data.classification.imagenet import readable
from globalvit.data.storage.fingerprint import Fingerprint, difference, fingerprint
from globalvit.train.inputs import Splits
from globalvit.train.integrity import read_json

logger = logging.getLogger(__name__)

DATA_FILE = "data.json"
MOST_NAMED = 5
# The fingerprint of each split.
Data = dict[str, Fingerprint]


class Fingerprinting:
    """Takes the fingerprints of both splits in a thread while entered, while the model is being built."""

    def __init__(self, splits: Splits) -> None:
        self._splits = splits

    def __enter__(self) -> "Fingerprinting":
        self._pool = ThreadPoolExecutor(1)
        self._data: Future[Data] = self._pool.submit(
            lambda: {"train": fingerprint(self._splits.train), "val": fingerprint(self._splits.val)}
        )
        return self

    def __exit__(self, *reason: object) -> None:
        self._pool.shutdown()

    def result(self) -> Data:
        """Wait for the fingerprints.

        Raises:
            OSError: the file of annotations cannot be read.
        """
        return self._data.result()


def require_classes(before: Sequence[str], now: Sequence[str], checkpoint: Path) -> None:
    """Check that the labels of the data mean what they meant to the checkpoint.

    Raises:
        ValueError: they do not; the text names the classes.
    """
    if before == now or readable(before) == readable(now):
        return
    pairs = enumerate(zip_longest(before, now))
    changes = [_change(label, was, is_now) for label, (was, is_now) in pairs if was != is_now]
    more = f"; and {len(changes) - MOST_NAMED} more" if len(changes) > MOST_NAMED else ""
    raise ValueError(
        f"cannot resume {checkpoint} with other classes than the run began with ({len(now)}, expected {len(before)}): "
        f"{'; '.join(changes[:MOST_NAMED])}{more}; restore their names and order, or start a new run with --weights "
        f"{checkpoint}"
    )


def require_equal_data(shares: Sequence[Data]) -> None:
    """Check that all processes, in rank order, have the data of rank 0.

    Raises:
        ValueError: they do not; the text names ranks and differences. It is the same on every process.
    """
    differing = [f"rank {rank}: {text}" for rank, own in enumerate(shares) if (text := _changes(shares[0], own))]
    if differing:
        more = f"; and {len(differing) - MOST_NAMED} more ranks" if len(differing) > MOST_NAMED else ""
        raise ValueError(
            f"the data of the processes differ from those of rank 0: {'; '.join(differing[:MOST_NAMED])}{more}; give "
            f"every machine the same files"
        )


def compare_data(folder: Path, now: Data, *, accept: bool) -> None:
    """Compare the data with those that the run in `folder` began with.

    Raises:
        ValueError: they changed and that is not accepted, or the run's record of its data is damaged.
    """
    path = folder / DATA_FILE
    if not path.exists():
        logger.info("%s has no data.json: whether the data changed since the run began is not known", folder)
        return
    try:
        content = read_json(path)
        before = {split: Fingerprint.from_dict(content[split]) for split in now}
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(
            f"{path} is damaged: {str(error)[:200]}; restore it, or remove it to resume without comparing the data"
        ) from error
    changes = _changes(before, now)
    if changes and not accept:
        raise ValueError(
            f"the data changed since the run in {folder} began: {changes}; restore the data, or resume with "
            f"--accept-changed-data, after which the result is that of neither data set alone"
        )
    if changes:
        logger.warning("resuming although the data changed (--accept-changed-data): %s", changes)


def write_data(folder: Path, data: Data) -> None:
    """Record the data that a run is trained on in its folder."""
    content = {split: found.to_dict() for split, found in data.items()}
    atomic.write_text(folder / DATA_FILE, json.dumps(content, ensure_ascii=False) + "\n")


def _changes(before: Data, now: Data) -> str:
    texts = {split: difference(before[split], now[split]) for split in now}
    return "; ".join(f"{split}: {text}" for split, text in texts.items() if text)


def _change(label: int, was: str | None, is_now: str | None) -> str:
    if was is None:
        return f"{is_now!r} is new"
    if is_now is None:
        return f"{was!r} is missing"
    return f"class {label} was {was!r} and is now {is_now!r}"

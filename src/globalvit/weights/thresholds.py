"""Score thresholds of the classes of a detector or multi-label classifier, as the evaluation of a run chose them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from globalvit import atomic
from globalvit.weights.read import read_metadata

# Beside the weights of a checkpoint, which are saved before they are evaluated.
THRESHOLDS_FILE = "thresholds.json"
KEY = "score_thresholds"


def write_thresholds(file: Path, thresholds: Sequence[float | None]) -> None:
    """Write the thresholds of a weight file beside it."""
    content = {"weights": file.name, KEY: list(thresholds)}
    atomic.write_text(file.parent / THRESHOLDS_FILE, json.dumps(content, indent=2) + "\n")


def read_thresholds(file: Path, classes: int) -> tuple[float | None, ...] | None:
    """Return the thresholds of a weight file, one per class, from the file itself or beside it; None without any.

    Raises:
        ValueError: they are damaged.
    """
    beside = file.parent / THRESHOLDS_FILE
    found = read_metadata(file).get(KEY) if file.suffix == ".safetensors" else None
    if found is None and beside.is_file():
        content = _read(beside)
        found = content.get(KEY) if isinstance(content, dict) and content.get("weights") == file.name else None
        found = [] if not isinstance(content, dict) else found
    if found is None:
        return None
    if not (isinstance(found, list) and len(found) == classes and all(map(_is_threshold, found))):
        raise ValueError(
            f"{beside if beside.is_file() else file}: expected {classes} score thresholds from 0 to 1 or null, one per "
            f"class, got {str(found)[:60]}; remove {THRESHOLDS_FILE} or evaluate again"
        )
    return tuple(found)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return []


def _is_threshold(value: Any) -> bool:
    return value is None or (isinstance(value, float | int) and not isinstance(value, bool) and 0 <= value <= 1)

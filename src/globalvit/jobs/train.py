"""Settings of a training run, from the command line or from Python."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from globalvit.models.variants import ModelSpec
from globalvit.train.config import AUTO, COMMAND_LINE, load_config
from globalvit.train.fields import LAYOUTS, TrainConfig
from globalvit.weights.pointers import follow

logger = logging.getLogger(__name__)


def configure(
    source: str | Path | None, given: Mapping[str, Any], origin: str = COMMAND_LINE
) -> tuple[str | Path | None, TrainConfig]:
    """Return the source of a run's settings, and the settings; a resumed run uses those in its folder.

    With `resume="auto"` too, so that a run goes on after its default recipe has changed.

    Args:
        source: recipe name, or path of a YAML file.
        given: given settings by name.
        origin: where the settings were given, for error messages.

    Raises:
        FileNotFoundError: the file or run does not exist.
        ValueError: a setting is unknown or invalid, or the run to resume does not name its data.
    """
    resume = given.get("resume")
    if source is None and resume is not None:
        source = _begun(given) if resume == AUTO else run_config(resume)
    config = load_config(source, given, origin)
    if config.data_dir is None and resume not in (None, AUTO):
        raise ValueError(f"expected data_dir in {source}, got none; restore the file, or give --data-dir")
    return source, config


def _begun(given: Mapping[str, Any]) -> Path | None:
    """Return the config.yaml of the run that `resume="auto"` resumes; None if it has no checkpoint yet."""
    folder = Path(given.get("output") or TrainConfig.output) / str(given.get("tag"))
    if not ((folder / "config.yaml").is_file() and any(folder.glob("checkpoints/step-*"))):
        return None
    logger.info("%s resumes with its own settings; flags override them", folder)
    return folder / "config.yaml"


def needed_data(config: TrainConfig) -> str:
    """Return the message for settings without `data_dir`."""
    return f"requires --data-dir FOLDER with {LAYOUTS[ModelSpec(model=config.model).kind]}"


def run_config(resume: str | Path) -> Path:
    """Return the config.yaml of the run that a checkpoint, or a file in it, belongs to.

    Raises:
        FileNotFoundError: no config.yaml was found.
    """
    given = follow(resume)
    if not given.exists():
        raise FileNotFoundError(f"--resume {resume} does not exist; give a run folder or one of its checkpoints")
    for folder in (given, *given.resolve().parents[:3]):
        if (folder / "config.yaml").is_file():
            return folder / "config.yaml"
    raise FileNotFoundError(f"no config.yaml in or above --resume {resume}; give the run's --config as well")

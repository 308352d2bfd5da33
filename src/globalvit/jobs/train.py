"""A training as it is asked for, by a command or from Python."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from globalvit.models.variants import ModelSpec
from globalvit.train.config import AUTO, COMMAND_LINE, load_config
from globalvit.train.fields import LAYOUTS, TrainConfig
from globalvit.weights.pointers import follow


def configure(
    source: str | Path | None, given: Mapping[str, Any], origin: str = COMMAND_LINE
) -> tuple[str | Path | None, TrainConfig]:
    """Return where the settings of a training are from, and the settings; a resumed run has those of its folder.

    Args:
        source: name of a recipe, or path of a YAML file.
        given: settings that were given, by name.
        origin: where they were given, for error messages.

    Raises:
        FileNotFoundError: no such file or run.
        ValueError: a setting is unknown or cannot be used, or the run to resume does not say what it was trained on.
    """
    resume = given.get("resume")
    if source is None and resume not in (None, AUTO):
        source = run_config(resume)
    config = load_config(source, given, origin)
    if config.data_dir is None and resume not in (None, AUTO):
        raise ValueError(f"{source} names no data_dir, as a run's own always does; restore it, or give --data-dir")
    return source, config


def needed_data(config: TrainConfig) -> str:
    """Return what settings without `data_dir` need, in words."""
    return f"needs --data-dir FOLDER with {LAYOUTS[ModelSpec(model=config.model).kind]}"


def run_config(resume: str | Path) -> Path:
    """The config.yaml of the run that a checkpoint, or a file in it, belongs to.

    Raises:
        FileNotFoundError: none is there.
    """
    given = follow(resume)
    if not given.exists():
        raise FileNotFoundError(f"--resume {resume} does not exist; give a run folder or one of its checkpoints")
    for folder in (given, *given.resolve().parents[:3]):
        if (folder / "config.yaml").is_file():
            return folder / "config.yaml"
    raise FileNotFoundError(f"no config.yaml in or above --resume {resume}; give the run's --config as well")

"""Find the weight file of a path, and the settings of its run."""

import logging
from os import PathLike
from pathlib import Path
from typing import Any

from globalvit.weights.pointers import follow

logger = logging.getLogger(__name__)

MODEL_FILE, EMA_FILE = "model.safetensors", "ema.safetensors"
CHECKPOINTS, CONFIG = "checkpoints", "config.yaml"
# What Accelerate, Transformers and Diffusers call a model's weights, whole or in several parts.
FILES = (
    *(MODEL_FILE, f"{MODEL_FILE}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    *("pytorch_model.safetensors", "diffusion_pytorch_model.safetensors"),
)
REMEDY = "give a weight file, a checkpoint folder or a run folder"


def find_file(path: str | PathLike[str], *, which: str = "best", use_ema: bool = True) -> Path:
    """Return the weight file of a path: the file itself, or that of a checkpoint folder or run folder.

    Raises:
        FileNotFoundError: nothing is there, or the run has no such checkpoint; the text says what it has.
        ValueError: it is not a path, or an address on the network.
    """
    file = follow(path)
    if not file.exists():
        raise FileNotFoundError(f"{path} does not exist; {REMEDY}")
    if (file / CHECKPOINTS).is_dir():
        file = _checkpoint_of_run(file, which)
    return _file_of_checkpoint(file, use_ema) if file.is_dir() else file


def config_beside(file: Path) -> dict[str, Any] | None:
    """Return the config of the run that the checkpoint `file` belongs to.

    Raises:
        ValueError: it is not a YAML file of settings by name.
    """
    config = file.parents[2] / CONFIG if len(file.parents) > 2 and file.parents[1].name == CHECKPOINTS else None
    if config is None or not config.is_file():
        return None
    import yaml

    try:
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{config} is not a YAML file ({reason}); restore it from a copy of the run") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{config} holds a {type(settings).__name__}; expected settings by name")
    return settings


def _checkpoint_of_run(run: Path, which: str) -> Path:
    folder = follow(run / CHECKPOINTS / which)
    if not folder.is_dir() and which == "best" and (last := follow(run / CHECKPOINTS / "last")).is_dir():
        logger.warning("run %s has no evaluation yet, so its last checkpoint, %s, is used", run, last.name)
        return last
    if not folder.is_dir():
        has = ", ".join(sorted(path.name for path in folder.parent.iterdir())) or "none"
        raise FileNotFoundError(f"run {run} has no checkpoint {which!r}; it has {has}: give one's folder")
    return folder


def _file_of_checkpoint(folder: Path, use_ema: bool) -> Path:
    for name in (EMA_FILE, *FILES) if use_ema else FILES:
        if (folder / name).is_file():
            return folder / name
    if (folder / ".metadata").is_file():
        raise ValueError(
            f"{folder} is a distributed checkpoint; write it as one file with python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} model.pth"
        )
    if (folder / EMA_FILE).is_file():
        raise FileNotFoundError(f"{folder} has averaged (EMA) weights only; leave out use_ema=False (--no-ema)")
    raise FileNotFoundError(f"{folder} has no {MODEL_FILE}; {REMEDY}")

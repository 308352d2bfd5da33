"""`globalvit train`: train or fine-tune a model, on one process or under torchrun."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from globalvit.cli.options import UsageError, parse_flags
from globalvit.models.variants import ModelSpec
from globalvit.train.config import (
    AUTO,
    TrainConfig,
    available_recipes,
    load_config,
    recipe_name,
    to_yaml,
)
from globalvit.train.fields import LAYOUTS
from globalvit.weights.pointers import follow

SUMMARY = "Train or fine-tune a model on labeled images"
DESCRIPTION = (
    "Train a model as a recipe says; every other flag changes one setting of it. "
    "The same command runs under torchrun. Recipes: " + ", ".join(available_recipes())
)


CONFIG_HELP = "a shipped recipe or a YAML file (default: fine-tuning for the model's kind of task)"


@dataclass(frozen=True, kw_only=True)
class TrainOptions(TrainConfig):
    """The flags of `globalvit train`: every setting of a run, and where they come from."""

    config: str | None = field(default=None, metadata={"help": CONFIG_HELP, "group": "recipe"})
    print_config: bool = field(
        default=False, metadata={"help": "print the settings as YAML and do nothing else", "group": "recipe"}
    )


def run(argv: list[str], prog: str) -> int:
    """Train, or print the settings; return 0, or 128 plus the number of the signal that ended the run early."""
    given = parse_flags(TrainOptions, argv, prog, DESCRIPTION)
    source, is_print = given.pop("config", None), given.pop("print_config", False)
    resume = given.get("resume")
    if source is None and resume not in (None, AUTO):
        source = run_config(resume)
    config = load_config(source, given)
    if is_print:
        sys.stdout.write(to_yaml(config))
        return 0
    if config.data_dir is None and resume not in (None, AUTO):
        raise ValueError(f"{source} names no data_dir, as a run's own always does; restore it, or give --data-dir")
    if config.data_dir is None:
        layout = LAYOUTS[ModelSpec(model=config.model).kind]
        raise UsageError(f"{prog} needs --data-dir FOLDER with {layout}; see {prog} --help")
    # Not at the top: PyTorch takes seconds, and --help needs none of it.
    from globalvit.train.loop import train
    from globalvit.train.signals import StopSignal

    stop = StopSignal()
    train(config, recipe_name(source, config.model), stop)
    return 0 if config.exit_0_on_signal else stop.exit_status


def run_config(resume: str) -> Path:
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

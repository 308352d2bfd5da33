"""`globalvit train`: train or fine-tune a model, in one process or under torchrun."""

import os
import sys
from dataclasses import dataclass, field
from typing import NoReturn

from globalvit.cli.options import UsageError, parse_flags, show_help, wants_help
from globalvit.jobs.train import configure, needed_data
from globalvit.train.config import TrainConfig, available_recipes, recipe_name, to_yaml

SUMMARY = "Train or fine-tune a model on labeled images"
DESCRIPTION = "Train a model with a recipe; every other flag overrides one of its settings. Also runs under torchrun."
RECIPES_LIST = "Recipes: " + ", ".join(available_recipes())


CONFIG_HELP = (
    "a shipped recipe or a YAML file (default: fine-tuning for the model's task, or training from scratch with "
    "`--weights none`)"
)


@dataclass(frozen=True, kw_only=True)
class TrainOptions(TrainConfig):
    """Options of `globalvit train`: every setting of a run, and the recipe they start from."""

    config: str | None = field(default=None, metadata={"help": CONFIG_HELP, "group": "recipe"})
    print_config: bool = field(
        default=False, metadata={"help": "print the settings as YAML and exit", "group": "recipe"}
    )
    dry_run: bool = field(
        default=False,
        metadata={
            "help": "train a step, evaluate a batch, print speed, memory and an estimate of the run's time, and exit",
            "group": "recipe",
        },
    )


def run(argv: list[str], prog: str) -> int:
    """Train, or print the settings; return 0, or 128 plus the number of the signal that ended the run early."""
    if wants_help(argv):
        _show_help(argv, prog)
    given = parse_flags(TrainOptions, argv, prog, DESCRIPTION)
    source, is_print = given.pop("config", None), given.pop("print_config", False)
    is_dry = given.pop("dry_run", False)
    source, config = configure(source, given)
    if is_print:
        sys.stdout.write(to_yaml(config))
        return 0
    if config.data_dir is None:
        raise UsageError(f"{prog} {needed_data(config)}; see {prog} --help")
    # Imported here: PyTorch takes seconds to import, and --help does not need it.
    if is_dry:
        from globalvit.train.rehearsal import rehearse

        rehearsal = rehearse(config, recipe_name(source, config))
        if os.environ.get("RANK", "0") == "0":
            sys.stdout.write(f"{rehearsal}\n")
        return 0
    from globalvit.train.loop import train
    from globalvit.train.signals import StopSignal

    stop = StopSignal()
    train(config, recipe_name(source, config), stop)
    return 0 if config.exit_0_on_signal else stop.exit_status


def _show_help(argv: list[str], prog: str) -> NoReturn:
    """Print the help page with the defaults of the recipe and model in the command, and exit."""
    try:
        given = parse_flags(TrainOptions, [word for word in argv if word not in ("-h", "--help")], prog, DESCRIPTION)
    except UsageError:
        given = {}
    for name in ("print_config", "resume"):
        given.pop(name, None)
    source, config = configure(given.pop("config", None), given)
    name = recipe_name(source, config)
    note = f"Defaults below are those of {name}; --config NAME --help shows those of another recipe."
    show_help(TrainOptions, prog, f"{DESCRIPTION}\n{note}\n\n{RECIPES_LIST}", defaults=vars(config))

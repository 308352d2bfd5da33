"""Names a user may have meant, for error messages."""

from collections.abc import Callable, Collection, Iterable
from difflib import get_close_matches
from functools import wraps
from inspect import signature
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
Result = TypeVar("Result")

# The message for requests for sharded training (FSDP).
USE_DDP = "use torchrun (DDP), which is enough up to 204 M parameters"

# What other tools of this field, and other parts of this one, call a setting → its name here.
OTHER_NAMES = {
    "learning_rate": "lr",
    "lr0": "lr",
    "imgsz": "img_size",
    "img_size": "image_size",
    "input_size": "image_size",
    "resolution": "image_size",
    "in_chans": "in_channels",
    "in_channels": "in_chans",
    "drop_path_rate": "drop_path",
    "nb_classes": "num_classes",
    "epoch": "epochs",
    "batch": "batch_size",
    "batchsize": "batch_size",
    "data": "data_dir",
    "data_path": "data_dir",
    "dataset": "data_dir",
    "dataset_dir": "data_dir",
    "work_dir": "output",
    "out": "output",
    "output_dir": "output",
    "project": "output",
    "name": "tag",
    "run_name": "tag",
    "topk": "top_k",
    "conf": "score_threshold",
    "threshold": "score_threshold",
    "weight": "weights",
    "pretrained": "weights",
    "amp": "precision",
    "half": "precision",
    "dtype": "precision",
    "resume_from": "resume",
    "num_workers": "workers",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "optimizer": "opt",
    "scheduler": "sched",
    "recipe": "config",
    "cfg": "config",
    "ckpt": "checkpoint",
    "ckpt_path": "checkpoint",
    "run": "checkpoint",
    "source": "images",
    "inputs": "images",
    "val_split": "split",
    "callback": "callbacks",
}


# What timm calls the weights to start from.
PRETRAINED = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path")


def suggest(name: str, choices: Iterable[str]) -> str:
    """Return `" Did you mean 'a', 'b'?"` with at most three of `choices` that resemble `name`, or an empty text."""
    near = get_close_matches(name, list(choices), n=3, cutoff=0.6)
    return f" Did you mean {', '.join(map(repr, near))}?" if near else ""


def name_here(name: str, known: Collection[str]) -> str | None:
    """Return what another tool's setting is called here, where it is one of `known`; None if that is not known."""
    tried, meant = {name}, OTHER_NAMES.get(name)
    while meant is not None and meant not in known:
        tried.add(meant)
        meant = OTHER_NAMES.get(meant)
        if meant in tried:
            return None
    return meant


def names_arguments(function: Callable[P, Result]) -> Callable[P, Result]:
    """Make a function answer unknown keyword arguments with a TypeError that names the right ones."""
    known = list(signature(function).parameters)

    @wraps(function)
    def checked(*args: P.args, **given: P.kwargs) -> Result:
        for name in given:
            if name not in known:
                meant = name_here(name, known)
                near = f" Did you mean {meant!r}?" if meant else suggest(name, known)
                if name in PRETRAINED and "weights" in known:
                    near = " Use weights='published' for published weights, or weights= with a name or file."
                raise TypeError(f"unknown argument {name!r} of {function.__name__}().{near}")
        return function(*args, **given)

    return checked

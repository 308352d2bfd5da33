"""Names a user may have meant, for error messages."""

from collections.abc import Collection, Iterable
from difflib import get_close_matches

# What other tools of this field, and other parts of this one, call a setting → its name here.
OTHER_NAMES = {
    "learning_rate": "lr",
    "lr0": "lr",
    "imgsz": "img_size",
    "img_size": "image_size",
    "input_size": "image_size",
    "resolution": "image_size",
    "in_chans": "in_channels",
    "drop_path_rate": "drop_path",
    "nb_classes": "num_classes",
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


def suggest(name: str, choices: Iterable[str]) -> str:
    """Return `" Did you mean 'a', 'b'?"` with at most three of `choices` that resemble `name`, or an empty text."""
    near = get_close_matches(name, list(choices), n=3, cutoff=0.6)
    return f" Did you mean {', '.join(map(repr, near))}?" if near else ""


def name_here(name: str, known: Collection[str]) -> str | None:
    """Return what another tool's setting is called here, where it is one of `known`; None if that is not known."""
    meant = OTHER_NAMES.get(name)
    while meant is not None and meant not in known:
        meant = OTHER_NAMES.get(meant)
    return meant

"""Published state dicts and files of all kinds for the tests of weights."""

import argparse

import pytest
import torch

MODEL = "gcvit_xxtiny"


@pytest.fixture
def official(golden):
    """The official state dict of gcvit_xxtiny under deterministic values."""
    return golden("gcvit_cls_xxtiny").state_dict()


@pytest.fixture
def official_file(official, tmp_path):
    """A training checkpoint as the official code writes it, its EMA weights the deterministic ones."""
    path = tmp_path / "checkpoint.pth.tar"
    raw = {name: value if value.dtype == torch.int64 else value * 0 for name, value in official.items()}
    content = {"epoch": 310, "arch": "gc_vit_xxtiny", "state_dict": raw, "state_dict_ema": official, "metric": 79.9}
    torch.save(content | {"args": argparse.Namespace(model="gc_vit_xxtiny", lr=1e-3), "optimizer": {}}, path)
    return path


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """Hugging Face's folders in a fresh place and no network; returns the folder for copies made by hand."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hf" / "globalvit"


def equal(a, b):
    """Whether two state dicts have the same names and the same values, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def is_equal():
    """The function `equal`."""
    return equal

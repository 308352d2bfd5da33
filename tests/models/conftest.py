"""Checkpoints in the published form for the tests of networks."""

from argparse import Namespace

import pytest
import torch


@pytest.fixture
def official_file(tmp_path):
    """Write a checkpoint in the form of the official GC ViT release, an argparse.Namespace included."""

    def write(state_dict):
        path = tmp_path / "official.pth.tar"
        args = Namespace(model="gc_vit", lr=5e-3, opt_betas=None)
        torch.save({"state_dict": state_dict, "epoch": 300, "arch": "gc_vit", "args": args}, path)
        return path

    return write


@pytest.fixture
def mm_file(tmp_path):
    """Write a checkpoint in the form of the official GPViT release."""

    def write(state_dict):
        path = tmp_path / "epoch_300.pth"
        torch.save({"meta": {"epoch": 300, "mmcls_version": "0.20.1"}, "state_dict": state_dict, "optimizer": {}}, path)
        return path

    return write

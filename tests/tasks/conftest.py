"""Checkpoints in OpenMMLab's form for the tests of tasks."""

import pytest
import torch


@pytest.fixture
def mm_file(tmp_path):
    """Write a checkpoint as OpenMMLab's tools do."""

    def write(state_dict):
        path = tmp_path / "iter_160000.pth"
        torch.save({"meta": {"iter": 160_000, "mmseg_version": "0.20.2"}, "state_dict": state_dict}, path)
        return path

    return write

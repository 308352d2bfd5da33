"""Checkpoints in OpenMMLab's form for the tests of tasks."""

import pytest
import torch

from globalvit.tasks.reduce import counted, counting, exchange


@pytest.fixture
def mm_file(tmp_path):
    """Write a checkpoint as OpenMMLab's tools do."""

    def write(state_dict):
        path = tmp_path / "iter_160000.pth"
        torch.save({"meta": {"iter": 160_000, "mmseg_version": "0.20.2"}, "state_dict": state_dict}, path)
        return path

    return write


@pytest.fixture
def in_passes():
    """Add up losses and gradients of passes as training does: function of a batch, batches, parameters → both."""

    def add_up(losses_of, batches, parameters, count=None):
        notes = []
        for batch in batches:
            with counting() as noted, torch.no_grad():
                (count or losses_of)(batch)
            notes.append(noted)
        known = exchange(notes)
        passes = []
        for batch in batches:
            with counted(known):
                passes.append(losses_of(batch))
        grads = torch.autograd.grad(sum(passes), parameters, allow_unused=True)
        return sum(passes).detach(), grads

    return add_up


@pytest.fixture
def assert_same():
    """Compare losses and gradients, each to a millionth; single values of gradients differ by more in rounding."""

    def check(found, expected, bound=1e-6):
        assert found[0].item() == pytest.approx(expected[0].item(), rel=1e-6)
        assert [one is None for one in found[1]] == [one is None for one in expected[1]]
        ours, theirs = (
            torch.cat([one.flatten() for one in grads if one is not None]) for _, grads in (found, expected)
        )
        assert (ours - theirs).norm() <= bound * theirs.norm()

    return check

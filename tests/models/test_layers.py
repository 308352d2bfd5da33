"""What layers of both networks promise beyond the networks' own contract."""

import pytest
import torch
from torch import nn

from globalvit.models.layers import DropPath, add_branch, channel_means


def dropped(seed):
    """The mask that a drop path of 0.6 draws for three images."""
    torch.manual_seed(seed)
    return torch.empty(3, 1, 1).bernoulli_(0.4)


@pytest.mark.parametrize("seed", range(6))
def test_branches_that_are_dropped_are_not_computed(seed):
    owner, x, other = nn.Identity(), torch.randn(3, 2, 4, requires_grad=True), torch.randn(3, 4)
    computed = []

    def branch(x, other):
        computed.append(len(x))
        return x.square() * other[:, None]

    mask = dropped(seed)
    torch.manual_seed(seed)
    out = add_branch(x, owner, DropPath(0.6), branch, other)
    expected = x + mask / 0.4 * x.square() * other[:, None]
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), x), torch.autograd.grad(expected.sum(), x))
    # With none left everything is computed, so that every parameter gets its gradient.
    assert computed == [int(mask.sum()) or 3]


def test_hooks_see_all_images_and_the_result_is_the_same():
    owner, x, seen = nn.Sequential(nn.Linear(4, 4)), torch.randn(3, 2, 4), []
    torch.manual_seed(2)
    skipped = add_branch(x, owner, DropPath(0.6), owner)
    owner[0].register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    torch.manual_seed(2)
    torch.testing.assert_close(add_branch(x, owner, DropPath(0.6), owner), skipped)
    assert seen == [3]
    assert 0 < dropped(2).sum() < 3


@pytest.mark.parametrize(
    "drop_path", [DropPath(0.0), DropPath(0.9).eval(), nn.Identity()], ids=["no rate", "evaluation", "identity"]
)
def test_nothing_is_dropped_without_a_rate_or_in_evaluation(drop_path):
    x = torch.randn(4, 3)
    assert torch.equal(add_branch(x, nn.Identity(), drop_path, torch.square), x + x.square())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_means_of_channels(dtype):
    x = torch.randn(2, 5, 40, 30).to(dtype) + 3
    torch.testing.assert_close(channel_means(x), x.double().mean((2, 3)).to(dtype), rtol=1e-2, atol=1e-5)

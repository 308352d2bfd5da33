"""What layers of both networks promise beyond the networks' own contract."""

import pytest
import torch

from globalvit.models.layers import DropPath, channel_means


@pytest.mark.parametrize("seed", range(6))
def test_branches_that_are_left_out_are_not_computed(seed):
    torch.manual_seed(100)
    drop, x, other = DropPath(0.6), torch.randn(3, 2, 4, requires_grad=True), torch.randn(3, 4)
    computed = []

    def branch(x, other):
        computed.append(len(x))
        return x.square() * other[:, None]

    torch.manual_seed(seed)
    out = drop.residual(x, branch, other)
    torch.manual_seed(seed)
    mask = torch.empty(3, 1, 1).bernoulli_(0.4)
    expected = x + mask / 0.4 * x.square() * other[:, None]
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), x), torch.autograd.grad(expected.sum(), x))
    # With none left everything is computed, so that every parameter gets its gradient.
    assert computed == [int(mask.sum()) or 3]


@pytest.mark.parametrize(("rate", "is_trained"), [(0.0, True), (0.9, False)])
def test_nothing_is_left_out_without_a_rate_or_in_evaluation(rate, is_trained):
    x = torch.randn(4, 3)
    assert torch.equal(DropPath(rate).train(is_trained).residual(x, torch.square), x + x.square())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_means_of_channels(dtype):
    x = torch.randn(2, 5, 40, 30).to(dtype) + 3
    torch.testing.assert_close(channel_means(x), x.double().mean((2, 3)).to(dtype), rtol=1e-2, atol=1e-5)

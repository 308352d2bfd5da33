"""Every implementation of windowed attention computes the same formula, forward and backward."""

import fill
import pytest
import torch

from globalvit.models.attention import position_bias, window_attention

HEADS, DIM, WINDOW = 2, 8, 3
# Those that compute float64; the others have tests of their own.
EXACT = ["plain", "fused"]


def formula(projected, bias, window, query=None):
    """The definition, window by window and head by head, in float64."""
    B, H, W, width = projected.shape
    C = width // (3 if query is None else 2)
    d = C // bias.shape[0]
    out = projected.new_zeros(B, H, W, C)
    for b in range(B):
        for top in range(0, H, window):
            for left in range(0, W, window):
                here = slice(top, top + window), slice(left, left + window)
                tokens = projected[b][here].reshape(window * window, width)
                k, v = tokens[:, -2 * C : -C], tokens[:, -C:]
                for head in range(bias.shape[0]):
                    part = slice(head * d, (head + 1) * d)
                    q = tokens[:, part] if query is None else query[b, head]
                    weights = (q @ k[:, part].T * d**-0.5 + bias[head]).softmax(-1)
                    out[b][here][..., part] = (weights @ v[:, part]).view(window, window, d)
    return out


def inputs(dtype, *, is_global, batch=2, grid=(6, 9)):
    projected = torch.randn(batch, *grid, DIM * (2 if is_global else 3), dtype=dtype, requires_grad=True)
    table = torch.randn((2 * WINDOW - 1) ** 2, HEADS, dtype=dtype, requires_grad=True)
    query = torch.randn(batch, HEADS, WINDOW**2, DIM // HEADS, dtype=dtype, requires_grad=True) if is_global else None
    return projected, table, query


@pytest.mark.parametrize("is_global", [False, True])
@pytest.mark.parametrize("name", EXACT)
def test_implementations_follow_the_formula_forward_and_backward(name, is_global):
    leaves = inputs(torch.float64, is_global=is_global)
    projected, table, query = leaves
    bias = position_bias(table, WINDOW)
    ours = window_attention(projected, table, window=WINDOW, query_BhNd=query, implementation=name)
    expected = formula(projected, bias, WINDOW, query)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    cotangent = torch.randn_like(ours)
    given = [leaf for leaf in leaves if leaf is not None]
    got = torch.autograd.grad(ours, given, cotangent, retain_graph=True)
    wanted = torch.autograd.grad(expected, given, cotangent)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["auto", *EXACT, "native"])
def test_an_image_never_attends_with_another_ones_query(name):
    projected, table, query = (leaf.detach() for leaf in inputs(torch.float32, is_global=True, batch=3))
    together = window_attention(projected, table, window=WINDOW, query_BhNd=query, implementation=name)
    for i in range(3):
        one = slice(i, i + 1)
        alone = window_attention(projected[one], table, window=WINDOW, query_BhNd=query[one], implementation=name)
        torch.testing.assert_close(together[one], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [1, 2, 3, 7, 14])
def test_position_bias_reads_the_entry_of_query_minus_key(window):
    table = torch.randn((2 * window - 1) ** 2, HEADS)
    index = torch.from_numpy(fill.position_index(window))
    assert torch.equal(position_bias(table, window), table[index].permute(2, 0, 1))


def test_unknown_implementation_names_the_known_ones():
    with pytest.raises(
        ValueError, match=r"implementation='flash' is not one of 'auto', 'plain', 'fused', 'native', 'triton'"
    ):
        window_attention(torch.zeros(1, 2, 2, 6), torch.zeros(9, 1), window=2, implementation="flash")

"""Deformable attention against the formula written as loops."""

from itertools import product
from math import floor

import pytest
import torch

from globalvit.necks.deformable import DeformableAttention, places, sample

GRIDS = [(4, 6), (2, 3)]
HEADS, POINTS, DIM = 2, 3, 8


def pixel(value_HWd, row, column):
    """The value of a map at a whole place, zero outside."""
    rows, columns, _ = value_HWd.shape
    inside = 0 <= row < rows and 0 <= column < columns
    return value_HWd[row, column] if inside else torch.zeros_like(value_HWd[0, 0])


def bilinear(value_HWd, x, y):
    """The value of a map between its pixels, whose centers are at +0.5."""
    column, row = x - 0.5, y - 0.5
    left, top = floor(column), floor(row)
    weights = {(0, 0): 1, (0, 1): 1, (1, 0): 1, (1, 1): 1}
    for down, right in weights:
        along_y, along_x = row - top, column - left
        weights[down, right] = (along_y if down else 1 - along_y) * (along_x if right else 1 - along_x)
    return sum(w * pixel(value_HWd, top + down, left + right) for (down, right), w in weights.items())


def by_loops(values_BSC, places_Q2, offsets, weights):
    B, Q, heads, levels, points, _ = offsets.shape
    parts = [part.unflatten(1, grid) for part, grid in zip(values_BSC.split([24, 6], 1), GRIDS, strict=True)]
    out = torch.zeros(B, Q, heads, DIM // heads)
    for image, query, head, level, point in product(*map(range, (B, Q, heads, levels, points))):
        rows, columns = GRIDS[level]
        value_HWd = parts[level][image].unflatten(-1, (heads, -1))[:, :, head]
        dx, dy = offsets[image, query, head, level, point].tolist()
        x, y = places_Q2[query].tolist()
        read = bilinear(value_HWd, x * columns + dx, y * rows + dy)
        out[image, query, head] += weights[image, query, head, level, point] * read
    return out.flatten(2)


def test_samples_follow_the_formula_inside_and_outside_of_the_maps():
    at = places(GRIDS[:1], torch.device("cpu"))
    values, offsets = torch.randn(2, 30, DIM), 2 * torch.randn(2, len(at), HEADS, 2, POINTS, 2)
    weights = torch.randn(offsets.shape[:-1])
    ours = sample(values, at, offsets, weights, GRIDS)
    torch.testing.assert_close(ours, by_loops(values, at, offsets, weights), rtol=1e-5, atol=1e-5)


def test_places_are_centers_x_before_y_on_each_map_of_its_own():
    at = places([(1, 2), (2, 1)], torch.device("cpu"))
    assert at.tolist() == [[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]]


def test_outputs_of_the_layers_are_cut_as_published():
    attention = DeformableAttention(DIM, HEADS, 2, POINTS)
    query, source = torch.randn(1, 24, DIM), torch.randn(1, 30, DIM)
    at = places(GRIDS[:1], query.device)
    offsets = attention.offsets(query).view(1, 24, HEADS, 2, POINTS, 2)
    weights = attention.weights(query).view(1, 24, HEADS, 2 * POINTS).softmax(-1).view(1, 24, HEADS, 2, POINTS)
    expected = attention.output(sample(attention.value(source), at, offsets, weights, GRIDS))
    torch.testing.assert_close(attention(query, at, source, GRIDS), expected)


def test_starts_with_even_weights_and_a_direction_a_head():
    attention = DeformableAttention(12, 6, 2, 4)
    attention.init_weights()
    bias = attention.offsets.bias.view(6, 2, 4, 2)
    half = 3**-0.5
    directions = [(1, 0), (half, 1), (-half, 1), (-1, 0), (-half, -1), (half, -1)]
    torch.testing.assert_close(bias[:, 0, 0], torch.tensor(directions), atol=1e-6, rtol=0)
    torch.testing.assert_close(bias[:, 1, 3], 4 * torch.tensor(directions), atol=1e-6, rtol=0)
    assert not any(x.any() for x in (attention.offsets.weight, attention.weights.weight, attention.weights.bias))


def test_a_query_of_half_precision_reads_at_exact_places():
    attention = DeformableAttention(DIM, HEADS, 2, POINTS)
    query, source = torch.randn(1, 24, DIM), torch.randn(1, 30, DIM)
    at = places(GRIDS[:1], query.device)
    expected = attention(query, at, source, GRIDS)
    half = attention.bfloat16()(query.bfloat16(), at, source.bfloat16(), GRIDS)
    assert half.dtype == torch.bfloat16
    # The layers round to 8 bits, the places do not.
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.05)


def test_heads_must_divide_the_channels():
    with pytest.raises(ValueError, match="num_heads=6 must divide the 100 channels of deformable attention"):
        DeformableAttention(100, 6, 3, 4)

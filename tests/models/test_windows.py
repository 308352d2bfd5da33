"""Cutting a grid into windows loses nothing and mixes nothing."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from globalvit.models import windows

sides = st.integers(1, 20)


@given(height=sides, width=sides, window=st.integers(1, 8), stripes=st.booleans(), batch=st.integers(1, 3), parts=sides)
def test_merge_undoes_partition_on_any_padded_grid(height, width, window, stripes, batch, parts):
    x = torch.arange(batch * height * width * parts * 6, dtype=torch.float32).view(batch, height, width, -1)
    padded = windows.pad(x, window)
    rows, columns = window, padded.shape[2] if stripes else window
    cut = windows.partition(padded.unflatten(-1, (parts, 6)), rows, columns, heads=2)
    count = padded.shape[1] * padded.shape[2] // (rows * columns)
    assert cut.shape == (parts, batch, count, 2, rows * columns, 3)
    merged = torch.cat([windows.merge(part, rows, columns, *padded.shape[1:3]) for part in cut], dim=-1)
    assert torch.equal(windows.crop(merged, height, width), x)


def test_windows_and_their_tokens_are_row_major():
    x = torch.arange(16).view(1, 4, 4, 1, 1)
    squares = windows.partition(x, 2, 2, heads=1)[0, 0, :, 0, :, 0]
    assert squares.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    stripes = windows.partition(x, 4, 2, heads=1)[0, 0, :, 0, :, 0]
    assert stripes.tolist() == [[0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]]


def test_padding_is_zero_at_the_bottom_and_right():
    padded = windows.pad(torch.ones(1, 3, 5, 1), 4)
    assert padded.shape == (1, 4, 8, 1)
    assert padded.sum() == 15
    assert padded[0, :3, :5].all()

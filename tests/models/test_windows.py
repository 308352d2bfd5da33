"""Cutting a grid into windows loses nothing and mixes nothing."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from globalvit.models import windows

sides = st.integers(1, 20)


@given(height=sides, width=sides, window=st.integers(1, 8), batch=st.integers(1, 3), parts=st.integers(1, 3))
def test_merge_undoes_partition_on_any_padded_grid(height, width, window, batch, parts):
    heads, channels = 2, 6
    x = torch.arange(batch * height * width * parts * channels, dtype=torch.float32)
    padded = windows.pad(x.view(batch, height, width, parts * channels), window)
    cut = windows.partition(padded, window, parts, heads)
    count = padded.shape[1] * padded.shape[2] // window**2
    assert cut.shape == (parts, batch, count, heads, window**2, channels // heads)
    merged = torch.cat([windows.merge(part, window, *padded.shape[1:3]) for part in cut], dim=-1)
    assert torch.equal(windows.crop(merged, height, width).flatten(), x)


def test_windows_and_their_tokens_are_row_major():
    x = torch.arange(16).view(1, 4, 4, 1)
    cut = windows.partition(x, 2, parts=1, heads=1)[0, 0, :, 0, :, 0]
    assert cut.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_padding_is_zero_at_the_bottom_and_right():
    padded = windows.pad(torch.ones(1, 3, 5, 1), 4)
    assert padded.shape == (1, 4, 8, 1)
    assert padded.sum() == 15
    assert padded[0, :3, :5].all()

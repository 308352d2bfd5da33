"""Score thresholds beside the weights of a checkpoint."""

import pytest

from globalvit.weights.thresholds import THRESHOLDS_FILE, read_thresholds, write_thresholds


def test_thresholds_belong_to_the_weights_that_were_evaluated(tmp_path):
    write_thresholds(tmp_path / "ema.bin", [0.25, None])
    assert read_thresholds(tmp_path / "ema.bin", 2) == (0.25, None)
    assert read_thresholds(tmp_path / "model.bin", 2) is None


@pytest.mark.parametrize("content", ["[", "[]", '{"weights": "model.bin", "score_thresholds": [0.5, 2]}'])
def test_damaged_thresholds_are_refused(tmp_path, content):
    (tmp_path / THRESHOLDS_FILE).write_text(content)
    with pytest.raises(ValueError, match=r"expected 2 score thresholds from 0 to 1 or null, one per class, got .*; re"):
        read_thresholds(tmp_path / "model.bin", 2)

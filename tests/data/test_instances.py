"""Objects of an image, and masks as run lengths."""

import numpy as np
import pytest

from globalvit.data.detection.instances import Instances, RunLengths


def some_instances(total, **changed):
    """Instances of `total` objects without masks."""
    parts = {
        "boxes": np.zeros((total, 4), np.float32),
        "labels": np.zeros(total, np.int64),
        "masks": None,
        "is_crowd": np.zeros(total, bool),
        "areas": np.zeros(total, np.float32),
        "ids": np.arange(total),
    }
    return Instances(**parts | changed)


@pytest.mark.parametrize("fill", ["random", "zeros", "ones"])
def test_run_lengths_give_the_bitmap_back(fill):
    drawn = np.random.default_rng(0).integers(0, 2, (7, 5), dtype=np.uint8)
    bitmap = {"random": drawn, "zeros": drawn * 0, "ones": drawn * 0 + 1}[fill]
    runs = RunLengths.of(bitmap)
    assert runs.area == bitmap.sum()
    np.testing.assert_array_equal(runs.bitmap(), bitmap)


def test_runs_go_down_the_columns_and_begin_with_zeros():
    assert RunLengths.of(np.array([[0, 1], [1, 1]])).counts == (1, 3)
    assert RunLengths.of(np.array([[1, 0], [1, 0]])).counts == (0, 2, 2)


def test_run_lengths_are_those_of_the_coco_tools():
    from pycocotools import mask as tools

    bitmap = np.random.default_rng(1).integers(0, 2, (9, 6), dtype=np.uint8)
    runs = RunLengths.of(bitmap)
    packed = tools.frPyObjects({"size": list(runs.size), "counts": list(runs.counts)}, *runs.size)
    assert packed["counts"] == tools.encode(np.asfortranarray(bitmap))["counts"]


def test_runs_that_do_not_fill_the_image_are_refused():
    with pytest.raises(ValueError, match=r"run lengths of 5 pixels do not fill a mask of 3×2; expected 6"):
        RunLengths((2, 3), (2, 3))


@pytest.mark.parametrize("changed", [{"labels": np.zeros(3)}, {"masks": ()}, {"boxes": np.zeros((2, 5))}])
def test_parts_of_different_lengths_are_refused(changed):
    assert len(some_instances(2)) == 2
    with pytest.raises(ValueError, match=r"expected boxes \(N, 4\) and as many of everything else"):
        some_instances(2, **changed)

"""The input pipeline by itself."""

import pytest

from globalvit.benchmark import loader
from globalvit.benchmark.loader import measure_loader, to_plain


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setattr(loader, "IMAGES", 8)
    monkeypatch.setattr(loader, "DISTINCT", 2)


def test_generated_images_are_read_augmented_and_batched():
    counted = []
    (found,) = measure_loader(
        "generated",
        "gcvit_xxtiny",
        (64, 64),
        batch_size=4,
        workers=[0],
        seconds=0.01,
        advance=lambda: counted.append(1),
    )
    assert found.images % 4 == 0
    assert found.images_per_second > 0
    assert found.first_batch_s > 0
    assert counted == [1]
    assert to_plain([found])[0]["workers"] == 0


def test_the_built_in_sets_can_be_measured():
    (found,) = measure_loader("shapes", "gcvit_xxtiny_segformer", (64, 64), batch_size=2, workers=[0], seconds=0.01)
    assert found.images >= 2


def test_generated_images_are_for_classifiers():
    with pytest.raises(ValueError, match="generated images have one class each, which gpvit_l1_upernet cannot learn"):
        measure_loader("generated", "gpvit_l1_upernet", (64, 64), batch_size=4, workers=[0], seconds=0.01)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        measure_loader(str(tmp_path / "nowhere"), "gcvit_xxtiny", (64, 64), batch_size=4, workers=[0], seconds=0.01)

"""Our own files: what is written beside the weights, and what a path means."""

import json
from dataclasses import dataclass

import pytest
import safetensors
import torch
from safetensors import SafetensorError

from globalvit.build import create_model, open_checkpoint
from globalvit.models.variants import ModelSpec
from globalvit.weights import load
from globalvit.weights.catalog import Preprocessing
from globalvit.weights.load import resolve_checkpoint, save_weights

MODEL = "gcvit_xxtiny"
CLASSES = ("cat", "dog")
GIVEN = Preprocessing(image_size=(32, 48), crop_ratio=0.9, crop_mode="squash", mean=(0.5,), std=(0.25,))
SPEC = ModelSpec(model=MODEL, num_classes=2, in_channels=1, image_size=(32, 48), drop_path=0.1)


@pytest.fixture(scope="module")
def task():
    torch.manual_seed(1)
    return create_model(MODEL, num_classes=2, in_channels=1, image_size=(32, 48), drop_path=0.1, classes=CLASSES)


def write(path, task, **options):
    save_weights(path, task, task.spec, task.classes, GIVEN, **options)
    return path


@pytest.fixture
def run(tmp_path, task):
    """A run folder with two checkpoints, of which the best is the first."""
    folder = tmp_path / "run"
    for step in ("step-10", "step-20"):
        write(folder / "checkpoints" / step / "model.safetensors", task)
    write(folder / "checkpoints" / "step-10" / "ema.safetensors", task)
    (folder / "checkpoints" / "best").write_text("step-10\n")
    (folder / "checkpoints" / "last").write_text("step-20\n")
    (folder / "config.yaml").write_text("model: gcvit_xxtiny\nbatch_size: 8\n")
    return folder


def test_a_file_says_what_it_holds(tmp_path, task):
    found = resolve_checkpoint(write(tmp_path / "model.safetensors", task))
    assert (found.spec, found.classes, found.preprocessing, found.config) == (SPEC, CLASSES, GIVEN, None)


def test_license_and_origin_are_written(tmp_path, task):
    path = write(tmp_path / "model.safetensors", task, license="CC-BY-NC-SA-4.0", origin="somewhere")
    with safetensors.safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()["globalvit"])
    assert (metadata["license"], metadata["origin"]) == ("CC-BY-NC-SA-4.0", "somewhere")


def test_a_saved_model_opens_as_it_was(tmp_path, task):
    opened = open_checkpoint(write(tmp_path / "model.safetensors", task))
    assert (opened.spec, opened.classes, opened.training) == (SPEC, CLASSES, False)
    assert (opened.preprocessing.crop_mode, opened.preprocessing.image_size) == ("squash", (32, 48))
    assert all(torch.equal(a, b) for a, b in zip(opened.parameters(), task.parameters(), strict=True))


def test_a_state_dict_and_any_preprocessing_can_be_saved(tmp_path, task):
    @dataclass(frozen=True)
    class Other:
        image_size: tuple[int, int] = (32, 48)
        crop_ratio: float = 0.9
        crop_mode: str = "squash"
        interpolation: str = "bicubic"
        mean: tuple[float, ...] = (0.5,)
        std: tuple[float, ...] = (0.25,)
        more: str = "left out"

    save_weights(tmp_path / "a.safetensors", task.state_dict(), SPEC, None, Other())
    found = resolve_checkpoint(tmp_path / "a.safetensors")
    assert (found.preprocessing, found.classes) == (GIVEN, None)


def test_a_run_means_its_best_averaged_weights(run):
    best = run / "checkpoints" / "step-10"
    assert resolve_checkpoint(run).file == best / "ema.safetensors"
    assert resolve_checkpoint(run, use_ema=False).file == best / "model.safetensors"
    assert resolve_checkpoint(run, which="last").file == run / "checkpoints" / "step-20" / "model.safetensors"
    assert resolve_checkpoint(run, "step-10").file == run / "checkpoints" / "step-10" / "ema.safetensors"
    assert resolve_checkpoint(run / "checkpoints" / "step-20").file.parent.name == "step-20"


def test_the_runs_config_is_found_from_everywhere_in_it(run):
    for path in (run, run / "checkpoints" / "last", run / "checkpoints" / "best" / "model.safetensors"):
        assert resolve_checkpoint(path).config == {"model": MODEL, "batch_size": 8}


def test_a_file_of_others_tells_its_model(official_file):
    found = resolve_checkpoint(official_file)
    assert found.spec == ModelSpec(model=MODEL)
    assert (found.classes, found.preprocessing, found.record) == (None, None, None)


def test_a_published_file_is_known_by_its_name(official_file):
    renamed = official_file.rename(official_file.with_name("gcvit_1k_xxtiny.pth.tar"))
    found = resolve_checkpoint(renamed)
    assert found.record is not None
    assert (found.record.model, found.record.weights) == (MODEL, "nvidia_in1k")
    assert found.preprocessing == found.record.preprocessing


def test_a_run_without_an_evaluation_opens_its_last_checkpoint(run, caplog):
    (run / "checkpoints" / "best").unlink()
    assert resolve_checkpoint(run).file.parent.name == "step-20"
    assert "has no evaluation yet, so its last checkpoint, step-20, is used" in caplog.text


def test_another_model_than_the_file_says_is_an_error(tmp_path, task):
    path = write(tmp_path / "model.safetensors", task)
    with pytest.raises(
        ValueError, match=r"model\.safetensors holds gcvit_xxtiny, not gcvit_tiny; leave the model's name"
    ):
        resolve_checkpoint(path, model="gcvit_tiny")


def test_what_is_not_there_is_told(run, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="nowhere does not exist; give a weight file, a checkpoint folder or a run"
    ):
        resolve_checkpoint(tmp_path / "nowhere")
    with pytest.raises(
        FileNotFoundError, match=r"has no checkpoint 'step-5'; it has best, last, step-10, step-20: give"
    ):
        resolve_checkpoint(run, which="step-5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"empty has no model\.safetensors; give a weight file, a checkpoint folder"
    ):
        resolve_checkpoint(tmp_path / "empty")


@pytest.mark.parametrize("change", [lambda m: m.pop("spec"), lambda m: m["spec"].update(color="blue")])
def test_files_of_another_version_are_told(tmp_path, task, change):
    path = write(tmp_path / "model.safetensors", task)
    with safetensors.safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()["globalvit"])
    change(metadata)
    load.write_tensors(path, task.state_dict(), {"globalvit": json.dumps(metadata)})
    with pytest.raises(
        ValueError, match=r"model\.safetensors was written by another version of globalvit \(.+\); use that"
    ):
        resolve_checkpoint(path)


def test_a_full_disk_keeps_what_was_there(tmp_path, task, monkeypatch):
    path = write(tmp_path / "model.safetensors", task)
    before = path.read_bytes()

    def full(tensors, file, metadata):
        file.write_bytes(b"a part")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(load, "save_file", full)
    with pytest.raises(
        OSError, match=r"cannot write .*model\.safetensors: .*No space left on device.*; what was there bef"
    ):
        write(path, task)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]

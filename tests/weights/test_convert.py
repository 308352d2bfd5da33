"""`globalvit convert`, from the command line to the files it writes."""

import json

import pytest
import safetensors
import torch
from safetensors.torch import load_file

from globalvit.build import create_model, open_checkpoint
from globalvit.cli import convert
from globalvit.cli.main import main
from globalvit.cli.options import UsageError
from globalvit.weights import gcvit_official
from globalvit.weights.load import save_weights

LICENSE = "GC ViT weights that NVIDIA published are CC-BY-NC-SA-4.0 (non-commercial), and remain so after conversion"


@pytest.fixture
def go(capsys):
    """Convert and return what was printed."""

    def run(*words):
        assert convert.run([str(word) for word in words], "globalvit convert") == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def published_file(official_file):
    """The official checkpoint under its published name."""
    return official_file.rename(official_file.with_name("gcvit_1k_xxtiny.pth.tar"))


def test_round_trips_are_exact(go, published_file, official, tmp_path, is_equal):
    ours, timm, there = (tmp_path / f"{name}.safetensors" for name in ("ours", "timm", "official"))
    go(published_file, ours, "--to", "ours")
    go(ours, timm, "--to", "timm")
    go(timm, tmp_path / "again.safetensors", "--to", "ours")
    go(tmp_path / "again.safetensors", there, "--to", "official")
    assert is_equal(load_file(there), official)
    assert is_equal(load_file(ours), load_file(tmp_path / "again.safetensors"))
    assert is_equal(load_file(ours), gcvit_official.to_ours(official))


def test_the_report_lists_source_target_model_and_license(go, published_file, tmp_path):
    out = go(published_file, tmp_path / "x.safetensors", "--to", "official")
    assert out.splitlines()[:5] == [
        f"source: {published_file}, the official GC ViT form, its state_dict_ema (state_dict skipped), 238 entries",
        f"target: {tmp_path}/x.safetensors, the official GC ViT form, 238 entries",
        "model: gcvit_xxtiny, 1000 classes, 3 input channels",
        "dropped: levels.*.blocks.*.attn.relative_position_index (12)",
        "recomputed: levels.*.blocks.*.attn.relative_position_index (12)",
    ]
    assert LICENSE in out


def test_our_file_knows_classes_crop_and_license(go, published_file, tmp_path):
    go(published_file, tmp_path / "x.safetensors", "--to", "ours")
    task = open_checkpoint(tmp_path / "x.safetensors")
    assert task.spec.model == "gcvit_xxtiny"
    assert task.classes is not None
    assert len(task.classes) == 1000
    assert task.preprocessing.crop_ratio == 1.0
    with safetensors.safe_open(tmp_path / "x.safetensors", "pt") as file:
        metadata = json.loads(file.metadata()["globalvit"])
    assert metadata["license"] == "CC-BY-NC-SA-4.0"
    assert metadata["origin"].endswith("nvidia/GCViT/resolve/main/gcvit_1k_xxtiny.pth.tar")


def test_a_trained_model_keeps_what_it_knows(go, tmp_path, is_equal):
    task = create_model("gcvit_xxtiny", image_size=64, classes=("cat", "dog"))
    save_weights(tmp_path / "model.safetensors", task, task.spec, task.classes, task.preprocessing)
    go(tmp_path / "model.safetensors", tmp_path / "there.pth.tar", "--to", "official")
    written = torch.load(tmp_path / "there.pth.tar", weights_only=True)["state_dict"]
    assert written["levels.2.blocks.0.attn.relative_position_index"].shape == (16, 16)
    go(tmp_path / "there.pth.tar", tmp_path / "again.safetensors", "--to", "ours")
    back = open_checkpoint(tmp_path / "again.safetensors")
    assert back.spec.window == task.backbone.config.window
    assert is_equal(back.state_dict(), task.state_dict())


def test_raw_weights_can_be_asked_for(go, published_file, tmp_path):
    out = go(published_file, tmp_path / "x.safetensors", "--to", "ours", "--no-ema")
    assert "its state_dict (state_dict_ema skipped)" in out
    assert not any(value.any() for value in load_file(tmp_path / "x.safetensors").values())


def test_the_detection_form_is_converted(go, golden, tmp_path, is_equal):
    state = golden("gcvit_backbone_det_tiny_320x416").state_dict()
    torch.save(state, tmp_path / "det.pth")
    go(tmp_path / "det.pth", tmp_path / "det.safetensors", "--to", "ours")
    go(tmp_path / "det.safetensors", tmp_path / "back.safetensors", "--to", "official")
    assert is_equal(load_file(tmp_path / "back.safetensors"), state)


def test_models_that_timm_has_not_are_told(go, tmp_path):
    task = create_model("gcvit_tiny2", num_classes=2)
    save_weights(tmp_path / "x.safetensors", task, task.spec, None, task.preprocessing)
    out = go(tmp_path / "x.safetensors", tmp_path / "y.safetensors", "--to", "timm")
    assert "timm has no gcvit_tiny2; `import globalvit.timm_plugin` registers globalvit_gcvit_tiny2" in out


def test_nothing_is_replaced_unasked(go, published_file, tmp_path):
    target = tmp_path / "x.safetensors"
    target.write_text("precious")
    with pytest.raises(
        FileExistsError, match=r"x\.safetensors already exists; use --force to replace it, or give another name"
    ):
        go(published_file, target, "--to", "ours")
    assert target.read_text() == "precious"
    go(published_file, target, "--to", "ours", "--force")
    assert len(load_file(target)) == 226


@pytest.mark.parametrize(("to", "name"), [("ours", "x.pth"), ("timm", "x.onnx")])
def test_the_target_must_be_named_for_its_form(go, published_file, tmp_path, to, name):
    with pytest.raises(ValueError, match=rf"{name} must end in \.safetensors.* for the format '{to}'"):
        go(published_file, tmp_path / name, "--to", to)


def test_an_incomplete_checkpoint_is_refused(go, official, tmp_path):
    official.pop("head.bias")
    torch.save(official, tmp_path / "x.pth")
    with pytest.raises(
        ValueError, match=r"x\.pth is a checkpoint of another model than gcvit_xxtiny: 1 entry differs: 'head"
    ):
        go(tmp_path / "x.pth", tmp_path / "y.safetensors", "--to", "ours")
    assert not (tmp_path / "y.safetensors").exists()


def test_a_wrong_model_is_refused(go, published_file, tmp_path):
    with pytest.raises(
        ValueError, match=r"than gcvit_tiny: 247 entries differ: .* it holds gcvit_xxtiny, so create that"
    ):
        go(published_file, tmp_path / "x.safetensors", "--to", "ours", "--model", "gc_vit_tiny")
    with pytest.raises(ValueError, match=r"model 'gcvit_tny' is not known\. Did you mean"):
        go(published_file, tmp_path / "x.safetensors", "--to", "ours", "--model", "gcvit_tny")


def test_a_full_disk_keeps_what_was_there(go, published_file, tmp_path, monkeypatch):
    target = tmp_path / "x.pth"
    target.write_text("precious")

    def full(content, file):
        raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 576 vs 534")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"cannot write .*x\.pth: .*unexpected pos.*; the previous file is unchanged"):
        go(published_file, target, "--to", "timm", "--force")
    assert target.read_text() == "precious"


def test_bad_use_is_told(go, published_file, tmp_path):
    with pytest.raises(UsageError, match="globalvit convert requires --to"):
        go(published_file, tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match="'flax' is not understood"):
        go(published_file, tmp_path / "x.safetensors", "--to", "flax")


def test_errors_are_one_line_and_exit_1(tmp_path, capsys):
    (tmp_path / "x.pth").write_text("<html>")
    assert main(["convert", str(tmp_path / "x.pth"), str(tmp_path / "y.safetensors"), "--to", "ours"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("globalvit: error: ")
    assert error.count("\n") == 1


def test_weights_that_are_not_finite_are_converted_on_request_only(tmp_path):
    state = create_model("gcvit_xxtiny", num_classes=2, image_size=32).state_dict()
    torch.save(state | {"head.linear.bias": torch.tensor([0.0, float("nan")])}, tmp_path / "x.pth")
    command = [str(tmp_path / "x.pth"), str(tmp_path / "y.pth"), "--to", "timm", "--model", "gcvit_xxtiny"]
    with pytest.raises(ValueError, match=r"x\.pth has NaN or infinity in 1 of its entries: 'head\.linear\.bias'"):
        convert.run(command, "convert")
    assert convert.run([*command, "--allow-nonfinite"], "convert") == 0

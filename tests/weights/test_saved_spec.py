"""What a file says of its model is compared with what it holds, before anything is built."""

import json

import pytest
import safetensors.torch
import torch
from torch import nn

import globalvit as gv
from globalvit.weights import catalog
from globalvit.weights.load import save_weights, write_tensors

MODEL = "gcvit_xxtiny"
IMAGES = torch.zeros(1, 3, 32, 32)


@pytest.fixture
def model():
    return gv.create_model(MODEL, classes=("a", "b"), image_size=32).eval()


def rewritten(path, task, **changes):
    """A file of the model whose metadata is changed."""
    gv.save_weights(task, path)
    with safetensors.safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()["globalvit"])
    for key, value in changes.items():
        inner = metadata["spec"] if key in metadata["spec"] else metadata
        inner[key] = value
    write_tensors(path, task.state_dict(), {"globalvit": json.dumps(metadata)})
    return path


def test_a_replaced_head_is_kept(tmp_path, model, caplog):
    model.head.linear = nn.Linear(512, 3)
    gv.save_weights(model, tmp_path / "x.safetensors")
    assert "the model has 2 class names for 3 outputs of its head; the names are left out" in caplog.text
    opened = gv.open_checkpoint(tmp_path / "x.safetensors")
    assert (opened.spec.num_classes, opened.classes) == (3, None)
    assert torch.equal(opened(IMAGES), model(IMAGES))


def test_a_file_that_was_saved_with_the_wrong_number_of_classes_keeps_its_head(tmp_path, model):
    model.head.linear = nn.Linear(512, 3)
    save_weights(tmp_path / "x.safetensors", model, model.spec, None, model.preprocessing)
    assert torch.equal(gv.open_checkpoint(tmp_path / "x.safetensors")(IMAGES), model(IMAGES))


def test_another_kind_of_head_is_refused(tmp_path, model):
    model.head.linear = nn.Sequential(nn.Linear(512, 8), nn.ReLU(), nn.Linear(8, 2))
    message = r"has another head than gcvit_xxtiny's own \(its entries: 'head\.linear\.0\..*\); save the state_d"
    with pytest.raises(ValueError, match=f"the model {message}"):
        gv.save_weights(model, tmp_path / "x.safetensors")
    save_weights(tmp_path / "x.safetensors", model, model.spec, None, model.preprocessing)
    with pytest.raises(ValueError, match=rf"x\.safetensors {message}"):
        gv.open_checkpoint(tmp_path / "x.safetensors")


def test_a_replaced_head_does_not_answer_with_the_names_of_other_classes(model):
    model.head.linear = nn.Linear(512, 3)
    message = (
        "expected 2 outputs of the head, one per class, got 3; after replacing the head, save the model with save_w"
    )
    with pytest.raises(ValueError, match=message):
        model.predict(IMAGES[0])
    with pytest.raises(ValueError, match=message):
        model.evaluate({"images": IMAGES, "labels": torch.tensor([0])}, model.metric())


def test_a_backbone_alone_is_not_opened_with_a_random_head(tmp_path, model):
    torch.save(model.backbone.state_dict(), tmp_path / "x.pth")
    with pytest.raises(
        ValueError, match=r"x\.pth holds a backbone without a head; use create_model\('gcvit_xxtiny', wei"
    ):
        gv.open_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"in_channels": 10**9},
            "says in_channels=1000000000, but its stem takes 3; create the model with in_channels=3",
        ),
        ({"window": [9, 9, 9, 9]}, r"says window=\(9, 9, 9, 9\), but its tables have \(1, 1, 2, 1\)"),
        ({"num_classes": "many"}, "was written by another version of globalvit .*num_classes='many' must be a whole"),
        ({"model": "gcvit_huge"}, "was written by another version of globalvit .*model 'gcvit_huge' is not known"),
        ({"model": 3}, "was written by another version of globalvit"),
        ({"spec": []}, "was written by another version of globalvit"),
        ({"classes": "ab"}, r"was written by another version of globalvit \(classes are not names\)"),
        ({"preprocessing": None}, "was written by another version of globalvit"),
        ({"preprocessing": {"image_size": ["x", 3]}}, "describes no model that can be built"),
        ({"preprocessing": {"image_size": [32, 32], "mean": [None]}}, "describes no model that can be built"),
        ({"image_size": [3, 3]}, "describes no model that can be built: image_size=.* is too small"),
    ],
)
def test_metadata_that_lies_is_one_sentence(tmp_path, model, changes, message):
    path = rewritten(tmp_path / "x.safetensors", model, **changes)
    with pytest.raises(ValueError, match=rf"x\.safetensors {message}") as error:
        gv.open_checkpoint(path)
    assert "\n" not in str(error.value)


def test_a_number_of_classes_that_lies_allocates_nothing(tmp_path, model):
    opened = gv.open_checkpoint(rewritten(tmp_path / "x.safetensors", model, num_classes=10**12))
    assert opened.spec.num_classes == 2


@pytest.mark.parametrize("text", ["a: [", "\t", "- 1", "a: !!python/object:os.system x", "[" * 5000])
def test_a_config_that_is_no_yaml_is_one_sentence(tmp_path, model, text):
    gv.save_weights(model, tmp_path / "run" / "checkpoints" / "step-1" / "model.safetensors")
    (tmp_path / "run" / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml (is not a YAML file|holds a list; expected settings)") as error:
        gv.open_checkpoint(tmp_path / "run" / "checkpoints" / "step-1")
    assert "\n" not in str(error.value)


@pytest.fixture
def published(no_hub, official):
    no_hub.mkdir(parents=True)
    torch.save({"state_dict": official}, no_hub / "gcvit_1k_xxtiny.pth.tar")
    return no_hub / "gcvit_1k_xxtiny.pth.tar"


def test_published_weights_bring_their_classes_however_they_are_opened(published):
    assert gv.open_checkpoint(published).classes[1] == "goldfish"
    assert gv.create_model(MODEL, "nvidia_in1k").classes[1] == "goldfish"
    for source in ("nvidia_in1k", published):
        gv.load_weights(model := gv.create_model(MODEL), source)
        assert model.classes[1] == "goldfish"
    gv.load_weights(other := gv.create_model(MODEL, num_classes=7), published)
    assert other.classes is None


def test_published_weights_are_known_in_the_cache_of_hugging_face():
    cached = "hub/models--timm--gcvit_tiny.in1k/snapshots/0123/model.safetensors"
    assert catalog.find_file(cached) == catalog.find("gcvit_tiny", "timm_in1k")
    assert catalog.find_file("elsewhere/model.safetensors") is None

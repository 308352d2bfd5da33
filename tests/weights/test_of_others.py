"""Checkpoints as training tools write them: under which names the model is, and which of two models is taken."""

import pytest
import torch

import globalvit as gv
from globalvit.weights.find import find_file
from globalvit.weights.forms import recognize
from globalvit.weights.load import read_weights
from globalvit.weights.read import unwrap

MODEL = "gcvit_xxtiny"
MARK = "backbone.stem.downsample.reduction.weight"
RAW, EMA = {MARK: torch.zeros(1)}, {MARK: torch.ones(1)}


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def taken(content, use_ema=True):
    """The value of the only entry that is taken."""
    opened = unwrap(content, use_ema=use_ema)
    _, entries, _ = recognize(opened.state, use_ema=use_ema)
    (value,) = entries.values()
    return float(value)


AVERAGED = under("module.", EMA) | {"n_averaged": torch.tensor(3)}
BOTH = {
    "timm": {"state_dict": RAW, "state_dict_ema": EMA},
    "torchvision": {"model": RAW, "model_ema": AVERAGED, "optimizer": {"state": {}}, "args": None},
    "ema": {"model": RAW, "ema": EMA},
    "ema with settings": {"model": RAW, "ema": {"decay": 0.999, "module": EMA}},
    "ema_state_dict": {"state_dict": RAW, "ema_state_dict": EMA},
    "model_ema_state_dict": {"model_state_dict": RAW, "model_ema_state_dict": EMA},
    "params_ema": {"params": RAW, "params_ema": EMA},
    "Lightning": {"state_dict": EMA, "current_model_state": RAW, "averaging_state": {"n_averaged": torch.tensor(3)}},
    "Lightning module": {"state_dict": under("net.", RAW) | under("ema_model.module.", EMA)},
    "averaged beside": under("model.", RAW) | under("ema_net.", EMA) | {"criterion.weight": torch.ones(3)},
    "distributed": {"state_dict": under("module.", RAW), "state_dict_ema": under("module._orig_mod.", EMA)},
}


@pytest.mark.parametrize("content", BOTH.values(), ids=BOTH)
def test_of_two_models_the_one_that_is_asked_for_is_taken(content):
    assert (taken(content), taken(content, use_ema=False)) == (1.0, 0.0)


@pytest.mark.parametrize("content", [{"ema": EMA}, under("ema_model.", EMA), AVERAGED, {"model": AVERAGED}])
def test_raw_weights_that_are_not_there_are_refused(content):
    assert taken(content) == 1.0
    with pytest.raises(ValueError, match=r"averaged \(EMA\) weights only, under '.*'; "):
        taken(content, use_ema=False)


@pytest.mark.parametrize(
    "prefix", ["model.", "net.", "module.", "student.", "encoder.", "_orig_mod.", "model._orig_mod.", "module.model."]
)
def test_what_a_tool_puts_before_the_names_is_taken_off(prefix):
    assert taken(under(prefix, RAW)) == 0.0


def test_compiled_parts_have_their_names():
    state = {MARK.replace("stem", "stem._orig_mod"): torch.ones(1)}
    assert set(unwrap(state).state) == {MARK}


def test_two_models_without_a_word_for_either_are_refused():
    with pytest.raises(ValueError, match=r"has more than one model, under 'student\.', 'teacher\.'; give the"):
        taken(under("student.", RAW) | under("teacher.", EMA))


def test_averages_without_names_are_refused():
    with pytest.raises(ValueError, match=r"holds averaged \(EMA\) weights under 'ema' that are not tensors by name"):
        unwrap({"model": RAW, "ema": {"decay": 0.9, "shadow_params": [torch.ones(1)]}})
    assert taken({"model": RAW, "ema": {"decay": 0.9}}) == 0.0


def test_entries_beside_the_model_are_named():
    weights = read_weights({"state_dict": under("net.", RAW) | {"loss.weight": torch.ones(2)}})
    assert weights.dropped == ("loss.weight",)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return gv.create_model(MODEL, num_classes=3, image_size=32)


@pytest.fixture
def both(tmp_path, model):
    state = model.state_dict()
    ema = {name: value * 2 for name, value in state.items()}
    torch.save({"state_dict": state, "state_dict_ema": ema}, tmp_path / "both.pth")
    return tmp_path / "both.pth"


def test_open_checkpoint_takes_the_raw_weights_of_one_file(both, model):
    own = model.head.linear.weight
    assert torch.equal(gv.open_checkpoint(both).head.linear.weight, own * 2)
    assert torch.equal(gv.open_checkpoint(both, use_ema=False).head.linear.weight, own)
    gv.load_weights(other := gv.create_model(MODEL, num_classes=3, image_size=32), both, use_ema=False)
    assert torch.equal(other.head.linear.weight, own)


def test_folders_of_accelerate_are_read(tmp_path, model):
    for name in ("pytorch_model.bin", "model.safetensors.index.json", "model.safetensors"):
        (tmp_path / name).write_bytes(b"{}")
        assert find_file(tmp_path).name == name
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp" / ".metadata").write_bytes(b"")
    with pytest.raises(ValueError, match="is a distributed checkpoint; write it as one file with python -m torch"):
        find_file(tmp_path / "dcp")
    (tmp_path / "ema").mkdir()
    (tmp_path / "ema" / "ema.safetensors").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"has averaged \(EMA\) weights only; leave out use_ema=False"):
        find_file(tmp_path / "ema", use_ema=False)


def test_paths_are_understood_as_users_write_them(tmp_path, monkeypatch):
    (tmp_path / "a b.pth").write_bytes(b"x")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for path in ("~/a b.pth", (tmp_path / "a b.pth").as_uri(), f"file:{tmp_path}/a b.pth"):
        assert find_file(path) == tmp_path / "a b.pth"


@pytest.mark.parametrize("path", ["https://host/a.pth", "http:/host/a.pth", "s3://b/a.pth"])
def test_addresses_are_refused(path):
    with pytest.raises(ValueError, match=f"{path} is an address; download the file, then give its path"):
        find_file(path)


@pytest.mark.parametrize("source", [None, 3, b"a.pth", torch.nn.Linear(1, 1)])
def test_other_things_are_refused_by_their_type(model, source):
    kind = type(source).__name__
    with pytest.raises(
        ValueError, match=f"expected weights as a catalog name, a path or a state dict, got {kind}; of a"
    ):
        gv.load_weights(model, source)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path, model, value):
    state = model.state_dict() | {"head.linear.bias": torch.tensor([0.0, value, 0.0])}
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth has NaN or infinity in 1 of its entries: 'head\.linear\.bias'; take"):
        gv.open_checkpoint(tmp_path / "x.pth")
    opened = gv.open_checkpoint(tmp_path / "x.pth", allow_nonfinite=True)
    torch.testing.assert_close(opened.head.linear.bias.data, state["head.linear.bias"], equal_nan=True)


@pytest.mark.parametrize("dtype", ["int8", "bool", "complex64", "int64"])
def test_weights_that_are_not_floating_point_are_named(model, dtype):
    before = model.head.linear.bias.clone()
    state = model.state_dict() | {"head.linear.bias": torch.ones(3).to(getattr(torch, dtype))}
    with pytest.raises(
        ValueError, match=rf"has 'head\.linear\.bias' as {dtype}; expected floating point: save the wei"
    ):
        gv.load_weights(model, state)
    assert torch.equal(model.head.linear.bias, before)


def test_a_model_without_values_is_refused(model):
    with torch.device("meta"):
        empty = gv.create_model(MODEL, num_classes=3, image_size=32)
    with pytest.raises(
        ValueError, match=r"the model is on the meta device, .*; create it without torch\.device\('meta'\)"
    ):
        gv.load_weights(empty, model.state_dict())


@pytest.mark.parametrize(
    ("name", "value", "axes"),
    [
        ("backbone.stem.conv.weight", torch.ones(5), "4"),
        ("backbone.stages.0.blocks.0.attention.bias_table", torch.ones(9), "2"),
        ("backbone.stages.0.blocks.0.mlp.fc1.weight", torch.tensor(1.0), "2"),
        ("head.linear.weight", torch.tensor(1.0), "2 or 4"),
    ],
)
def test_entries_with_other_axes_are_named(model, name, value, axes):
    with pytest.raises(ValueError, match=rf"has '{name}' in shape .*; expected {axes} axes: fetch the file again"):
        read_weights(model.state_dict() | {name: value})

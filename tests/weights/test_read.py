"""Opening files: what is read, what is refused, and what is said of damaged ones."""

import argparse
import os
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from globalvit.weights.read import open_weights, read_metadata, unwrap

STATE = {"a.weight": torch.arange(3.0), "a.bias": torch.ones(1)}
ZIP, LEGACY = True, False


class Code:
    """What an attacker pickles: unpickling it would run a command."""

    def __reduce__(self):
        return os.system, ("echo this must never run",)


def save(path, content, is_zip=ZIP):
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    return path


@pytest.mark.parametrize("is_zip", [ZIP, LEGACY])
def test_a_checkpoint_with_a_namespace_is_read(tmp_path, is_zip):
    args = argparse.Namespace(model="gc_vit_tiny", lr=1e-3, amp=True, data=None)
    opened = open_weights(save(tmp_path / "x.pth.tar", {"state_dict": STATE, "args": args, "epoch": 3}, is_zip))
    assert opened.entry == "state_dict"
    assert opened.passed_over == ()
    assert torch.equal(opened.state["a.weight"], STATE["a.weight"])


def test_numbers_of_numpy_are_read(tmp_path):
    content = {"state_dict": STATE, "top1": np.float64(79.9), "epoch": np.int64(3), "loss": np.float32(0.5)}
    assert open_weights(save(tmp_path / "x.pth", content)).entry == "state_dict"


@pytest.mark.parametrize("is_zip", [ZIP, LEGACY])
@pytest.mark.parametrize(("thing", "name"), [(Code(), "posix.system"), (Fraction(1, 3), "fractions.Fraction")])
def test_code_is_refused_and_named(tmp_path, capfd, is_zip, thing, name):
    path = save(tmp_path / "x.pth", {"state_dict": STATE, "extra": thing}, is_zip)
    message = (
        rf"x\.pth holds more than weights: {name}; it was not opened, since such a file can run code\. Get it as safe"
    )
    with pytest.raises(ValueError, match=message):
        open_weights(path)
    assert capfd.readouterr().out == ""


def test_a_plain_pickle_is_not_opened(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"extra": Code()}))
    with pytest.raises(ValueError, match=r"is a pickle that torch\.save did not write, and such a file can run code;"):
        open_weights(path)


@pytest.mark.parametrize("kept", [0.05, 0.5, 0.98])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_files_cut_short_are_named(tmp_path, kind, kept):
    path = tmp_path / "x.weights"
    if kind == "safetensors":
        save_file(STATE, path)
    else:
        save(path, {"state_dict": STATE}, kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: max(20, int(len(whole) * kept))])
    with pytest.raises(
        ValueError, match=r"x\.weights is damaged or cut short at \d+ bytes \(.+\); fetch or copy it again"
    ):
        open_weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; expected safetensors or a file of torch.save"),
        (b"<!DOCTYPE html><html>Sign in</html>", "holds a web page instead of weights; expected"),
        (b"\n <html>", "holds a web page instead of weights"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "is a Git LFS pointer, not the file it points to",
        ),
        (b"\x00\x01garbage that goes on", r"is not a weight file \(it begins with b'\\x00\\x01garbage th'\); expected"),
        (b"PK\x03\x04 and then nothing", "is damaged or cut short at 21 bytes"),
    ],
)
def test_what_is_no_weight_file_is_told(tmp_path, content, message):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.pth {message}"):
        open_weights(path)


def test_averaged_weights_come_first(tmp_path):
    content = {"state_dict": {"a": torch.zeros(1)}, "state_dict_ema": {"a": torch.ones(1)}}
    path = save(tmp_path / "x.pth", content)
    opened = open_weights(path)
    assert (opened.entry, opened.passed_over, float(opened.state["a"])) == ("state_dict_ema", ("state_dict",), 1.0)
    opened = open_weights(path, use_ema=False)
    assert (opened.entry, opened.passed_over, float(opened.state["a"])) == ("state_dict", ("state_dict_ema",), 0.0)


def test_averaged_weights_that_are_not_there_are_passed(tmp_path):
    opened = open_weights(save(tmp_path / "x.pth", {"state_dict": STATE, "state_dict_ema": None}))
    assert (opened.entry, opened.passed_over) == ("state_dict", ())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_taken_off(prefix):
    assert set(unwrap({prefix + name: value for name, value in STATE.items()}).state) == set(STATE)


def test_a_prefix_that_only_some_have_is_a_name():
    assert set(unwrap({"module.a": torch.ones(1), "b": torch.ones(1)}).state) == {"module.a", "b"}


def test_a_bare_state_dict_is_taken_as_it_is():
    opened = unwrap({"a": np.ones(2, np.float32)})
    assert opened.entry is None
    assert torch.equal(opened.state["a"], torch.ones(2))


def test_what_holds_no_weights_is_told(tmp_path):
    path = save(tmp_path / "x.pth", {"epoch": 3, "optimizer": {}})
    message = (
        r"x\.pth holds no weights: its entries are 'epoch', 'optimizer'; expected tensors by name, or such a state dict"
    )
    with pytest.raises(ValueError, match=message):
        open_weights(path)
    with pytest.raises(ValueError, match=r"x\.pth holds a list; expected a state dict"):
        open_weights(save(path, [1, 2]))


def test_metadata_of_others_is_empty(tmp_path):
    save_file(STATE, tmp_path / "x.safetensors", metadata={"format": "pt"})
    assert read_metadata(tmp_path / "x.safetensors") == {}
    assert read_metadata(save(tmp_path / "x.pth", STATE)) == {}


def test_broken_metadata_is_told(tmp_path):
    save_file(STATE, tmp_path / "x.safetensors", metadata={"globalvit": "{"})
    with pytest.raises(ValueError, match=r"x\.safetensors is damaged or cut short"):
        read_metadata(tmp_path / "x.safetensors")

"""Weight files that are damaged, hostile or merely unusual: read right, or refused in one sentence; nothing is run."""

import collections
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from globalvit.weights.read import open_weights, unwrap

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(1)}
SETTINGS = {
    "args": {
        "lr": 1e-3,
        "text": "x" * 300,
        "raw": b"ab\xff",
        "many": 2**70,
        "flags": {1, 2},
        "frozen": frozenset("ab"),
    },
    "numbers": [np.float16(3), np.str_("hi"), np.dtype("int64"), np.bool_(True), np.bytes_(b"q")],
    "counter": collections.Counter("aab"),
    "path": PurePosixPath("/data"),
    "dtype": torch.float16,
}


class Code:
    def __reduce__(self):
        return os.system, ("echo this must never run",)


def refused(path, message):
    with pytest.raises(ValueError, match=message) as error:
        open_weights(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def zipped(path, pickled, *, kind=zipfile.ZIP_STORED, data=b"\0" * 24):
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/data/0", data)
        archive.writestr("a/version", "3\n")
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("is_zip", [True, False])
def test_every_pickle_protocol_is_read(tmp_path, protocol, is_zip):
    settings = {name: value for name, value in SETTINGS.items() if name != "path"}
    torch.save(
        {"state_dict": STATE, **settings, "again": [settings["args"], Path("/data")]},
        tmp_path / "x.pth",
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=is_zip,
    )
    opened = open_weights(tmp_path / "x.pth")
    assert all(torch.equal(opened.state[name], value) for name, value in STATE.items())
    assert opened.entry == "state_dict"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_code_is_refused_in_every_protocol(tmp_path, capfd, protocol):
    torch.save({"state_dict": STATE, "x": Code()}, tmp_path / "x.pth", pickle_protocol=protocol)
    refused(tmp_path / "x.pth", r"holds more than weights: posix\.system; it was not opened")
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        (b"\x80\x02\x82\x01.", "its pickle uses EXT1, which torch.save does not"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system0\x93.", "its pickle uses POP, which torch.save does not"),
        (b"\x80\x04N\x8c\x06systemN\x93.", "its pickle names a global in a way that torch.save does not"),
        (b"\x80\x02}q\x00X\xff\xff\xff\xffa", "expected 4294967295 bytes in a unicodestring4"),
        (b"\x80\x02Q.", "pop from empty list"),
        (b"\x80\x02h\x07.", "7"),
        (b"\x80\x02((((.", "pop from empty list"),
        (b"\x80\x02\x8a\xff", "not enough data in stream to read long1"),
        (b"garbage", ".+"),
    ],
)
def test_odd_pickles_are_one_sentence(tmp_path, pickled, reason):
    refused(zipped(tmp_path / "x.pth", pickled), rf"is damaged or cut short at \d+ bytes \({reason}.*\); fetch or copy")


def test_the_advice_to_open_a_file_unsafely_is_left_out(tmp_path):
    refused(zipped(tmp_path / "x.pth", b"\x80\x02}K\x01K\x02s]K\x03sK\x05K\x06\x81."), "damaged")
    with pytest.raises(ValueError, match="damaged") as error:
        open_weights(tmp_path / "x.pth")
    assert "weights_only" not in str(error.value)


def test_the_users_own_safe_classes_stay(tmp_path):
    import argparse

    torch.save(STATE, tmp_path / "x.pth")
    with torch.serialization.safe_globals([argparse.Namespace]):
        open_weights(tmp_path / "x.pth")
        assert argparse.Namespace in torch.serialization.get_safe_globals()


def test_compressed_entries_are_refused(tmp_path):
    refused(
        zipped(tmp_path / "x.pth", b"\x80\x02" + b"}" * 10**6 + b".", kind=zipfile.ZIP_DEFLATED),
        "has compressed entries, which torch.save does not write; save it again with it",
    )


def test_entries_that_overlap_are_refused(tmp_path):
    path = zipped(tmp_path / "x.pth", b"\x80\x02}.", data=b"x" * 3000)
    raw = path.read_bytes()
    where = raw.rindex(b"PK\x01\x02", 0, raw.rindex(b"a/data.pkl"))
    path.write_bytes(raw[: where + 20] + struct.pack("<II", 3000, 3000) + raw[where + 28 :])
    refused(path, r"declares \d+ bytes and has \d+; fetch or copy it again")


def test_settings_of_many_megabytes_are_refused(tmp_path):
    torch.save({"state_dict": STATE, "log": "x" * 5 * 2**20}, tmp_path / "x.pth")
    refused(
        tmp_path / "x.pth", "has more than 4194304 bytes of names and settings beside its tensors; save its state dict"
    )
    torch.save({"log": "x" * 5 * 2**20}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    refused(tmp_path / "x.pth", "has more than 4194304 bytes of names and settings")


@pytest.mark.parametrize("protocol", [2, 4])
def test_more_numbers_than_the_file_holds_are_refused(tmp_path, protocol):
    torch.save({**STATE, "a.bias": torch.zeros(1).expand(10**9, 2)}, tmp_path / "x.pth", pickle_protocol=protocol)
    refused(
        tmp_path / "x.pth",
        r"has 'a\.bias' in shape \(1000000000, 2\), more numbers than a file of \d+ bytes holds; save it with \.cl",
    )


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: torch.empty(3, device="meta"), "on the meta device"),
        (lambda: torch.eye(3).to_sparse(), r"torch\.sparse_coo"),
        (lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]), "nested"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantized"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_dense_are_named(tmp_path, make, kind):
    torch.save({**STATE, "odd": make()}, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", f"has 'odd' {kind}; expected dense tensors")


def test_names_must_be_texts(tmp_path):
    torch.save({1: torch.ones(1), b"x": torch.ones(1)}, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", r"holds no weights: its entries are '1', \"b'x'\"; expected tensors by name")


def test_long_names_are_cut():
    with pytest.raises(ValueError, match="holds no weights") as error:
        unwrap({"x" * 10_000: 1})
    assert len(str(error.value)) < 600


def test_other_zip_files_are_told(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.ones(3))
    refused(
        tmp_path / "x.npz", r"is a zip file that torch\.save did not write: expected one data\.pkl, got 0; give a file"
    )


def test_keras_files_are_told(tmp_path):
    (tmp_path / "x.weights.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    refused(
        tmp_path / "x.weights.h5", r"is an HDF5 file, as Keras writes it; .*: globalvit convert SRC DST\.safetensors"
    )


def test_pipes_and_devices_are_not_waited_for(tmp_path, make_pipe):
    make_pipe(tmp_path / "x.pth")
    for path, kind in ((tmp_path / "x.pth", r"pipe \(FIFO\)"), (Path("/dev/zero"), "device"), (tmp_path, "folder")):
        with pytest.raises(OSError, match=f"{path} is a {kind}, expected a regular file; give a weight file"):
            open_weights(path)


def header(path, entries, data=b""):
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    "entries",
    [
        {"a": {"dtype": "F32", "shape": [10**12, 10**12], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 400]}},
        {"a": {"dtype": "X4", "shape": [8], "data_offsets": [0, 4]}},
        {"a": 3},
        {"__metadata__": {"globalvit": "[" * 50_000}},
        {"__metadata__": {"globalvit": "[1]"}},
        {"__metadata__": {"globalvit": "3"}},
    ],
)
def test_headers_of_safetensors_that_lie_are_one_sentence(tmp_path, entries):
    refused(header(tmp_path / "x.safetensors", entries, b"\0" * 4), "is damaged or cut short at")


def test_far_too_many_entries_are_refused(tmp_path):
    nothing = {f"a{index}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for index in range(20_001)}
    refused(header(tmp_path / "x.safetensors", nothing), "has 20001 entries; expected at most 20000: save the model's")


def sharded(folder, weight_map, **parts):
    folder.mkdir(exist_ok=True)
    for name, state in parts.items():
        save_file(state, folder / f"{name}.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index


def test_a_file_in_parts_is_read(tmp_path):
    parts = {"one": {"a": torch.ones(1)}, "two": {"b": torch.zeros(2)}}
    index = sharded(tmp_path / "x", {"a": "one.safetensors", "b": "two.safetensors"}, **parts)
    assert {name: tuple(value.shape) for name, value in open_weights(index).state.items()} == {"a": (1,), "b": (2,)}


@pytest.mark.parametrize(
    ("weight_map", "error", "message"),
    [
        ({"a": "one.safetensors", "b": "gone.safetensors"}, OSError, "names files that are not beside it: 'gone.safe"),
        ({"a": "one.safetensors", "b": "one.safetensors"}, ValueError, "do not hold 1 of its entries: 'b'; fetch"),
        ({"a": "../one.safetensors"}, ValueError, "names files in other folders; expected its parts beside it"),
        ({"a": 3}, ValueError, "is damaged or cut short"),
        ([], ValueError, "is damaged or cut short"),
    ],
)
def test_an_index_of_parts_that_lies_is_one_sentence(tmp_path, weight_map, error, message):
    index = sharded(tmp_path / "x", weight_map, one={"a": torch.ones(1)})
    with pytest.raises(error, match=message):
        open_weights(index)


def test_a_pickle_that_needs_no_change_is_left_alone():
    from globalvit.weights.pickles import rewrite

    content = {"a": [1, 2.5, True, None, "text", ("x", {"y": 3})]}
    for protocol in (2, 3, 4, 5):
        stream = io.BytesIO(pickle.dumps(content, protocol) + b"more")
        plain = rewrite(stream)
        assert pickle.loads(plain) == content
        assert (plain == pickle.dumps(content, 2)) >= (protocol == 2)
        assert stream.read() == b"more"

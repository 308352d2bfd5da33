"""Fetching, copies put in place by hand, and what is said without a network."""

import socket
import threading
import time
from contextlib import closing
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest

from globalvit.weights import catalog
from globalvit.weights.download import copies_folder, download

TINY = catalog.find("gcvit_tiny", "nvidia_in1k")
DRIVE = catalog.find("gcvit_large", "nvidia_in21k_ft_in1k")


def test_without_network_the_file_address_and_folder_are_named(no_hub):
    with pytest.raises(OSError, match=r"^gcvit_1k_tiny\.pth\.tar could not be fetched from ") as error:
        download(TINY)
    text = str(error.value)
    assert "https://huggingface.co/nvidia/GCViT/resolve/main/gcvit_1k_tiny.pth.tar" in text
    assert "offline mode is enabled" in text
    assert f"put a copy into {no_hub} as gcvit_1k_tiny.pth.tar, or do without (--weights none, in Python" in text


@pytest.mark.parametrize("record", [TINY, DRIVE, catalog.find("gcvit_tiny", "timm_in1k")])
def test_a_copy_put_there_is_found(no_hub, record):
    no_hub.mkdir(parents=True)
    copy = no_hub / record.file_name
    copy.write_bytes(b"weights")
    assert download(record) == copy


def test_google_drive_is_left_to_the_browser(no_hub):
    with pytest.raises(
        OSError, match="is on Google Drive, which only a browser can fetch it from: open https://"
    ) as error:
        download(DRIVE)
    assert DRIVE.address in str(error.value)
    assert f"put the file into {no_hub} as gcvit_21k_large_224.pth.tar" in str(error.value)


def test_the_hub_keeps_its_own_cache(no_hub, monkeypatch, tmp_path):
    asked = []

    def fetch(repo, file, cache_dir=None):
        asked.append((repo, file, cache_dir))
        (tmp_path / file).write_bytes(b"weights")
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    assert download(TINY, cache_dir=tmp_path).read_bytes() == b"weights"
    assert asked == [("nvidia/GCViT", "gcvit_1k_tiny.pth.tar", tmp_path)]


def test_copies_lie_in_the_home_of_hugging_face(no_hub):
    assert copies_folder() == no_hub


@pytest.fixture
def server(tmp_path, monkeypatch, no_hub):
    """A server on this machine; returns its folder and a record of a file in it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{http.server_port}/there.pth"
        yield folder, replace(TINY, source="url", address=address, repo=None)
        http.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_an_address_is_fetched_once(no_hub, server):
    folder, record = server
    (folder / "there.pth").write_bytes(b"weights")
    assert download(record) == no_hub / record.file_name
    (folder / "there.pth").unlink()
    assert download(record).read_bytes() == b"weights"


def test_an_address_without_the_file_is_named(no_hub, server):
    _, record = server
    with pytest.raises(OSError, match=r"could not be fetched from http://127.*there\.pth \(.*404.*\); connect to"):
        download(record)
    assert not any(no_hub.glob("*")), "a failed download leaves nothing behind"


def test_a_file_that_is_too_large_is_given_up(no_hub, server, monkeypatch):
    folder, record = server
    (folder / "there.pth").write_bytes(b"weights")
    monkeypatch.setattr("globalvit.weights.download.MOST_BYTES", 3)
    with pytest.raises(OSError, match=r"could not be fetched .*\(it has more than 3 bytes\)"):
        download(record)
    assert not any(no_hub.glob("*"))


def test_without_a_server_the_answer_comes_at_once(no_hub, server, caplog):
    _, record = server
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        record = replace(record, address=f"http://127.0.0.1:{free.getsockname()[1]}/there.pth")
    start = time.monotonic()
    with pytest.raises(OSError, match=r"could not be fetched .* or do without"):
        download(record)
    assert time.monotonic() - start < 3
    assert "Retry" not in caplog.text

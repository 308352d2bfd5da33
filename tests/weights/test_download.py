"""Fetching, copies put in place by hand, and what is said without a network."""

import hashlib
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest

from globalvit.weights import catalog
from globalvit.weights.download import copies_folder, download

TINY = catalog.find("gcvit_tiny", "nvidia_in1k")
DRIVE = catalog.find("gcvit_large", "nvidia_in21k_ft_in1k")


def test_without_network_the_file_address_and_folder_are_named(no_hub):
    with pytest.raises(
        OSError, match=r"^gcvit_1k_tiny\.pth\.tar is not at hand and could not be fetched from "
    ) as error:
        download(TINY)
    text = str(error.value)
    assert "https://huggingface.co/nvidia/GCViT/resolve/main/gcvit_1k_tiny.pth.tar" in text
    assert "offline mode is enabled" in text
    assert f"put a copy into {no_hub} as gcvit_1k_tiny.pth.tar" in text


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

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    assert download(TINY, cache_dir=tmp_path).read_bytes() == b"weights"
    assert asked == [("nvidia/GCViT", "gcvit_1k_tiny.pth.tar", tmp_path)]


def test_copies_lie_in_the_home_of_hugging_face(no_hub):
    assert copies_folder() == no_hub


def test_an_address_is_fetched_once(no_hub, tmp_path):
    there = tmp_path / "there.pth"
    there.write_bytes(b"weights")
    record = replace(TINY, source="url", address=there.as_uri(), repo=None)
    copy = download(record)
    assert copy == no_hub / record.file_name
    there.unlink()
    assert download(record).read_bytes() == b"weights"


def test_an_address_out_of_reach_is_named(no_hub, tmp_path):
    record = replace(TINY, source="url", address=(tmp_path / "nowhere.pth").as_uri(), repo=None)
    with pytest.raises(OSError, match=r"could not be fetched from file://.*nowhere\.pth .*No such file.*; connect to"):
        download(record)
    assert not any(no_hub.glob("*")), "a failed download leaves nothing behind"


def test_a_known_sum_is_checked(no_hub):
    no_hub.mkdir(parents=True)
    copy = no_hub / TINY.file_name
    copy.write_bytes(b"weights")
    found = hashlib.sha256(b"weights").hexdigest()
    assert download(replace(TINY, sha256=found)) == Path(copy)
    with pytest.raises(
        OSError, match=rf"is not the published gcvit_1k_tiny\.pth\.tar: its SHA-256 is {found}, expected 0+;"
    ):
        download(replace(TINY, sha256="0" * 64))

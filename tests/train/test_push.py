"""Runs on the Hub: the folder opens as the run does, its card is parsed, and licenses are kept."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard

import globalvit as gv
from globalvit.cli.main import main
from globalvit.jobs.push import PushOptions, push
from globalvit.weights.hub import fetch_folder


class Hub:
    """A stand-in for `HfApi` that keeps what it is given."""

    def __init__(self, error=None, files=(), tags=()):
        self.error = error
        siblings = [SimpleNamespace(rfilename=name) for name in (".gitattributes", *files)]
        self.info = SimpleNamespace(siblings=siblings, tags=list(tags))

    def create_repo(self, repo, private, exist_ok):
        self.made = (repo, private, exist_ok)

    def model_info(self, _):
        return self.info

    def upload_folder(self, *, folder_path, delete_patterns=None, **_):
        self.deleted = delete_patterns
        if self.error:
            raise self.error
        self.files = {path.name for path in Path(folder_path).iterdir()}


@pytest.mark.usefixtures("toy")
def test_a_pushed_folder_opens_as_the_run_and_its_card_is_parsed(straight, tmp_path):
    assert main(["push", str(straight), "me/colors", "--dry-run", str(tmp_path / "out"), "--license", "mit"]) == 0
    images = torch.rand(1, 3, 32, 32)
    opened = gv.open_checkpoint(tmp_path / "out")
    assert torch.equal(opened(images), gv.open_checkpoint(straight)(images))
    card = ModelCard.load(tmp_path / "out" / "README.md")
    about = card.data.to_dict()
    assert [about[name] for name in ("license", "library_name", "pipeline_tag")] == ["mit", "globalvit", TAG]
    assert "3 classes: blue, green, red" in card.text
    hub = Hub()
    assert push(PushOptions(run=straight, repo="me/colors"), hub) == "https://huggingface.co/me/colors"
    assert hub.made == ("me/colors", True, True)
    assert hub.files == {"model.safetensors", "config.json", "README.md", "curves.png"}
    with pytest.raises(OSError, match=r"^me/colors cannot be uploaded \(no network\); log in with `hf auth login`"):
        push(PushOptions(run=straight, repo="me/colors"), Hub(OSError("no\nnetwork")))
    other = Hub(files=["model.safetensors", "notes.txt"])
    with pytest.raises(
        FileExistsError,
        match=r"^expected a new repository or one written by globalvit push, got me/colors with 2 other files, such as "
        r"model.safetensors; choose another name, or replace them with --force$",
    ):
        push(PushOptions(run=straight, repo="me/colors"), other)
    push(PushOptions(run=straight, repo="me/colors", force=True), other)
    assert other.deleted == "*"
    own = Hub(files=["model.safetensors"], tags=["globalvit"])
    push(PushOptions(run=straight, repo="me/colors"), own)
    assert own.deleted is None


def test_a_missing_token_names_the_login(straight, tmp_path, monkeypatch, capsys):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert main(["push", str(straight), "me/colors"]) != 0
    expected = "expected a Hugging Face token to upload me/colors, got none; log in with `hf auth login`\n"
    assert capsys.readouterr().err.endswith(expected)


@pytest.mark.usefixtures("toy")
def test_a_repository_opens_as_a_checkpoint(straight, tmp_path, monkeypatch):
    push(PushOptions(run=straight, repo="me/colors", dry_run=tmp_path / "out"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path / "out"))
    images = torch.rand(1, 3, 32, 32)
    opened = gv.open_checkpoint("hf-hub:someone/colors")
    assert torch.equal(opened(images), gv.open_checkpoint(straight)(images))


TAG = "image-classification"


@pytest.mark.usefixtures("toy")
def test_non_commercial_weights_refuse_another_license(straight, tmp_path):
    (tmp_path / "run").mkdir()
    text = (straight / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(text.replace("\nweights: null", "\nweights: nvidia_in1k"))
    with pytest.raises(
        ValueError, match=r"^the run started from nvidia_in1k under CC-BY-NC-SA-4.0, for non-commercial"
    ):
        push(PushOptions(run=tmp_path / "run", repo="me/colors", license="mit", dry_run=tmp_path / "out"))
    with pytest.raises(ValueError, match=r"^expected the repository as owner/name, got 'colors'"):
        PushOptions(run=straight, repo="colors")


def test_a_repository_that_cannot_be_fetched_is_told(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"^hf-hub:owner/none-such cannot be downloaded .*log in with `hf auth login`$"):
        gv.open_checkpoint("hf-hub:owner/none-such")
    with pytest.raises(ValueError, match=r"^expected hf-hub:owner/name, got hf-hub:name$"):
        fetch_folder("name")

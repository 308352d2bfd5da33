"""Pushing a run to the Hugging Face Hub: weights, a config and a model card in one folder."""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from globalvit import atomic
from globalvit.jobs.opening import about
from globalvit.train.run import Run
from globalvit.weights import catalog
from globalvit.weights.hub import NAME, PREFIX

logger = logging.getLogger(__name__)
REPOSITORY, CARD, CONFIG = "repository", "README.md", "config.json"
NON_COMMERCIAL = "-NC-"
TAGS = {"classify": "image-classification", "segment": "image-segmentation", "detect": "object-detection"}
MOST_CLASSES = 100


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """Options of `globalvit push`."""

    run: Path = field(metadata=about(REPOSITORY, "run folder; its best checkpoint is pushed") | {"metavar": "RUN"})
    repo: str = field(metadata=about(REPOSITORY, "repository, owner/name") | {"metavar": "OWNER/NAME"})
    public: bool = field(default=False, metadata=about(REPOSITORY, "create a public repository (default: private)"))
    license: str | None = field(
        default=None,
        metadata=about(REPOSITORY, "license of the weights (default: that of the weights it started from)"),
    )
    dry_run: Path | None = field(
        default=None, metadata=about(REPOSITORY, "write the files to this folder and upload nothing")
    )
    force: bool = field(
        default=False, metadata=about(REPOSITORY, "replace the files of a repository that holds something else")
    )

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.repo):
            raise ValueError(f"expected the repository as owner/name, got {self.repo!r}")


def push(options: PushOptions, api: Any = None) -> str:
    """Write the folder and upload it; return where it is.

    Args:
        options: what to push, and where.
        api: a `huggingface_hub.HfApi` (default: a new one).

    Raises:
        FileNotFoundError: the run does not exist.
        ValueError: the license differs from that of non-commercial weights.
        PermissionError: no Hugging Face token is stored.
        FileExistsError: the repository holds something else.
        OSError: the folder cannot be written, or the upload failed.
    """
    run = Run(options.run)
    if options.dry_run is not None:
        write_folder(run, options.dry_run, options.repo, options.license)
        return str(options.dry_run)
    import tempfile

    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    if api is None and get_token() is None:
        raise PermissionError(
            f"expected a Hugging Face token to upload {options.repo}, got none; log in with `hf auth login`"
        )
    with tempfile.TemporaryDirectory() as folder:
        write_folder(run, Path(folder), options.repo, options.license)
        client = HfApi() if api is None else api
        try:
            client.create_repo(options.repo, private=not options.public, exist_ok=True)
            if not options.force:
                _require_own(client.model_info(options.repo), options.repo)
            client.upload_folder(
                repo_id=options.repo,
                folder_path=folder,
                commit_message="Push a globalvit run",
                delete_patterns="*" if options.force else None,
            )
        except FileExistsError:
            raise
        except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise OSError(
                f"{options.repo} cannot be uploaded ({reason}); log in with `hf auth login`, check the network and the "
                f"name, or write the files with --dry-run FOLDER"
            ) from error
    return f"https://huggingface.co/{options.repo}"


def _require_own(info: Any, repo: str) -> None:
    """Refuse a repository with files that `push` did not write; `info` is a `huggingface_hub.ModelInfo`."""
    files = sorted(file.rfilename for file in info.siblings or () if file.rfilename != ".gitattributes")
    if files and "globalvit" not in (info.tags or ()):
        raise FileExistsError(
            f"expected a new repository or one written by globalvit push, got {repo} with {len(files)} other files, "
            f"such as {files[0]}; choose another name, or replace them with --force"
        )


def write_folder(run: Run, folder: Path, repo: str, license: str | None = None) -> None:
    """Write model.safetensors, config.json and README.md of a run's best checkpoint.

    Raises:
        ValueError: the license differs from that of non-commercial weights.
        OSError: the folder cannot be written.
    """
    from globalvit.build import open_checkpoint
    from globalvit.weights.load import MODEL_FILE, save_weights

    inherited, origin = inherited_license(run)
    if inherited and NON_COMMERCIAL in inherited and license not in (None, inherited):
        raise ValueError(
            f"the run started from {origin} under {inherited}, for non-commercial use; leave out --license {license}"
        )
    license = license or inherited
    task = open_checkpoint(run)
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / MODEL_FILE, task, task.spec, task.classes, task.preprocessing, license=license, origin=origin)
    config = {"library_name": "globalvit", "spec": task.spec.to_dict(), "classes": run.classes, "scores": run.scores}
    atomic.write_text(folder / CONFIG, json.dumps(config | {"license": license}, indent=2, ensure_ascii=False) + "\n")
    run.plot().save(folder / "curves.png")
    atomic.write_text(folder / CARD, _card(run, repo, task.kind, license, origin))


def inherited_license(run: Run) -> tuple[str | None, str | None]:
    """Return the license of the weights that a run started from, and their name; None for a run from scratch.

    Raises:
        ValueError: the weights are a file that no longer exists, so that their license is not known.
    """
    from globalvit.weights.load import find_file
    from globalvit.weights.read import read_metadata

    weights = run.config.weights
    if weights in (None, "none"):
        return None, None
    if catalog.is_name(weights):
        from globalvit.models.variants import ModelSpec

        return catalog.find(ModelSpec(model=run.config.model).backbone, weights).license, weights
    try:
        file = find_file(weights)
    except FileNotFoundError as error:
        raise ValueError(
            f"the run started from {weights}, which does not exist, so its license is not known; restore the file"
        ) from error
    if (parent := next((one for one in file.parents[:4] if (one / "config.yaml").is_file()), None)) is not None:
        license, origin = inherited_license(Run(parent))
        return license, origin or str(weights)
    record = catalog.find_file(file)
    return read_metadata(file).get("license") or (record.license if record else None), str(weights)


def _card(run: Run, repo: str, kind: str, license: str | None, origin: str | None) -> str:
    import yaml

    header = {"library_name": "globalvit", "pipeline_tag": TAGS[kind], "tags": ["globalvit", run.config.model]}
    header |= {"license": license.lower()} if license else {}
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in run.scores.items())
    names = ", ".join(run.classes[:MOST_CLASSES]) + (", …" if len(run.classes) > MOST_CLASSES else "")
    start = f"weights {origin}, license {license or 'unknown'}" if origin else "random weights"
    return f"""---
{yaml.safe_dump(header, sort_keys=False)}---

# {repo}

`{run.config.model}`, trained with globalvit on `{Path(run.config.data_dir or "unknown").name}`, from {start}.

| score | value |
|---|---|
{rows}

![loss and scores over the epochs](curves.png)

{len(run.classes)} classes: {names}

```python
import globalvit as gv

results = gv.predict("photo.jpg", checkpoint="{PREFIX}{repo}")
```
"""

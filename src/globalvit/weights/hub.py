"""Models on the Hugging Face Hub: `hf-hub:owner/name` is the folder that `globalvit push` wrote."""

import re
from functools import lru_cache
from pathlib import Path

PREFIX = "hf-hub:"
NAME = re.compile(r"[\w.-]+/[\w.-]+")
FILES = ("*.safetensors", "config.json")


@lru_cache
def fetch_folder(repo: str) -> Path:
    """Download a repository of the Hub, or find it in Hugging Face's cache, and return its folder.

    Args:
        repo: `owner/name`.

    Raises:
        ValueError: it is not `owner/name`.
        OSError: it is not in the cache and cannot be downloaded.
    """
    if not NAME.fullmatch(repo):
        raise ValueError(f"expected {PREFIX}owner/name, got {PREFIX}{repo}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, allow_patterns=list(FILES)))
    except Exception as error:
        # The client's network errors share no public class.
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise OSError(
            f"{PREFIX}{repo} cannot be downloaded ({reason}); check the name and the network, and for a private "
            f"repository log in with `hf auth login`"
        ) from error

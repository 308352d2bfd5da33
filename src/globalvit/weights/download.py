"""Fetching published weight files, and finding copies that were put in place by hand."""

import hashlib
import logging
import shutil
import urllib.request
from pathlib import Path

from globalvit.atomic import replace_with
from globalvit.weights.catalog import WeightRecord

logger = logging.getLogger(__name__)
TIMEOUT_S = 30


def copies_folder() -> Path:
    """Where copies of weight files are looked for: `globalvit` in Hugging Face's home (`HF_HOME`)."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "globalvit"


def find_copy(record: WeightRecord) -> Path | None:
    """Where the file of a record lies already, put in place by hand or fetched before; None where it does not."""
    copy = copies_folder() / record.file_name
    if copy.is_file():
        return copy
    if record.repo is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(*record.repo)
    return Path(cached) if isinstance(cached, str) else None


def download(record: WeightRecord, cache_dir: str | Path | None = None) -> Path:
    """The file of a record: a copy put in place by hand, one from the cache, or one fetched now.

    Args:
        record: which file.
        cache_dir: cache to use in place of Hugging Face's own (`HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE` hold).

    Raises:
        OSError: the file is not at hand and cannot be fetched, or is not the published one; the text names it, its
            address and the folder where a copy can be put.
    """
    copy = copies_folder() / record.file_name
    if copy.is_file():
        return _checked(copy, record)
    if record.source == "hub":
        return _checked(_from_hub(record, copy, cache_dir), record)
    return _checked(_from_url(record, copy) if record.source == "url" else _from_drive(record, copy), record)


def _from_hub(record: WeightRecord, copy: Path, cache_dir: str | Path | None) -> Path:
    from huggingface_hub import hf_hub_download

    assert record.repo is not None
    try:
        return Path(hf_hub_download(*record.repo, cache_dir=cache_dir))
    except Exception as error:
        # The client's network errors share no public class, and whatever went wrong the remedy is the same.
        raise _unreachable(record, copy, error) from error


def _from_url(record: WeightRecord, copy: Path) -> Path:
    logger.info("fetching %s", record.address)
    try:
        with (
            urllib.request.urlopen(record.address, timeout=TIMEOUT_S) as response,
            replace_with(copy) as temporary,
            temporary.open("wb") as file,
        ):
            shutil.copyfileobj(response, file)
    except OSError as error:
        raise _unreachable(record, copy, error) from error
    return copy


def _from_drive(record: WeightRecord, copy: Path) -> Path:
    raise OSError(
        f"{record.file_name} is on Google Drive, which only a browser can fetch it from: open {record.address} "
        f"and put the file into {copy.parent} as {copy.name}"
    )


def _unreachable(record: WeightRecord, copy: Path, error: Exception) -> OSError:
    reason = " ".join(str(error.__cause__ or error).split())
    return OSError(
        f"{record.file_name} is not at hand and could not be fetched from {record.address} ({reason}); connect to "
        f"the network, or put a copy into {copy.parent} as {copy.name}"
    )


def _checked(path: Path, record: WeightRecord) -> Path:
    if record.sha256 is None:
        return path
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != record.sha256:
        raise OSError(
            f"{path} is not the published {record.file_name}: its SHA-256 is {found}, expected {record.sha256}; "
            f"delete it and fetch {record.address} again"
        )
    return path

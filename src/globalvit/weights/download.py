"""Download published weight files with the client of Hugging Face, or find copies that were put in place by hand."""

import io
import logging
from pathlib import Path
from typing import Any

from globalvit.atomic import replace_with
from globalvit.weights.catalog import WeightRecord

logger = logging.getLogger(__name__)
TIMEOUT_S = 10
# Of any file that is fetched; the largest published one has 2.5 GB.
MOST_BYTES = 8 * 2**30


def copies_folder() -> Path:
    """Return the folder for copies of weight files: `globalvit` in Hugging Face's home (`HF_HOME`)."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "globalvit"


def find_copy(record: WeightRecord, cache_dir: str | Path | None = None) -> Path | None:
    """Return the path of a record's file if it was put in place by hand or downloaded before, else None."""
    copy = copies_folder() / record.file_name
    if copy.is_file():
        return copy
    if record.repo is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(*record.repo, cache_dir=cache_dir)
    return Path(cached) if isinstance(cached, str) else None


def download(record: WeightRecord, cache_dir: str | Path | None = None) -> Path:
    """Return the file of a record: a copy put in place by hand, one from the cache, or a new download.

    Args:
        record: which file.
        cache_dir: cache to use in place of Hugging Face's own (`HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE` hold).

    Raises:
        OSError: the file is not there and cannot be fetched; the text names it, its address, the folder where a copy
            can be put, and how to do without.
    """
    found = find_copy(record, cache_dir)
    if found is not None:
        return found
    copy = copies_folder() / record.file_name
    if record.source == "drive":
        raise OSError(
            f"{record.file_name} is on Google Drive, which only a browser can fetch it from: open {record.address} "
            f"and put the file into {copy.parent} as {copy.name}"
        )
    try:
        return _fetch(record, copy, cache_dir)
    except Exception as error:
        # The client's network errors share no public class, and whatever went wrong the remedy is the same.
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise OSError(
            f"{record.file_name} could not be fetched from {record.address} ({reason}); connect to the network, put a "
            f"copy into {copy.parent} as {copy.name}, or do without (--weights none, in Python weights=None)"
        ) from error


def _fetch(record: WeightRecord, copy: Path, cache_dir: str | Path | None) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download
    from huggingface_hub.file_download import http_get

    # Asked once: the download itself tries for half a minute before it says that there is no network.
    get_hf_file_metadata(record.address, token=None if record.repo else False, timeout=TIMEOUT_S)
    logger.info("downloading %s from %s", record.file_name, record.address)
    if record.repo is not None:
        return Path(hf_hub_download(*record.repo, cache_dir=cache_dir))
    with replace_with(copy) as temporary, _Bounded(temporary, "wb") as file:
        http_get(record.address, file, displayed_filename=record.file_name)  # pyright: ignore[reportArgumentType]
    return copy


class _Bounded(io.FileIO):
    """A file that takes no more than `MOST_BYTES`."""

    def write(self, data: Any, /) -> int:
        if self.tell() + len(data) > MOST_BYTES:
            raise OSError(f"it has more than {MOST_BYTES} bytes")
        return super().write(data)

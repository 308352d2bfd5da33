"""The images named on a command line: files, folders searched through, http(s) addresses; and those made of them."""

import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import unquote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from globalvit import __version__
from globalvit.cli.progress import Progress

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)
DOWNLOAD_BYTES = 64 * 2**20
DOWNLOAD_SECONDS = 60
ANSWER_SECONDS = 15
LONGEST_NAME = 255


@dataclass(frozen=True)
class Source:
    """One image to read: `name` is how the user knows it, `inside` its path within the folder that was named."""

    name: str
    inside: PurePosixPath

    @property
    def is_address(self) -> bool:
        """Whether it is to be downloaded."""
        return "://" in self.name

    def read(self) -> "Image.Image":
        """The image as RGB.

        Raises:
            OSError: it cannot be downloaded or opened.
            UnreadableImage: it is no source, or a damaged one.
            OversizedImage: it has more than 179 megapixels.
        """
        from globalvit.data.images import read_image

        return read_image(download(self.name) if self.is_address else self.name, self.name)


class Reader:
    """Reads images, leaving out, naming and remembering those that cannot be read."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.skipped: list[dict[str, str]] = []

    def read(self, images: Iterable[Source]) -> Iterator[tuple[Source, "Image.Image"]]:
        """Yield each readable image with its pixels."""
        from globalvit.data.images import UnreadableImage

        for source in images:
            self.progress.advance()
            try:
                image = source.read()
            except (OSError, UnreadableImage) as error:
                reason = " ".join(str(error).split())
                logger.warning("left out: %s", reason if source.name in reason else f"{source.name}: {reason}")
                self.skipped.append({"image": source.name, "reason": reason})
            else:
                yield source, image


class Writer:
    """Writes images into a folder, never two to one name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.taken: set[str] = set()

    def write(self, source: Source, made: "Image.Image", suffix: str = "") -> str:
        """Write what was made of a source, under its name and the suffix; return the file's path."""
        from globalvit.atomic import replace_with

        path = self.place(source, f"{suffix}.png")
        with replace_with(path) as temporary:
            made.save(temporary, "PNG")
        return str(path)

    def place(self, source: Source, ending: str) -> Path:
        """Where something made of an image goes: under its name, with this ending, or the next free number."""
        named = self.folder / source.inside
        about, dot, suffix = ending.rpartition(".")
        number = 1
        while True:
            end, stem = ending if number == 1 else f"{about}-{number}{dot}{suffix}", named.stem
            # File systems limit names to 255 bytes.
            while len(os.fsencode(stem + end)) > LONGEST_NAME:
                stem = stem[:-1]
            path = named.with_name(stem + end)
            # Names that differ only in case are one name for Windows and macOS.
            if str(path).casefold() not in self.taken:
                self.taken.add(str(path).casefold())
                return path
            number += 1


def find_images(words: Sequence[str]) -> list[Source]:
    """All images that `words` name, folders searched through in the order of code points.

    Raises:
        FileNotFoundError: a word names neither a file nor a folder.
        ValueError: an address is not http or https, or a folder holds no source.
    """
    return [image for word in words for image in _expand(word)]


def download(address: str) -> bytes:
    """Fetch an http(s) address, at most 64 MiB in at most a minute.

    Raises:
        OSError: no answer, too much, or too slow; the text names the address.
    """
    request = Request(address, headers={"User-Agent": f"globalvit/{__version__}"})
    try:
        with build_opener(_HttpRedirects()).open(request, timeout=ANSWER_SECONDS) as answer:
            return _read_bounded(answer, address)
    except (OSError, ValueError) as error:
        if isinstance(error, DownloadError):
            raise
        raise DownloadError(f"{address} cannot be downloaded: {error}") from error


class DownloadError(OSError):
    """An address gave no image; the text says which and why."""


class _HttpRedirects(HTTPRedirectHandler):
    """Follows redirections to http and https only."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _check_scheme(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _expand(word: str) -> Iterator[Source]:
    if "://" in word:
        _check_scheme(word)
        yield Source(word, _last_part(word))
        return
    path = Path(word)
    if path.is_dir():
        yield from _search(path)
    elif path.exists():
        yield Source(str(path), PurePosixPath(path.name))
    else:
        raise FileNotFoundError(f"{word} does not exist; give images, folders or http(s) addresses")


def _search(folder: Path) -> Iterator[Source]:
    from globalvit.data.images import SUFFIXES
    from globalvit.data.walk import search

    found = search(folder)
    found.warn()
    if not found.images:
        raise ValueError(f"folder {folder} holds no images; looked for {', '.join(sorted(SUFFIXES))}")
    for path in found.images:
        yield Source(str(folder / path), PurePosixPath(path))


def _last_part(address: str) -> PurePosixPath:
    return PurePosixPath(PurePosixPath(unquote(urlsplit(address).path)).name or "image")


def _check_scheme(address: str) -> None:
    scheme = urlsplit(address).scheme.lower()
    if scheme not in ("http", "https"):
        raise ValueError(f"{address} is a {scheme} address; only http and https are downloaded")


def _read_bounded(answer: BinaryIO, address: str) -> bytes:
    data, stop = bytearray(), time.monotonic() + DOWNLOAD_SECONDS
    while part := answer.read(2**16):
        data += part
        if len(data) > DOWNLOAD_BYTES:
            raise DownloadError(f"{address} is larger than {DOWNLOAD_BYTES // 2**20} MiB; download and shrink it first")
        if time.monotonic() > stop:
            raise DownloadError(f"{address} did not arrive within {DOWNLOAD_SECONDS} s; download it first")
    return bytes(data)

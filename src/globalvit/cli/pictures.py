"""The pictures named on a command line: files, folders searched through, http(s) addresses; and those made of them."""

import logging
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


@dataclass(frozen=True)
class Picture:
    """One picture to read: `name` is how the user knows it, `inside` its path within the folder that was named."""

    name: str
    inside: PurePosixPath

    @property
    def is_address(self) -> bool:
        """Whether it is to be downloaded."""
        return "://" in self.name

    def read(self) -> "Image.Image":
        """The picture as RGB.

        Raises:
            OSError: it cannot be downloaded or opened.
            UnreadableImage: it is no picture, or a damaged one.
            OversizedImage: it has more than 179 megapixels.
        """
        from globalvit.data.images import read_image

        return read_image(download(self.name) if self.is_address else self.name, self.name)


class Reader:
    """Reads pictures, leaving out, naming and remembering those that cannot be read."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.skipped: list[dict[str, str]] = []

    def read(self, pictures: Iterable[Picture]) -> Iterator[tuple[Picture, "Image.Image"]]:
        """Yield each readable picture with its pixels."""
        from globalvit.data.images import UnreadableImage

        for picture in pictures:
            self.progress.advance()
            try:
                image = picture.read()
            except (OSError, UnreadableImage) as error:
                reason = " ".join(str(error).split())
                logger.warning("left out: %s", reason if picture.name in reason else f"{picture.name}: {reason}")
                self.skipped.append({"image": picture.name, "reason": reason})
            else:
                yield picture, image


class Writer:
    """Writes pictures into a folder, never two to one name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.taken: set[Path] = set()

    def write(self, picture: Picture, made: "Image.Image", suffix: str = "") -> str:
        """Write what was made of a picture, under its name and the suffix; return the file's path."""
        from globalvit.atomic import replace_with

        path = self.place(picture, f"{suffix}.png")
        with replace_with(path) as temporary:
            made.save(temporary, "PNG")
        return str(path)

    def place(self, picture: Picture, ending: str) -> Path:
        """Where something made of a picture goes: under its name, with this ending, or the next free number."""
        named = self.folder / picture.inside
        wanted = named.with_name(f"{named.stem}{ending}")
        path, number = wanted, 1
        while path in self.taken:
            number += 1
            path = wanted.with_stem(f"{wanted.stem}-{number}")
        self.taken.add(path)
        return path


def find_pictures(words: Sequence[str]) -> list[Picture]:
    """All pictures that `words` name, folders searched through in the order of code points.

    Raises:
        FileNotFoundError: a word names neither a file nor a folder.
        ValueError: an address is not http or https, or a folder holds no picture.
    """
    return [picture for word in words for picture in _expand(word)]


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
    """An address gave no picture; the text says which and why."""


class _HttpRedirects(HTTPRedirectHandler):
    """Follows redirections to http and https only."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _check_scheme(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _expand(word: str) -> Iterator[Picture]:
    if "://" in word:
        _check_scheme(word)
        yield Picture(word, _last_part(word))
        return
    path = Path(word)
    if path.is_dir():
        yield from _search(path)
    elif path.exists():
        yield Picture(str(path), PurePosixPath(path.name))
    else:
        raise FileNotFoundError(f"{word} does not exist; give pictures, folders or http(s) addresses")


def _search(folder: Path) -> Iterator[Picture]:
    from globalvit.data.images import SUFFIXES

    inside = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    found = sorted(
        path.as_posix()
        for path in inside
        if path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts)
    )
    if not found:
        raise ValueError(f"folder {folder} holds no pictures; looked for {', '.join(sorted(SUFFIXES))}")
    for path in found:
        yield Picture(str(folder / path), PurePosixPath(path))


def _last_part(address: str) -> PurePosixPath:
    return PurePosixPath(PurePosixPath(unquote(urlsplit(address).path)).name or "picture")


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

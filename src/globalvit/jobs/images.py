"""Input images (files, folders, patterns, URLs, images in memory) and the files written for them."""

import glob
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

from globalvit.console import Progress
from globalvit.jobs.fetch import check_address, download
from globalvit.regular import check_regular, irregular

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)
# Maximum bytes of a file name.
LONGEST_NAME = 255
# Failures listed in the summary.
MOST_LISTED = 20

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """One image to read: `name` is shown to the user, `inside` is its path within the given folder."""

    name: str
    inside: PurePosixPath

    @property
    def is_address(self) -> bool:
        """Whether it must be downloaded."""
        return "://" in self.name

    def read(self, channels: int = 3) -> "Image.Image":
        """Read the image as RGB, or with the four channels that a model takes.

        Raises:
            OSError: it cannot be downloaded or opened, or is not a regular file.
            UnreadableImage: it is not an image, or a damaged one.
            OversizedImage: it has more than 179 megapixels.
        """
        from globalvit.data.common.images import read_image

        if not self.is_address:
            return read_image(self.name, self.name, channels)
        data = download(self.name)
        if data[:200].lstrip().lower().startswith((b"<!doctype html", b"<html")):
            raise OSError(f"{self.name} is a web page, not an image; give the URL of the image file itself")
        return read_image(data, self.name, channels)


@dataclass(frozen=True)
class Given(Source):
    """An image in memory: a PIL image, an RGB uint8 array (H, W, 3) or a preprocessed float tensor (C, H, W)."""

    image: Any = field(repr=False, default=None)

    def read(self, channels: int = 3) -> Any:
        """Return the image as RGB or with four channels, or a tensor unchanged.

        Raises:
            ValueError: it is something else.
        """
        from torch import Tensor

        from globalvit.tasks.inputs import as_image

        return self.image if isinstance(self.image, Tensor) else as_image(self.image, channels)


@dataclass(frozen=True)
class Missing(Source):
    """An image that was given but does not exist."""

    error: Exception = field(default_factory=FileNotFoundError)

    def read(self, channels: int = 3) -> "Image.Image":  # noqa: ARG002 - there is no image
        """Raise the reason."""
        raise self.error


class Failure(NamedTuple):
    """An image or command-line argument without an answer, and the reason in one line."""

    image: str
    reason: str


class Found(NamedTuple):
    """The images that the command-line arguments match, and what was wrong with some of the arguments."""

    images: list[Source]
    failures: list[Failure]


class Reader:
    """Reader of images one after another; those that fail are logged and kept in `failures`.

    Args:
        failures: failures known before the first image is read.
        progress: counts the images.
    """

    def __init__(self, failures: Iterable[Failure], progress: Progress) -> None:
        self.progress = progress
        self.failures: list[Failure] = []
        for failure in failures:
            self.fail(*failure)

    def read(
        self, images: Iterable[Source], prepare: Callable[["Image.Image"], T], channels: int = 3
    ) -> Iterator[tuple[Source, T]]:
        """Yield each readable image, of as many channels, with the result of `prepare`."""
        for source in images:
            self.progress.advance()
            try:
                prepared = prepare(source.read(channels))
            except (OSError, ValueError, MemoryError) as error:
                self.fail(source.name, error)
            else:
                yield source, prepared

    def fail(self, image: str, error: Exception | str) -> None:
        """Log and store the reason why an image has no answer."""
        reason = error if isinstance(error, str) else _one_line(error)
        reason = reason if image in reason else f"{image}: {reason}"
        logger.warning("skipped: %s", reason)
        self.failures.append(Failure(image, reason))

    def finish(self, total: int) -> int:
        """Log a summary of the images without an answer; return the command's exit status.

        Args:
            total: number of images requested, including those without an answer.
        """
        if not self.failures:
            return 0
        names = [failure.image for failure in self.failures]
        more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
        listed = ", ".join(names[:MOST_LISTED])
        logger.warning("skipped %d of %d images: %s%s", len(names), total, listed, more)
        return 1


class StrictReader(Reader):
    """Reader that raises the first error."""

    def fail(self, image: str, error: Exception | str) -> None:
        """Raise the reason why an image has no answer, with the image's name in the message."""
        if isinstance(error, Exception) and image in str(error):
            raise error
        reason = error if isinstance(error, str) else _one_line(error)
        kind = MemoryError if isinstance(error, MemoryError) else ValueError
        raise kind(f"{image}: {reason}") from (error if isinstance(error, Exception) else None)


class Writer:
    """Writer of images into a folder, never two under one name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.taken: set[str] = set()

    def write(self, source: Source, made: "Image.Image", suffix: str = "") -> str:
        """Write an image made from a source, under its name and the suffix; return the file's path."""
        from globalvit.atomic import replace_with

        path = self.place(source, f"{suffix}.png")
        with replace_with(path) as temporary:
            made.save(temporary, "PNG")
        return str(path)

    def place(self, source: Source, ending: str) -> Path:
        """Return the path for a file made from an image: its name with this ending, or the next free number."""
        named = self.folder / source.inside
        about, dot, suffix = ending.rpartition(".")
        number = 1
        while True:
            end, stem = ending if number == 1 else f"{about}-{number}{dot}{suffix}", named.stem
            # File systems limit names to 255 bytes.
            while len(os.fsencode(stem + end)) > LONGEST_NAME:
                stem = stem[:-1]
            path = named.with_name(stem + end)
            # Windows and macOS treat names that differ only in case as equal.
            if str(path).casefold() not in self.taken:
                self.taken.add(str(path).casefold())
                return path
            number += 1


def find_images(words: Sequence[str]) -> Found:
    """Find all images that `words` match; folders are searched in code-point order.

    Raises:
        ValueError: no word matches an image; the message is about the first word.
    """
    images: list[Source] = []
    failures: list[Failure] = []
    for word in words:
        try:
            images.extend(_expand(word, failures))
        except (OSError, ValueError) as error:
            failures.append(Failure(word, _one_line(error)))
    if not images:
        more = f" (and {len(failures) - 1} more like it)" if len(failures) > 1 else ""
        raise ValueError(f"{failures[0].reason}{more}")
    return Found(images, failures)


def sources_of(images: Any) -> list[Source] | Iterator[Source]:
    """Return sources for images given in Python; an iterator gives an iterator, which is read lazily.

    Args:
        images: path of an image or folder, a pattern, a URL, an image in memory, or several of these.

    Raises:
        ValueError: it is something else.
    """
    # An open file iterates over its lines; a path or an image is a single item.
    is_one = isinstance(images, str | os.PathLike) or hasattr(images, "read") or getattr(images, "ndim", None) == 3
    if isinstance(images, Iterator) and not is_one:
        return (source for number, image in enumerate(images) for source in _given(image, number))
    if is_one or not isinstance(images, Iterable):
        images = [images]
    return [source for number, image in enumerate(images) for source in _given(image, number)]


def _given(image: Any, number: int) -> Iterator[Source]:
    if not isinstance(image, str | os.PathLike):
        yield Given(f"images[{number}]", PurePosixPath(f"image-{number}"), image)
        return
    word, failures = os.fspath(image), []
    try:
        yield from _expand(word, failures)
    except (OSError, ValueError) as error:
        yield Missing(word, PurePosixPath(Path(word).name), error)
    for failure in failures:
        yield Missing(failure.image, PurePosixPath(Path(failure.image).name), OSError(failure.reason))


def _expand(word: str, failures: list[Failure]) -> Iterator[Source]:
    if "://" in word:
        check_address(word)
        yield Source(word, _last_part(word))
        return
    if not word:
        raise ValueError("expected an image, folder or http(s) URL, got an empty name")
    path = Path(word)
    if path.is_dir():
        yield from _search(path, failures)
    elif os.path.lexists(word):
        check_regular(word)
        yield Source(str(path), PurePosixPath(path.name))
    elif glob.has_magic(word):
        found = sorted(glob.glob(word, recursive=True))  # noqa: PTH207 - a pattern may be absolute
        if not found:
            raise FileNotFoundError(f"no file matches {word}; give images, folders, patterns or http(s) URLs")
        for one in found:
            yield from _expand(one, failures)
    else:
        raise FileNotFoundError(f"{word} does not exist; give images, folders or http(s) URLs")


def _search(folder: Path, failures: list[Failure]) -> Iterator[Source]:
    """Yield the images below a folder, following links to folders once; unreadable folders go to `failures`."""
    from globalvit.data.common.images import SUFFIXES
    from globalvit.data.common.walk import search

    found = search(folder, once=True)
    replace(found, unreadable=[]).warn()
    if others := found.others - len(found.irregular):
        logger.info("%s: skipped %d files without an image extension, such as %s", folder, others, found.other)
    failures += [Failure(path, f"{path} cannot be read; change its permissions") for path in found.unreadable]
    failures += [Failure(path, f"{path} {irregular(os.stat(path).st_mode)}") for path in found.irregular]  # noqa: PTH116
    if not found.images and not found.unreadable and not found.irregular:
        raise ValueError(f"no images in folder {folder}; expected files ending in {', '.join(sorted(SUFFIXES))}")
    for path in found.images:
        yield Source(str(folder / path), PurePosixPath(path))


def _one_line(error: Exception) -> str:
    if isinstance(error, MemoryError) and not str(error):
        return "out of memory; make the image smaller"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {os.fsdecode(error.filename)}"
    return " ".join(str(error).split()) or type(error).__name__


def _last_part(address: str) -> PurePosixPath:
    """Return the file name at the end of a URL, without characters that file systems reject."""
    try:
        name = PurePosixPath(unquote(urlsplit(address).path)).name
    except ValueError:
        name = ""
    name = "".join(letter if letter.isprintable() else "_" for letter in name)
    return PurePosixPath("image" if name in ("", ".", "..") else name)

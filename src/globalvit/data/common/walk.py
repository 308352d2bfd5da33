"""Search folders for images: symbolic links are followed, cycles and folders that cannot be read are reported.

Every command searches folders with this module, so that training, prediction and checks see the same files.
"""

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

from globalvit.data.common.images import SUFFIXES

# Folders that operating systems, NAS devices and archives leave behind; thumbnails in them must not be trained on.
JUNK_FOLDERS = frozenset(
    {"@eadir", "__macosx", "#recycle", "@recycle", "@recycler", "$recycle.bin", "lost+found", "__pycache__"}
    | {"system volume information"}
)
JUNK_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
MOST_NAMED = 3

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Found:
    """The files below a folder.

    Attributes:
        images: paths relative to the folder, sorted.
        others: number of visible files that are not images.
        other: the first of these.
        irregular: pipes, sockets and devices that are named as images.
        unreadable: folders that could not be read.
        cycles: links to a folder that contains them.
        children: number of images directly in each folder, by the folder's path relative to the one searched.
    """

    images: list[str] = field(default_factory=list)
    others: int = 0
    other: str = ""
    irregular: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    cycles: list[str] = field(default_factory=list)
    children: dict[str, int] = field(default_factory=dict)

    def warn(self) -> None:
        """Log what was left out, one line per kind."""
        if self.unreadable:
            logger.warning(
                "folders that cannot be read are left out (%d): %s; change their permissions",
                len(self.unreadable),
                _first(self.unreadable),
            )
        if self.cycles:
            logger.warning(
                "links that lead back to a folder above them are not followed (%d): %s",
                len(self.cycles),
                _first(self.cycles),
            )


def search(root: str | os.PathLike[str], below: str = "", *, once: bool = False) -> Found:
    """Search a folder for images.

    Args:
        root: the folder that paths are relative to.
        below: the folder to search, relative to `root`.
        once: search a folder that several links lead to only once.
    """
    found = Found()
    start = os.path.join(root, below) if below else os.fspath(root)  # noqa: PTH118 (a million)
    prefix = below.replace(os.sep, "/") + "/" if below else ""
    _search(start, prefix, frozenset(), found, set() if once else None)
    found.images.sort()
    return found


def visible_folders(root: Path) -> list[str]:
    """Return the names of the visible folders in a folder, sorted; raises OSError if it cannot be read."""
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if is_visible(entry.name) and _is_folder(entry))


def is_visible(name: str) -> bool:
    """Return whether a file or folder is neither hidden nor left behind by a system; macOS writes `._photo.jpg`."""
    return not name.startswith(".") and name.lower() not in JUNK_FOLDERS and name.lower() not in JUNK_FILES


def is_image(name: str) -> bool:
    """Return whether a file's name is that of a visible image."""
    return os.path.splitext(name)[1].lower() in SUFFIXES and is_visible(name)  # noqa: PTH122 (a million)


def _search(
    folder: str,
    prefix: str,
    above: frozenset[tuple[int, int]],
    found: Found,
    seen: set[tuple[int, int]] | None,
) -> None:
    """Add what lies in a folder to `found`; `above` are the folders around it, `seen` all those searched before."""
    try:
        about = os.stat(folder)  # noqa: PTH116 (a million)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        found.unreadable.append(folder)
        return
    identity = (about.st_dev, about.st_ino)
    # Windows and some network file systems have no inode numbers.
    if about.st_ino and identity in above:
        found.cycles.append(folder)
        return
    if seen is not None and about.st_ino:
        if identity in seen:
            return
        seen.add(identity)
    inside = above | {identity}
    images = [entry.name for entry in entries if is_image(entry.name) and _is_file(entry)]
    found.images += [prefix + name for name in images]
    if images:
        found.children[prefix.rstrip("/")] = len(images)
    for entry in entries:
        if not is_visible(entry.name):
            continue
        if _is_folder(entry):
            _search(entry.path, f"{prefix}{entry.name}/", inside, found, seen)
        elif not is_image(entry.name):
            found.others += 1
            found.other = min(found.other or entry.path, entry.path)
        elif not _is_file(entry):
            found.others += 1
            found.irregular.append(entry.path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry can be opened as a file; a broken link counts, so that reading it names it."""
    try:
        return entry.is_file() or (entry.is_symlink() and not entry.is_dir())
    except OSError:
        return True


def _first(names: list[str]) -> str:
    rest = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")

"""The folders of a data set, whichever task it is for."""

import logging
import os
import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from globalvit.closest import suggest
from globalvit.data.common.splits import NoSplitError, choose_split, role_of
from globalvit.data.common.walk import is_image, visible_folders

logger = logging.getLogger(__name__)

# Names that stand for sets which come with the package.
DIGITS, SHAPES = "digits", "shapes"
BUILT_IN = (DIGITS, SHAPES)
MOST_NAMED = 10
# COCO has it at the end of the names of splits.
YEAR = "2017"
_DRIVE = re.compile(r"[A-Za-z]:/")
# The file in the folder of an LMDB database.
DATABASE = "data.mdb"


def split_folders(data_dir: Path) -> list[str]:
    """Names of the visible folders in `data_dir`, sorted.

    Raises:
        FileNotFoundError, NotADirectoryError, PermissionError: the folder does not exist, or it cannot be read.
    """
    if not data_dir.exists():
        built_in = " or ".join(BUILT_IN)
        hint = suggest(str(data_dir), BUILT_IN) or f" Give an existing folder, or {built_in} for built-in images."
        raise FileNotFoundError(f"data folder {data_dir} does not exist.{hint}")
    if not data_dir.is_dir():
        raise NotADirectoryError(f"{data_dir} is a file; give the folder that holds train/ and val/")
    return visible_folders(data_dir)


def listed(names: Sequence[str], most: int = MOST_NAMED) -> str:
    """At most ten names for a message, and how many more there are."""
    rest = len(names) - most
    return ", ".join(map(repr, names[:most])) + (f" and {rest} more" if rest > 0 else "")


def is_built_in(data_dir: str | PathLike[str], *names: str) -> bool:
    """Whether `data_dir` is one of the built-in sets `names`; that a folder is called so too is logged."""
    if str(data_dir) not in names:
        return False
    if Path(data_dir).is_dir():
        logger.warning("%s is the built-in set; for the folder of that name write ./%s", data_dir, data_dir)
    return True


def is_database(root: Path) -> bool:
    """Whether a folder is an LMDB database."""
    return (root / DATABASE).is_file()


def is_image_folder(folder: Path) -> bool:
    """Whether images lie in a folder, not below it."""
    try:
        return any(is_image(path.name) for path in folder.iterdir())
    except OSError:
        return False


def other_level(data_dir: Path) -> str:
    """A hint at the folder that may be meant in place of `data_dir`, which holds no splits."""
    folders = split_folders(data_dir)
    if any(map(role_of, folders)):
        return ""
    if role_of(data_dir.absolute().name) is not None and folders:
        return f". {data_dir} looks like a split: did you mean its parent, {data_dir.absolute().parent}?"
    for name in folders:
        if "train" in map(role_of, _inner_folders(data_dir / name)) or (data_dir / name / "annotations").is_dir():
            return f". Did you mean {data_dir / name}?"
    if any(is_image_folder(data_dir / name) for name in folders):
        return f". If these folders are classes, make the splits with: globalvit data split {data_dir} OUTPUT"
    if is_image_folder(data_dir):
        return f". To classify its images with a trained model: globalvit predict {data_dir} --checkpoint RUN"
    return ""


def _inner_folders(folder: Path) -> list[str]:
    try:
        return visible_folders(folder)
    except OSError:
        return []


def images_of_split(data_dir: Path, split: str) -> Path:
    """The folder of a split's images, whichever task the data are for; labels are not looked for.

    Raises:
        NoSplitError: there is none; the text says which there are.
        ValueError: several may be meant.
    """
    names = split_folders(data_dir)
    bases = [data_dir / "images", data_dir] if "images" in names else [data_dir]
    for base in bases:
        # COCO's folders end in the year.
        folders = {name.removesuffix(YEAR): name for name in reversed(visible_folders(base))}
        chosen = choose_split(split, folders, data_dir, exact=True)
        if chosen is not None:
            root = base / folders[chosen]
            return root / "images" if (root / "images").is_dir() else root
    raise NoSplitError(f"no folder of the split {split!r} in {data_dir}; it holds {listed(names) or 'none'}")


def placed(root: Path, name: str) -> Path:
    """Return where an image lies; a backslash in its name parts folders, unless a file has it in its own name."""
    path = root / name
    return path if "\\" not in name or path.is_file() else root / name.replace("\\", "/")


def is_below(folder: Path, path: Path) -> bool:
    """Whether a path lies in a folder, as it is written: links in the folder are the user's own."""
    base, inner = (Path(os.path.abspath(one)) for one in (folder, path))  # noqa: PTH100 (links stay as they are)
    return inner.is_relative_to(base)


def leaves(data_dir: Path, root: Path, name: str) -> bool:
    """Whether a file name leads out of a folder; links that lie in the folder are the user's own.

    Args:
        data_dir: the folder.
        root: the folder below it that the name is relative to.
        name: with slashes or backslashes.
    """
    plain = name.replace("\\", "/")
    if not (plain.startswith("/") or ".." in plain or plain[1:2] == ":"):
        return False
    if _DRIVE.match(plain):
        return True
    base, path = os.path.abspath(data_dir), os.path.abspath(root / plain)  # noqa: PTH100 (links stay as they are)
    return os.path.commonpath([base, path]) != base

"""Where a COCO data set keeps its annotations and images, as COCO itself and labeling tools write it."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from globalvit.data.common.folders import YEAR, leaves, listed, placed, split_folders
from globalvit.data.common.splits import names_of, role_of
from globalvit.data.detection.coco_json import CocoTable, read_coco
from globalvit.data.detection.formats import Annotated
from globalvit.data.storage.tar_files import shards_in

ANNOTATIONS = "annotations"
_FILE = re.compile(rf"(?:instances_)?(?P<split>.+?)(?:{YEAR})?\.json")
# Roboflow writes this file beside the images of each split.
BESIDE = "_annotations.coco.json"
# Folders of images, and what COCO's splits end in.
IMAGES = ("images", "JPEGImages")
YEARS = (YEAR, "")
# So many images, from the first to the last of the file, are looked for in a folder before another is tried.
MOST_TRIED = 20
HEAD_BYTES = 65536
_LISTS = re.compile(rb'^\s*\{.*"(?:images|annotations|categories)"\s*:', re.DOTALL)
# More files than this are one file per image, as of labelme.
MOST_FILES = 50


class CocoFormat:
    """COCO's JSON, one file per split, in the layouts of COCO, Roboflow, CVAT, Label Studio and labelme2coco."""

    name = "coco"

    def matches(self, folder: Path) -> bool:
        """Whether a folder holds a file of annotations."""
        return bool(annotation_files(folder))

    def describe(self, folder: Path) -> str:
        """The file of annotations of the first split."""
        return f"COCO's JSON, {next(iter(annotation_files(folder).values())).relative_to(folder).as_posix()}"

    def splits(self, folder: Path) -> Sequence[str]:
        """Names of the splits that have a file of annotations."""
        return list(annotation_files(folder))

    def open(
        self,
        folder: Path,
        split: str,
        classes: Sequence[str] | None = None,  # noqa: ARG002 - the file has its own list of classes
        *,
        crowd_as_instances: bool = False,
    ) -> Annotated:
        """Read the annotations of one split and find its images; see `open_file`."""
        return open_file(annotation_files(folder)[split], folder, split, crowd_as_instances=crowd_as_instances)


def open_file(path: Path, data_dir: Path, split: str, *, crowd_as_instances: bool = False) -> Annotated:
    """Read a file of annotations and find its images.

    Raises:
        FileNotFoundError: none of its images is found.
        ValueError: the file cannot be used, or a file name leads out of `data_dir`.
    """
    table = read_coco(path, crowd_as_instances=crowd_as_instances)
    return Annotated(table, lambda: image_folder(data_dir, split, table))


def given_file(data_dir: Path, annotations: Path) -> Path:
    """Return a file of annotations that the user named, relative to `data_dir` or not.

    Raises:
        FileNotFoundError: it does not exist.
    """
    tried = [data_dir / annotations, data_dir / ANNOTATIONS / annotations, annotations]
    for path in tried:
        if path.is_file():
            return path
    raise FileNotFoundError(f"no file of annotations {annotations}; looked for {', '.join(map(str, tried))}")


def annotation_files(data_dir: Path) -> dict[str, Path]:
    """Return the file of annotations of each split; of `instances_train2017.json` and `instances_train.json` the first.

    A single file that names no split, such as CVAT's `instances_default.json`, holds the images to train on.

    Raises:
        FileNotFoundError, NotADirectoryError: the folder does not exist.
        ValueError: several files may be meant, and none is named as a split.
    """
    folders = split_folders(data_dir)
    files = {name: data_dir / name / BESIDE for name in folders if (data_dir / name / BESIDE).is_file()}
    if ANNOTATIONS in folders:
        inner = _json_files(data_dir / ANNOTATIONS)
        found = [path for path in inner if path.name.startswith("instances_")]
        files |= _by_split(found or [path for path in inner if _is_coco(path)], data_dir)
    if not files:
        for name in filter(role_of, folders):
            inner = _json_files(data_dir / name)
            for path in inner if len(inner) <= MOST_FILES else ():
                if _is_coco(path):
                    files[name] = path
    if not files:
        # Beside its images, Roboflow's file is of one split: the data are the folder above.
        loose = [path for path in _json_files(data_dir) if path.name != BESIDE]
        files = _by_split([path for path in loose if _is_coco(path)] if len(loose) <= MOST_FILES else [], data_dir)
    return dict(sorted(files.items()))


def _json_files(folder: Path) -> list[Path]:
    """The visible JSON files in a folder, from the last name to the first."""
    return sorted((path for path in folder.glob("*.json") if path.is_file() and path.name[0] != "."), reverse=True)


def _is_coco(path: Path) -> bool:
    with path.open("rb") as file:
        # Whatever the encoding: UTF-16 has zeros between the letters, and either may begin with a byte order mark.
        head = file.read(HEAD_BYTES).replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xfe\xff")
    return _LISTS.search(head) is not None


def _by_split(paths: Sequence[Path], data_dir: Path) -> dict[str, Path]:
    """Files by the split that their names state; one that states none is `train`."""
    named: dict[str, Path] = {}
    for path in paths:
        match = _FILE.fullmatch(path.name)
        assert match is not None
        words = [word for word in re.split(r"[^a-z]+", match["split"].casefold()) if role_of(word)]
        named[match["split"] if path.name.startswith("instances_") or not words else words[0]] = path
    if any(map(role_of, named)) or not named:
        return named
    if len(named) > 1:
        names = listed([path.relative_to(data_dir).as_posix() for path in named.values()])
        raise ValueError(
            f"{data_dir} holds {len(named)} files of annotations and none is named as a split: {names}; choose with "
            "--train-annotations FILE and --val-annotations FILE"
        )
    (path,) = named.values()
    return {"train": path}


def image_folder(data_dir: Path, split: str, table: CocoTable) -> Path:
    """Return the first of the usual folders in which one of the images lies, or else the first that holds shards.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a file name leads out of `data_dir`.
    """
    match = _FILE.fullmatch(table.path.name)
    own = match["split"] if match else split
    below = [f"{name}{year}" for name in dict.fromkeys((split, own, *names_of(split))) for year in YEARS]
    # Folders that differ from these in case count too.
    alike = [name for name in split_folders(data_dir) if name.casefold() in below and name not in below]
    beside = [table.path.parent] if table.path.name == BESIDE else []
    named = [data_dir / name for name in (*alike, *below)]
    inner = [data_dir / images / path.name for images in IMAGES[:1] for path in named]
    folders = [*beside, *named, *inner, *(data_dir / images for images in IMAGES), data_dir]
    tried = np.linspace(0, len(table.names) - 1, MOST_TRIED, dtype=int)
    names = [table.names[index] for index in np.unique(tried).tolist()]
    for folder in folders:
        if any(not leaves(data_dir, folder, name) and placed(folder, name).is_file() for name in names):
            _check_names(data_dir, folder, table)
            return folder
    _check_names(data_dir, folders[0], table)
    packed = next(filter(shards_in, folders), None)
    if packed:
        return packed
    raise FileNotFoundError(
        f"none of the {len(names)} images of {table.path} looked for is there, such as {names[0]!r}; looked in "
        f"{', '.join(map(str, folders))}"
    )


def _check_names(data_dir: Path, root: Path, table: CocoTable) -> None:
    """Refuse file names that lead out of the data set's folder: a file of annotations must not open other files."""
    for at in range(len(table.names)):
        name = table.names[at]
        if leaves(data_dir, root, name):
            raise ValueError(
                f"{table.path}: image {table.image_ids[at]} has file_name {name!r}, which leads out of {data_dir}; "
                "expected a path below the folder of the images: make it relative, or give the folder that holds "
                "all as --data-dir"
            )

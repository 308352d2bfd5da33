"""Packs images with labels into tar shards as WebDataset reads them; the files' bytes stay as they are.

    DST/SPLIT/000000.tar    DST/classes.json                            classes, or label maps
    DST/SPLIT/000000.tar    DST/annotations/instances_SPLIT.json        objects, in COCO's form

Nothing appears under its name before all shards are on the disk; what a killed build leaves is removed by the next.
"""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from globalvit import atomic
from globalvit.data.classification.dataset import open_split
from globalvit.data.common.folders import is_database, listed, placed, split_folders
from globalvit.data.common.formats import choose_format
from globalvit.data.common.images import SUFFIXES
from globalvit.data.common.samples import Source
from globalvit.data.common.splits import role_of
from globalvit.data.detection.coco import ANNOTATIONS
from globalvit.data.detection.coco_json import CocoTable
from globalvit.data.detection.dataset import find_format
from globalvit.data.detection.registry import FORMATS
from globalvit.data.segmentation import dataset as masks
from globalvit.data.segmentation.class_table import find_class_file
from globalvit.data.segmentation.dataset import MaskListing, find_folders
from globalvit.data.storage.shard_masks import MASK, PNG
from globalvit.data.storage.shards import ShardImages
from globalvit.data.storage.tar_files import shards_in
from globalvit.data.storage.tar_index import FILE_NAME, LABEL_FILE_NAME
from globalvit.regular import check_regular

MEBIBYTE = 2**20
# Of a key, so that names of members sort as they were packed.
DIGITS, SHARD_DIGITS = 9, 6
CLASS_FILE = "classes.json"


@dataclass(frozen=True, slots=True)
class Packed:
    """What one split became: images, shards, and bytes of the shards."""

    split: str
    images: int
    shards: int
    total_bytes: int


# Suffixes of a sample's members with what they hold: a file, or the bytes themselves.
Sample = dict[str, str | bytes]
# Names below the target folder with their content.
Files = dict[str, bytes]


def pack(
    src: Path,
    dst: Path,
    *,
    splits: Sequence[str] | None = None,
    form: str | None = None,
    shard_size: int = 500,
    on_start: Callable[[int], None] = lambda _: None,
    on_image: Callable[[], None] = lambda: None,
) -> list[Packed]:
    """Pack the splits of a folder.

    Args:
        src: the data set: class folders, a table of labels, images with label maps, or images with objects.
        dst: a new or an empty folder.
        splits: the splits to pack; None takes all.
        form: name of the format of images with objects; None finds it.
        shard_size: MiB after which a shard is closed.
        on_start: called with the number of images before the first is packed.
        on_image: called after each image.

    Raises:
        FileNotFoundError, NotADirectoryError: the folder or a split does not exist.
        ValueError: labels that cannot be used, or a target that is part of the source or not empty.
        OSError: a file cannot be read, or the disk is full.
    """
    chosen = choose_format(FORMATS, src, form) if form or src.is_dir() else None
    there = chosen.splits(src) if chosen else masks.find_splits(src)
    names = list(dict.fromkeys(splits or there or filter(role_of, split_folders(src))))
    if not names:
        raise FileNotFoundError(f"{src} has no split to pack; expected {src}/train, or its name by --splits NAME")
    if dst.resolve().is_relative_to(src.resolve()):
        raise ValueError(f"{dst} lies in {src}, the folder to pack; give another one")
    atomic.remove_leftovers(dst)
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise ValueError(f"{dst} is not an empty folder; give a new or an empty one")
    if chosen:
        files, contents = _object_set(src, names, chosen.name)
    else:
        files, contents = (_mask_set if there else _class_set)(src, names)
    on_start(sum(map(len, contents.values())))
    dst.mkdir(parents=True, exist_ok=True)
    folder = atomic.temporary_folder(dst)
    try:
        most = shard_size * MEBIBYTE
        packed = [_write(samples, folder / name, most, on_image) for name, samples in contents.items()]
        for name, data in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            atomic.write_bytes(folder / name, data)
        for path in sorted(folder.iterdir()):
            path.rename(dst / path.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    atomic.sync(dst)
    return packed


def _class_set(src: Path, names: Sequence[str]) -> tuple[Files, dict[str, list[Sample]]]:
    """The class file, and the samples of each split; labels are those of the training split."""
    sources: dict[str, Source] = {}
    classes: tuple[str, ...] | None = None
    for name in sorted(names, key=lambda name: role_of(name) != "train"):
        source = open_split(src, name, classes, exact=True)
        if is_database(src / name) or isinstance(source, ShardImages):
            raise _packed_already(src, name)
        sources[name], classes = source, classes or source.classes
    samples = {name: list(_class_samples(src / name, source)) for name, source in sources.items()}
    return {CLASS_FILE: json.dumps(classes, indent=0).encode()}, samples


def _mask_set(src: Path, names: Sequence[str]) -> tuple[Files, dict[str, list[Sample]]]:
    """The class file, if there is one, and the samples of each split."""
    file = find_class_file(src)
    samples = {name: list(_mask_samples(src, name)) for name in names}
    return {file.name: file.read_bytes()} if file else {}, samples


def _object_set(src: Path, names: Sequence[str], form: str) -> tuple[Files, dict[str, list[Sample]]]:
    """COCO's annotations, and the samples of each split; files of COCO stay as they are."""
    files: Files = {}
    samples: dict[str, list[Sample]] = {}
    for asked in names:
        chosen, name = find_format(src, asked, form, exact=True)
        table, find_root, labels = chosen.open(src, name)
        root = find_root()
        if shards_in(root):
            raise _packed_already(src, name)
        content = table.path.read_bytes() if labels is None else json.dumps(labels.content()).encode()
        files[f"{ANNOTATIONS}/instances_{name}.json"] = content
        samples[name] = list(_object_samples(root, table))
    return files, samples


def _packed_already(src: Path, split: str) -> ValueError:
    return ValueError(f"{src}: {split} is packed already; give the folder of images")


def _class_samples(root: Path, source: Source) -> Iterator[Sample]:
    for index in range(len(source)):
        path, label = source.name(index), source.label(index)
        notes = {FILE_NAME: _below(path, root), "label": label, "class_name": source.classes[label]}
        yield {_suffix(path): path, "cls": str(label).encode(), "json": json.dumps(notes).encode()}


def _mask_samples(src: Path, split: str) -> Iterator[Sample]:
    folders = find_folders(src, split, exact=True)
    listing = MaskListing(folders)
    listing.check()
    for image, label in zip(listing.images, listing.labels, strict=True):
        suffix = _suffix(image)
        notes = json.dumps({FILE_NAME: image.replace(os.sep, "/"), LABEL_FILE_NAME: label.replace(os.sep, "/")})
        kind = MASK if suffix == PNG else PNG
        yield {suffix: str(folders.images / image), kind: str(folders.labels / label), "json": notes.encode()}


def _object_samples(root: Path, table: CocoTable) -> Iterator[Sample]:
    for name, number in zip(table.names, table.image_ids.tolist(), strict=True):
        notes = {FILE_NAME: name, "image_id": number}
        yield {_suffix(name): str(placed(root, name)), "json": json.dumps(notes).encode()}


def _below(path: str, root: Path) -> str:
    """A path below the folder of its split, with slashes; labels in tables may name images elsewhere."""
    if not Path(path).is_relative_to(root):
        root = root.parent
    return os.path.relpath(path, root).replace(os.sep, "/")


def _suffix(path: str) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path} does not end as images do, {listed(sorted(SUFFIXES))}; rename it")
    return suffix[1:]


def _write(samples: Sequence[Sample], folder: Path, most: int, on_image: Callable[[], None]) -> Packed:
    """Write the shards of one split into a new folder."""
    folder.mkdir()
    waiting, shards, total = list(enumerate(samples))[::-1], 0, 0
    while waiting:
        target = folder / f"{shards:0{SHARD_DIGITS}}.tar"
        with atomic.replace_with(target) as path, tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
            while waiting and archive.offset < most:
                _add(archive, *waiting.pop())
                on_image()
        shards, total = shards + 1, total + target.stat().st_size
    return Packed(folder.name, len(samples), shards, total)


def _add(archive: tarfile.TarFile, number: int, sample: Sample) -> None:
    for suffix, content in sample.items():
        if isinstance(content, str):
            check_regular(content)
        data = Path(content).read_bytes() if isinstance(content, str) else content
        member = tarfile.TarInfo(f"{number:0{DIGITS}}.{suffix}")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))

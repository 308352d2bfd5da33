"""Check folders of classes: unreadable images, empty classes, splits of other classes, images in two places."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from globalvit.data.classification.dataset import FORMATS, HUGGING_FACE, ClassificationFormat, FolderFormat
from globalvit.data.classification.formats import (
    alike,
    match_classes,
    missing_classes,
    question_folders,
    scan_classes,
    similar_folders,
)
from globalvit.data.classification.hugging_face import HuggingFaceImages, is_hub
from globalvit.data.classification.imagenet import is_devkit
from globalvit.data.classification.imagenet_devkit import open_devkit
from globalvit.data.classification.label_cells import MultiLabel
from globalvit.data.common.checks import Image, Problem, Report, Split, chosen_splits, fingerprint, in_processes
from globalvit.data.common.folders import BUILT_IN, is_database, listed, other_level, split_folders
from globalvit.data.common.formats import choose_format
from globalvit.data.common.images import OversizedImage, UnreadableImage, read_image
from globalvit.data.common.splits import role_of
from globalvit.data.common.walk import Found
from globalvit.data.storage.shards import ShardImages


def check_folder(
    data_dir: Path,
    *,
    split: str | None = None,
    form: str | None = None,
    nested: bool = False,
    multi_label: MultiLabel = "auto",
    workers: int = 0,
    on_start: Callable[[int], None] = lambda _: None,
    on_image: Callable[[], None] = lambda: None,
) -> Report:
    """Look over all splits of a data folder.

    Args:
        data_dir: a folder with a folder for each split.
        split: the only one to look over.
        form: name of the format; None finds it.
        nested: as in `ImageFolder`.
        multi_label: as in `open_split`.
        workers: processes that read; 0 reads in this one.
        on_start: called with the number of images before the first is read.
        on_image: called after each image.

    Raises:
        FileNotFoundError, NotADirectoryError: the folder or the split does not exist.
        ValueError: it holds no splits, or the built-in set was named.
        OSError: a reading process died.
    """
    if str(data_dir) in BUILT_IN and not data_dir.exists():
        raise ValueError(f"the built-in {data_dir} need no check; give a folder with a folder for each split")
    report = Report()
    chosen = HUGGING_FACE if is_hub(data_dir) else None
    if form or data_dir.is_dir():
        chosen = choose_format(FORMATS, data_dir, form)
    if chosen is None or isinstance(chosen, FolderFormat):
        folders, hint = split_folders(data_dir), other_level(data_dir)
        names = chosen_splits(folders, split, data_dir, report)
        if not names or (hint and split is None):
            raise ValueError(f"{data_dir} holds no splits; expected {data_dir}/train/CLASS/IMAGE.jpg{hint}")
    else:
        report.notes.append(Problem("format", f"{chosen.name}, {chosen.describe(data_dir)}"))
        names = chosen_splits(chosen.splits(data_dir), split, data_dir, report)
    images: list[Image] = []
    classes: dict[str, list[str]] = {}
    for name in names:
        if chosen is None or isinstance(chosen, FolderFormat):
            classes[name], found = _look_into(data_dir / name, report, nested=nested)
        else:
            classes[name], found = _look_into_format(chosen, data_dir, name, report, multi_label)
        images += found
    _compare(classes, report)
    on_start(len(images))
    places = _read_all(images, workers, report, on_image)
    _find_doubles(places.values(), report)
    return report


def _look_into_format(
    chosen: ClassificationFormat, data_dir: Path, split: str, report: Report, multi_label: MultiLabel
) -> tuple[list[str], list[Image]]:
    """Classes and images of one split in a format other than class folders."""
    try:
        source: Any = chosen.open(data_dir, split, multi_label=multi_label)
    except (ValueError, OSError) as error:
        report.problems.append(Problem("labels", str(error)))
        return [], []
    report.splits.append(Split(split, len(source.classes), len(source), 0))
    if role_of(split) == "train":
        report.notes.append(Problem("classes", f"{split} has {len(source.classes)}: {listed(source.classes)}"))
    if getattr(source, "is_multi_label", False):
        labels = [source.labels(at) for at in range(len(source))]
        counts = Counter(source.classes[label] for own in labels for label in own)
        shown = ", ".join(f"{name} {counts[name]}" for name in source.classes)
        empty = sum(not own for own in labels)
        report.notes.append(Problem("multi-label", f"{split}: images per class: {shown}; without a label: {empty}"))
        names = ["; ".join(source.classes[label] for label in own) or "no label" for own in labels]
        return list(source.classes), [Image(split, name, source.name(at)) for at, name in enumerate(names)]
    names = [source.classes[source.label(at)] for at in range(len(source))]
    if isinstance(source, ShardImages):
        members = source.members
        images = [Image(split, name, members.place(at), span=members.span(at)) for at, name in enumerate(names)]
    elif isinstance(source, HuggingFaceImages):
        images = [Image(split, name, source.name(at), reader=source.reader(at)) for at, name in enumerate(names)]
    else:
        images = [Image(split, name, source.name(at)) for at, name in enumerate(names)]
    return list(source.classes), images


def _look_into(root: Path, report: Report, *, nested: bool) -> tuple[list[str], list[Image]]:
    """Classes and images of one split; classes without images are left out."""
    try:
        if is_database(root):
            return _look_into_database(root, report)
        if is_devkit(root):
            return _look_into_devkit(root, report)
        found = scan_classes(root, nested=nested)
    except (ValueError, PermissionError, FileNotFoundError) as error:
        problem = Problem("database" if is_database(root) else "no classes", str(error))
        (report.notes if role_of(root.name) is None else report.problems).append(problem)
        return [], []
    filled = {name: inside for name, inside in found.items() if inside.images}
    images = [Image(root.name, name, str(root / path)) for name, inside in filled.items() for path in inside.images]
    report.splits.append(Split(root.name, len(found), len(images), sum(inside.others for inside in found.values())))
    folders = [(path, inside) for inside in found.values() for path in inside.unreadable]
    report.problems += [Problem("unreadable folder", f"{path} cannot be read", (path,)) for path, _ in folders]
    cycles = [path for inside in found.values() for path in inside.cycles]
    report.notes += [Problem("link", f"{path} leads back to a folder above it", (path,)) for path in cycles]
    pipes = [path for inside in found.values() for path in inside.irregular]
    report.notes += [Problem("not a file", f"{path} is a pipe, socket or device", (path,)) for path in pipes]
    is_training = role_of(root.name) == "train"
    empty = [Problem("empty class", f"no images in {root / name}") for name in found if name not in filled]
    (report.problems if is_training else report.notes).extend(empty)
    if is_training:
        report.notes += _questions(filled, root)
    return list(filled), images


def _questions(found: Mapping[str, Found], root: Path) -> Iterator[Problem]:
    """What looks odd about the classes of the training split."""
    yield Problem("classes", f"{root.name} has {len(found)}: {listed(list(found))}")
    question = question_folders(found, root)
    if question:
        yield Problem("nested classes", question)
    for twins in similar_folders(found):
        yield Problem("similar classes", alike(twins))
    if len(found) == 1:
        yield Problem("single class", f"{root.name} has only the class {listed(list(found))}; a classifier needs two")


def _compare(classes: Mapping[str, Sequence[str]], report: Report) -> None:
    """Compare every split's classes with those of the training split, or of the first."""
    filled = {name: found for name, found in classes.items() if found}
    first = next((name for name in filled if role_of(name) == "train"), next(iter(filled), None))
    for name, found in filled.items():
        if first is None or name == first:
            continue
        try:
            label_of = match_classes(found, filled[first], name, is_quiet=True)
        except ValueError as error:
            report.problems.append(Problem("other classes", str(error)))
            continue
        missing = missing_classes(filled[first], label_of.values(), name)
        if missing:
            report.notes.append(Problem("missing classes", missing))


def _look_into_devkit(root: Path, report: Report) -> tuple[list[str], list[Image]]:
    source = open_devkit(root)
    images = [Image(root.name, source.classes[source.label(at)], source.name(at)) for at in range(len(source))]
    names = sorted({image.class_name for image in images})
    report.splits.append(Split(root.name, len(names), len(images), 0))
    return names, images


def _look_into_database(root: Path, report: Report) -> tuple[list[str], list[Image]]:
    from globalvit.data.storage.lmdb_source import open_database

    source = open_database(root)
    report.splits.append(Split(root.name, len(source.classes), len(source), 0))
    images = [
        Image(root.name, source.classes[source.label(index)], source.name(index), source.path, source.key(index))
        for index in range(len(source))
    ]
    return list(source.classes), images


def _read_all(
    images: Sequence[Image], workers: int, report: Report, on_image: Callable[[], None]
) -> dict[bytes, list[Image]]:
    """Read every image; returns where each content lies."""
    places: dict[bytes, list[Image]] = defaultdict(list)
    splits = {split.name: split for split in report.splits}
    results = in_processes(_read_one, images, workers)
    for image, (problem, digest) in zip(images, results, strict=True):
        on_image()
        if problem:
            report.problems.append(problem)
            splits[image.split].unreadable += 1
        else:
            places[digest].append(image)
    return places


def _read_one(image: Image) -> tuple[Problem | None, bytes]:
    """Read one image; returns what is wrong with it, and a fingerprint of its bytes."""
    try:
        data = image.data()
        read_image(data, image.path)
    except OversizedImage as error:
        return Problem("oversized", str(error), (image.path,)), b""
    except (UnreadableImage, OSError) as error:
        return Problem("unreadable", str(error), (image.path,)), b""
    return None, fingerprint(data)


def _find_doubles(places: Iterable[Sequence[Image]], report: Report) -> None:
    """Images in several splits make a score too good; images in several classes have a wrong label somewhere."""
    for same in places:
        paths = tuple(image.path for image in same)
        splits = sorted({image.split for image in same})
        classes = sorted({image.class_name for image in same})
        if len(splits) > 1:
            report.problems.append(Problem("leak", f"the same image is in {' and '.join(splits)}", paths))
        if len(classes) > 1:
            report.problems.append(Problem("two labels", f"the same image is in class {listed(classes)}", paths))
        if len(splits) == len(classes) == 1:
            report.repeated += len(same) - 1

"""ImageNet's other test sets, for classifiers with ImageNet-1K's 1000 classes: ImageNet-V2, -A, -R, -Sketch, and ReaL.

Class folders are matched by their meaning: WordNet ids, ImageNet's indices, or class names. The order of folders is
never used. The class lists of ImageNet-A and ImageNet-R and the labels of ReaL are those that timm ships (Apache-2.0),
which has them from the sets' authors.
"""

import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from globalvit.data.classification.imagenet import (
    VALIDATION_NAME,
    WORDNET_ID,
    imagenet_names,
    imagenet_synsets,
    readable,
    timm_file,
)
from globalvit.data.classification.labeled_files import LabeledFiles
from globalvit.data.common.folders import listed
from globalvit.data.common.images import SUFFIXES

logger = logging.getLogger(__name__)
CLASSES = 1000
REAL_IMAGES = 50_000


@dataclass(frozen=True)
class Suite:
    """A published test set.

    Attributes:
        title: its name.
        images: how many were published.
        subset: timm's file of the classes that it has; None is all of ImageNet-1K.
    """

    title: str
    images: int
    subset: str | None = None

    @property
    def classes(self) -> tuple[int, ...]:
        """ImageNet's indices of its classes, ascending."""
        return tuple(range(CLASSES)) if self.subset is None else _indices(self.subset)


REAL = "imagenet-real"
SUITES = {
    "imagenet-v2": Suite("ImageNet-V2", 10_000),
    "imagenet-a": Suite("ImageNet-A", 7_500, "imagenet_a_indices.txt"),
    "imagenet-r": Suite("ImageNet-R", 30_000, "imagenet_r_indices.txt"),
    "imagenet-sketch": Suite("ImageNet-Sketch", 50_889),
    REAL: Suite("ImageNet-ReaL", 46_837),
}


class SuiteImages(LabeledFiles):
    """Images of a suite.

    Args:
        root: their folder.
        classes: names of the labels.
        names: paths below `root`.
        labels: of these images; of ReaL, positions in `allowed`.
        allowed: of ReaL, the labels that are right for each image.
    """

    def __init__(
        self,
        root: Path,
        classes: Sequence[str],
        names: Sequence[str],
        labels: Sequence[int],
        allowed: tuple[tuple[int, ...], ...] | None = None,
    ) -> None:
        super().__init__(root, classes, names, labels)
        self.allowed = allowed


def open_suite(name: str, data_dir: Path, real_labels: Path | None = None) -> SuiteImages:
    """Open a suite.

    Args:
        name: one of `SUITES`.
        data_dir: the folder of its class folders, or the one above; of ReaL, that of ImageNet's validation images.
        real_labels: of ReaL, the authors' `real.json` in place of timm's copy.

    Raises:
        FileNotFoundError, NotADirectoryError: the folder does not exist, or is a file.
        ValueError: its folders or files are not those of the suite, or it cannot be known which classes they mean.
    """
    if not data_dir.exists():
        raise FileNotFoundError(f"data folder {data_dir} does not exist; give the folder of {SUITES[name].title}")
    if not data_dir.is_dir():
        raise NotADirectoryError(f"{data_dir} is a file; give the folder of {SUITES[name].title}")
    source = _open_real(data_dir, read_real_labels(real_labels)) if name == REAL else _open_folders(name, data_dir)
    if len(source) != SUITES[name].images:
        logger.warning(
            "%s has %d images, %s as published has %d: the score is not comparable with published ones",
            *(source.root, len(source), SUITES[name].title, SUITES[name].images),
        )
    return source


def match_outputs(classes: Sequence[str] | None, num_classes: int, title: str) -> list[int]:
    """Which output of a model stands for each of ImageNet's classes.

    Args:
        classes: names of the model's outputs; None where they are not known.
        num_classes: how many there are.
        title: of the suite, for the message.

    Raises:
        ValueError: they are not ImageNet-1K's classes.
    """
    if classes is None and num_classes == CLASSES:
        logger.warning("the model does not name its classes; its 1000 outputs are taken for ImageNet's, in their order")
        return list(range(CLASSES))
    output_of = {name: output for output, name in enumerate(readable(classes or ()))}
    if output_of.keys() != set(imagenet_names()):
        there = f"{listed(classes[:3])}, …" if classes else "without names"
        raise ValueError(
            f"{title} is for classifiers with ImageNet-1K's 1000 classes; this model has {num_classes}: {there}"
        )
    return [output_of[name] for name in imagenet_names()]


def match_folders(folders: Sequence[str], name: str, where: Path) -> dict[str, int]:
    """ImageNet's index of each class folder of a suite, by the folder's meaning.

    Raises:
        ValueError: it cannot be known, or a class is not in the suite; the text names the folders.
    """
    suite = SUITES[name]
    if all(map(WORDNET_ID.fullmatch, folders)):
        index_of = {synset: index for index, synset in enumerate(imagenet_synsets())}
    elif all(folder.isascii() and folder.isdecimal() for folder in folders):
        index_of = {folder: int(folder) for folder in folders}
    else:
        meanings = _meanings()
        index_of = {folder: found for folder in folders if (found := _meaning(folder, meanings)) is not None}
    unknown = [folder for folder in folders if index_of.get(folder) not in suite.classes]
    if unknown:
        raise ValueError(
            f"cannot tell which of the {len(suite.classes)} classes of {suite.title} the folders {listed(unknown)} of "
            f"{where} mean; name class folders by WordNet id (n01440764), by ImageNet's index from 0 to 999, or by "
            "class name"
        )
    matched = {folder: index_of[folder] for folder in folders}
    groups: dict[int, list[str]] = defaultdict(list)
    for folder, index in matched.items():
        groups[index].append(folder)
    twice = next((same for same in groups.values() if len(same) > 1), None)
    if twice:
        raise ValueError(f"the folders {listed(twice)} of {where} mean the same class; merge them")
    return matched


def read_real_labels(path: Path | None = None) -> list[list[int]]:
    """Read the labels that are right for each of ImageNet's 50,000 validation images; some images have none.

    Args:
        path: the authors' `real.json`; None is timm's copy.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not such a list.
    """
    path = path or timm_file("imagenet_real_labels.json")
    try:
        labels: Any = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {' '.join(str(error).split())}") from error
    if not isinstance(labels, list) or len(labels) != REAL_IMAGES or not all(map(_are_labels, labels)):
        raise ValueError(f"{path} is not ReaL's list of labels: expected {REAL_IMAGES} lists of numbers from 0 to 999")
    return labels


def _open_folders(name: str, data_dir: Path) -> SuiteImages:
    suite = SUITES[name]
    root, index_of = _find_root(name, data_dir)
    label_of = {index: label for label, index in enumerate(suite.classes)}
    images = [
        (label_of[index], path)
        for folder, index in sorted(index_of.items(), key=lambda item: item[1])
        for path in _images(root, folder)
    ]
    if not images:
        raise ValueError(f"no images in the class folders of {root}; expected files ending in {_endings()}")
    missing = len(suite.classes) - len({label for label, _ in images})
    if missing:
        logger.warning("%s has no images of %d of the %d classes", root, missing, len(suite.classes))
    names = imagenet_names()
    classes = [names[index] for index in suite.classes]
    return SuiteImages(root, classes, [path for _, path in images], [label for label, _ in images])


def _find_root(name: str, data_dir: Path) -> tuple[Path, dict[str, int]]:
    """The folder of the class folders, which is `data_dir` or the only one in it that fits, and their indices."""
    roots = [root for root in (data_dir, *(data_dir / folder for folder in _folders(data_dir))) if _folders(root)]
    if not roots:
        raise ValueError(f"{data_dir} holds no class folders; expected {data_dir}/n01440764/IMAGE.jpg or the like")
    found: dict[Path, dict[str, int]] = {}
    problems = []
    for root in roots:
        try:
            found[root] = match_folders(_folders(root), name, root)
        except ValueError as error:
            problems.append(error)
        if data_dir in found:
            break
    if not found:
        raise problems[-1]
    if len(found) > 1:
        raise ValueError(
            f"{data_dir} holds several sets: {listed([root.name for root in found])}; give one of these folders"
        )
    return next(iter(found.items()))


def _open_real(data_dir: Path, labels: Sequence[Sequence[int]]) -> SuiteImages:
    numbered = [(path, VALIDATION_NAME.fullmatch(path.rpartition("/")[2])) for path in _images(data_dir, "")]
    images = [(int(found[1]), path) for path, found in numbered if found]
    if not images:
        raise ValueError(
            f"no image below {data_dir} is named like ILSVRC2012_val_00000001.JPEG; ReaL's labels go by these numbers"
        )
    images.sort()
    numbers = [number for number, _ in images]
    if numbers[0] < 1 or numbers[-1] > REAL_IMAGES or len(set(numbers)) < len(numbers):
        raise ValueError(
            f"the numbers of the images below {data_dir} are not ImageNet's: expected each from 1 to {REAL_IMAGES} "
            "once; give the folder of the validation images"
        )
    kept = [(number, path) for number, path in images if labels[number - 1]]
    if not kept:
        raise ValueError(f"none of the {len(images)} images below {data_dir} has a label in ReaL")
    if len(kept) < len(images):
        logger.info("%d images have no label in ReaL and are left out", len(images) - len(kept))
    allowed = tuple(tuple(labels[number - 1]) for number, _ in kept)
    return SuiteImages(data_dir, imagenet_names(), [path for _, path in kept], range(len(kept)), allowed)


def _are_labels(labels: Any) -> bool:
    return isinstance(labels, list) and all(type(label) is int and 0 <= label < CLASSES for label in labels)


def _folders(root: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))


def _images(root: Path, folder: str) -> Iterator[str]:
    """Paths relative to `root` of the images in a folder and below, sorted."""
    found = []
    for base, folders, files in os.walk(root / folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        shown = [Path(base, name) for name in files if not name.startswith(".")]
        found += [path.relative_to(root).as_posix() for path in shown if path.suffix.lower() in SUFFIXES]
    yield from sorted(found)


def _endings() -> str:
    return ", ".join(sorted(SUFFIXES))


@cache
def _meanings() -> dict[str, frozenset[int]]:
    """What each name may mean: ImageNet's indices, by all of WordNet's words for its classes."""
    meanings: dict[str, set[int]] = defaultdict(set)
    lines = timm_file("imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").splitlines()
    words = dict(line.split("\t", 1) for line in lines)
    for index, (synset, name) in enumerate(zip(imagenet_synsets(), imagenet_names(), strict=True)):
        for word in (name, words[synset], *words[synset].split(", ")):
            meanings[_plain(word)].add(index)
    return {word: frozenset(indices) for word, indices in meanings.items()}


def _meaning(folder: str, meanings: dict[str, frozenset[int]]) -> int | None:
    """The class that a folder's name means; None where it means none or several."""
    names = imagenet_names()
    if folder in names:
        return names.index(folder)
    found = meanings.get(_plain(folder), frozenset())
    return next(iter(found)) if len(found) == 1 else None


def _plain(name: str) -> str:
    """A name without case and without what separates words."""
    return " ".join(re.split(r"[\s_-]+", name.casefold())).strip()


@cache
def _indices(file: str) -> tuple[int, ...]:
    return tuple(sorted(map(int, timm_file(file).read_text(encoding="utf-8").split())))

"""ImageNet's validation images as they were published: in one folder, with their labels in a file.

The labels are found in Kaggle's `LOC_val_solution.csv`, in a list of one WordNet id per image, or in the development
kit's `ILSVRC2012_validation_ground_truth.txt`. Numbers in the latter are ILSVRC2012_IDs, whose order is not that of the
WordNet ids, so a list of ids in their order is needed beside it. Labels that do not agree with ReaL's are refused.
"""

import csv
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from globalvit.data.classification.formats import match_classes
from globalvit.data.classification.imagenet import VALIDATION_NAME, WORDNET_ID, imagenet_synsets
from globalvit.data.classification.labeled_files import LabeledFiles
from globalvit.data.classification.suites import REAL_IMAGES, read_real_labels
from globalvit.data.common.walk import is_image

logger = logging.getLogger(__name__)
KAGGLE, DEVKIT = "LOC_val_solution.csv", "ILSVRC2012_validation_ground_truth.txt"
BY_IMAGE = "imagenet_2012_validation_synset_labels.txt"
LISTS = ("synsets.txt", "map_clsloc.txt")
# Kaggle's archive has the images in ILSVRC/Data/CLS-LOC/val and the labels at the top.
MOST_ABOVE = 3
# ReaL's authors agree with nine in ten of the labels; a list in a wrong order agrees with one in a thousand.
LEAST_AGREEMENT, FEWEST = 0.5, 10


def open_devkit(root: Path, classes: Sequence[str] | None = None) -> LabeledFiles:
    """Open ImageNet-1K's validation images.

    Args:
        root: the folder they lie in.
        classes: the classes expected, as in `ImageFolder`; None takes ImageNet-1K's WordNet ids.

    Raises:
        FileNotFoundError: no file with their labels.
        ValueError: that file is not what it should be, its labels are those of other images, or classes differ.
    """
    path = _find(root)
    by_number = _read_csv(path) if path.name == KAGGLE else _read_lines(path)
    names = sorted(entry.name for entry in os.scandir(root) if is_image(entry.name))
    numbers = [int(found[1]) if (found := VALIDATION_NAME.fullmatch(name)) else 0 for name in names]
    for name, number in zip(names, numbers, strict=True):
        if number not in by_number:
            raise ValueError(
                f"{root / name} has no label in {path}; expected images named ILSVRC2012_val_00000001.JPEG to "
                f"ILSVRC2012_val_{REAL_IMAGES:08}.JPEG, so move others elsewhere"
            )
    synsets = [by_number[number] for number in numbers]
    _check(synsets, numbers, path)
    found = sorted(set(synsets))
    classes = tuple(classes or imagenet_synsets())
    label_of = match_classes(found, classes, str(root))
    logger.info("%s: labels of %d images are read from %s", root, len(names), path)
    return LabeledFiles(root, classes, names, [label_of[synset] for synset in synsets])


def _find(root: Path) -> Path:
    """The file with the labels, beside the images or in a folder above."""
    above = [root.absolute(), *root.absolute().parents[: MOST_ABOVE + 1]]
    kits = [folder for place in above[:2] for folder in (*place.glob("*devkit*/data"), *place.glob("*devkit*"))]
    for folder in (*above[:2], *kits, *above[2:]):
        for name in (KAGGLE, BY_IMAGE, DEVKIT):
            if (folder / name).is_file():
                return folder / name
    raise FileNotFoundError(
        f"{root} holds ImageNet's validation images without class folders, and no file with their labels is found; put "
        f"{KAGGLE}, {BY_IMAGE} or {DEVKIT} into {root.parent}, or sort the images into class folders"
    )


def _read_csv(path: Path) -> dict[int, str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [(f"{row[0]}.JPEG", row[1].split()) for row in csv.reader(file) if len(row) > 1]
    labels = {int(found[1]): words[0] for name, words in rows if (found := VALIDATION_NAME.fullmatch(name)) and words}
    return _checked(labels, path, "ImageId,PredictionString")


def _read_lines(path: Path) -> dict[int, str]:
    """One WordNet id, or one ILSVRC2012_ID, per image in the order of their numbers."""
    lines = path.read_text(encoding="utf-8-sig").split()
    if not lines or not all(line.isascii() and line.isdecimal() for line in lines):
        return _checked(dict(enumerate(lines, 1)), path, "one WordNet id per line")
    by_id = _read_list(path)
    unknown = next((line for line in lines if int(line) not in by_id), None)
    if unknown is not None:
        raise ValueError(f"{path} has the number {unknown}; expected ILSVRC2012_IDs from 1 to {len(by_id)}")
    return {number: by_id[int(line)] for number, line in enumerate(lines, 1)}


def _read_list(path: Path) -> dict[int, str]:
    """ILSVRC2012_ID → WordNet id, from a list beside the development kit's file."""
    found = next((path.parent / name for name in LISTS if (path.parent / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"{path} holds ILSVRC2012_IDs, whose WordNet ids are in the kit's meta.mat; write these, one per line in "
            f"the order of ILSVRC2012_ID, to {path.parent / LISTS[0]}"
        )
    rows = [line.split() for line in found.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    ids = [int(row[1]) if len(row) > 1 and row[1].isdecimal() else at for at, row in enumerate(rows, 1)]
    return _checked(dict(zip(ids, (row[0] for row in rows), strict=True)), found, "one WordNet id per line")


def _checked(labels: dict[int, str], path: Path, expected: str) -> dict[int, str]:
    strange = next((name for name in labels.values() if not WORDNET_ID.fullmatch(name)), None)
    if strange is not None or not labels:
        got = "nothing" if strange is None else repr(strange[:40])
        raise ValueError(f"{path}: expected {expected}, such as n01440764, got {got}")
    return labels


def _check(synsets: Sequence[str], numbers: Sequence[int], path: Path) -> None:
    """Compare the labels with ReaL's, which know the images by their numbers."""
    index_of = {synset: index for index, synset in enumerate(imagenet_synsets())}
    real = read_real_labels()
    known = [(real[number - 1], index_of.get(synset)) for synset, number in zip(synsets, numbers, strict=True)]
    hits = [index in labels for labels, index in known if labels]
    if len(hits) >= FEWEST and sum(hits) < LEAST_AGREEMENT * len(hits):
        raise ValueError(
            f"the labels in {path} agree with those of ImageNet-ReaL for {sum(hits)} of {len(hits)} images; expected "
            "nine in ten: they are in another order, or the list of synsets is not in the order of ILSVRC2012_ID"
        )

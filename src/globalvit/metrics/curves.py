"""Precision, recall and F1 of boxes over the score, best score thresholds, and a confusion matrix with background.

Boxes are matched at IoU 0.5 as COCO does it: best score first, each to the free object of its class that it overlaps
most; boxes on crowds are ignored.

Legend: `N` detections · `G` objects · `K` classes · `S` detections of a class in all images.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

IOU = 0.5
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True, eq=False)
class ClassCurve:
    """Curves of one class over its detections, best score first.

    Attributes:
        scores: (S,) scores of the detections that count.
        precision: (S,) precision, 0 to 1, if these and all better detections are reported.
        recall: (S,) recall, 0 to 1, likewise.
        objects: number of objects in the ground truth, without crowds.
    """

    scores: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    objects: int

    @classmethod
    def of(cls, scores: np.ndarray, hits: np.ndarray, objects: int) -> "ClassCurve":
        """Make the curves of detections in any order; of equal scores, the first ranks first."""
        order = np.argsort(-scores, kind="stable")
        found = hits[order].cumsum()
        return cls(scores[order], found / np.arange(1, len(order) + 1), found / max(1, objects), objects)

    @property
    def f1(self) -> np.ndarray:
        """(S,) harmonic mean of precision and recall."""
        return 2 * self.precision * self.recall / (self.precision + self.recall).clip(1e-12)

    @property
    def envelope(self) -> np.ndarray:
        """(101,) best precision at each recall of `RECALLS` or more, as COCO interpolates it; 0 beyond the curve."""
        best = np.maximum.accumulate(self.precision[::-1])[::-1]
        return np.append(best, 0.0)[np.searchsorted(self.recall, RECALLS)]

    @property
    def ap(self) -> float | None:
        """Average precision, 0 to 1; None without objects."""
        return float(self.envelope.mean()) if self.objects else None

    def f1_at(self, thresholds: np.ndarray) -> np.ndarray:
        """F1 of the detections whose score exceeds each threshold."""
        counts = np.searchsorted(-self.scores, -thresholds)
        return np.append(0.0, self.f1)[counts]

    def best(self, floor: float) -> tuple[float, float] | None:
        """Return the score threshold with the highest F1, and that F1; None if no object is found.

        The threshold lies halfway between the last detection that is kept and the next one, or `floor`.
        """
        # Detections of equal score are kept or dropped together.
        ends = np.flatnonzero(np.diff(self.scores, append=-np.inf))
        if not len(ends) or self.f1.max() == 0:
            return None
        end = int(ends[self.f1[ends].argmax()])
        below = self.scores[end + 1] if end + 1 < len(self.scores) else min(floor, float(self.scores[end]))
        return float((self.scores[end] + below) / 2), float(self.f1[end])


def class_curves(images: Iterable[Any], classes: int, most: int) -> list[ClassCurve]:
    """Return the curves of each class.

    Args:
        images: of each image `found` with `boxes` (N, 4) xyxy, `labels`, `scores`; `target` with `boxes`, `labels` and
            `crowd`; arrays.
        classes: number of labels.
        most: detections per class and image that count, the best ones.
    """
    scores: list[list[float]] = [[] for _ in range(classes)]
    hits: list[list[bool]] = [[] for _ in range(classes)]
    objects = np.zeros(classes, np.int64)
    for image in images:
        found, target = image.found, image.target
        objects += np.bincount(target.labels[~target.crowd], minlength=classes)
        for label in np.unique(found.labels):
            rows = np.flatnonzero(found.labels == label)
            rows = rows[np.argsort(-found.scores[rows], kind="stable")][:most]
            these = target.labels == label
            ious = overlaps(found.boxes[rows], target.boxes[these], target.crowd[these])
            for row, hit in zip(rows, match(ious, target.crowd[these]), strict=True):
                if hit is not None:
                    scores[label].append(found.scores[row])
                    hits[label].append(hit)
    return [
        ClassCurve.of(np.array(s, float), np.array(h, bool), int(n))
        for s, h, n in zip(scores, hits, objects, strict=True)
    ]


def match(ious_NG: np.ndarray, crowd_G: np.ndarray) -> list[bool | None]:
    """Match detections, best first; return for each whether it found an object, or None if it lies on a crowd."""
    free = ~crowd_G
    hits: list[bool | None] = []
    for row in ious_NG:
        open_ = np.where(free, row, -1.0)
        if len(row) and open_.max() >= IOU:
            free[len(row) - 1 - int(open_[::-1].argmax())] = False
            hits.append(True)
        else:
            hits.append(None if (row[crowd_G] >= IOU).any() else False)
    return hits


def overlaps(boxes_N4: np.ndarray, objects_G4: np.ndarray, crowd_G: np.ndarray) -> np.ndarray:
    """Return IoU (N, G); for crowds, the part of the box inside."""
    corner = np.minimum(boxes_N4[:, None, 2:], objects_G4[None, :, 2:])
    sides = (corner - np.maximum(boxes_N4[:, None, :2], objects_G4[None, :, :2])).clip(0)
    inside = sides.prod(2)
    areas = (boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(1)[:, None]
    union = np.where(crowd_G, areas, areas + (objects_G4[:, 2:] - objects_G4[:, :2]).prod(1) - inside)
    return inside / union.clip(1e-12)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of the detections and objects of one image.

    Attributes:
        kept: (N,) detections above their threshold.
        pairs: (detection, object) that overlap by IoU 0.5 or more, whatever their classes, each at most once.
        ignored: (N,) unpaired detections on a crowd.
    """

    kept: np.ndarray
    pairs: list[tuple[int, int]]
    ignored: np.ndarray

    @classmethod
    def of(cls, image: Any, thresholds_K: np.ndarray) -> "Outcome":
        """Pair detections and objects, largest overlap first; see `class_curves` for the image."""
        found, target = image.found, image.target
        kept = found.scores > thresholds_K[found.labels]
        ious = overlaps(found.boxes, target.boxes, target.crowd)
        paired = np.where(kept[:, None] & ~target.crowd[None], ious, 0.0)
        pairs: list[tuple[int, int]] = []
        while paired.size and paired.max() >= IOU:
            row, column = np.unravel_index(paired.argmax(), paired.shape)
            pairs.append((int(row), int(column)))
            paired[row], paired[:, column] = 0.0, 0.0
        ignored: np.ndarray = np.any(ious[:, target.crowd] >= IOU, axis=1)
        ignored[[row for row, _ in pairs]] = False
        return cls(kept, pairs, ignored)

    def false(self) -> np.ndarray:
        """Return which detections (N,) are kept and overlap no object."""
        false = self.kept & ~self.ignored
        false[[row for row, _ in self.pairs]] = False
        return false

    def missed(self, crowd_G: np.ndarray) -> np.ndarray:
        """Return which objects (G,) no detection overlaps."""
        missed = ~crowd_G
        missed[[column for _, column in self.pairs]] = False
        return missed


def confusion(images: Iterable[Any], thresholds: Sequence[float]) -> np.ndarray:
    """Count objects by true class (rows) and detected class (columns); the last of each is the background."""
    classes = len(thresholds)
    counts = np.zeros((classes + 1, classes + 1), np.int64)
    for image in images:
        outcome = Outcome.of(image, np.asarray(thresholds))
        for row, column in outcome.pairs:
            counts[image.target.labels[column], image.found.labels[row]] += 1
        np.add.at(counts[classes], image.found.labels[outcome.false()], 1)
        np.add.at(counts[:, classes], image.target.labels[outcome.missed(image.target.crowd)], 1)
    return counts

"""COCO's average precision and recall of boxes and masks, as pycocotools computes them.

T.-Y. Lin et al., "Microsoft COCO: Common Objects in Context", 2014, and the evaluation code of its authors: ten
thresholds of overlap, 101 points of recall, by default at most 100 detections of each image, crowds are ignored. The
areas that tell small from large are the data set's for objects; for detected masks they are the pixels of the mask.

Legend: `N` objects or detections of an image · `K` classes · `H W` pixels · of the evaluator's tables: `T` thresholds
of overlap · `R` points of recall · `A` ranges of area · `D` limits of detections.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as coco_mask

from globalvit.metrics.curves import ClassCurve, class_curves, confusion
from globalvit.metrics.metric import Metric

Kind = Literal["box", "mask"]
Table = dict[str, np.ndarray]
Row = dict[str, Any]
Figure = float | None
# The evaluator's names, and its order of thresholds, areas and limits.
IOU_TYPES: dict[Kind, Literal["bbox", "segm"]] = {"box": "bbox", "mask": "segm"}
THRESHOLDS = {"50": 0, "75": 5}
AREAS = {"s": 1, "m": 2, "l": 3}
ALL_AREAS, HIGHEST = 0, 2
MOST_DETECTIONS = 100


class _Found(NamedTuple):
    """Detections: float64 boxes xyxy, int64 labels, float64 scores, masks compressed as COCO does it."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    masks: list[bytes] | None


class _Target(NamedTuple):
    """Objects: float64 boxes xyxy, int64 labels, float64 areas, flags of crowds, compressed masks."""

    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    masks: list[bytes] | None


class _Image(NamedTuple):
    size: tuple[int, int]
    found: _Found
    target: _Target


class CocoAP(Metric):
    """Detections and ground target of every image, masks compressed as they come.

    An image counts once, however often it comes. What the figures are does not depend on the order of the images.

    Args:
        classes: names of the labels 0 … K−1.
        with_masks: score masks too; they are left out nevertheless where the ground truth has none.
        max_detections: detections of an image, the best ones, that enter the figures; COCO's own are of 100.
    """

    def __init__(
        self, classes: Sequence[str], *, with_masks: bool = True, max_detections: int = MOST_DETECTIONS
    ) -> None:
        self.classes = tuple(classes)
        self.limits = [min(1, max_detections), min(10, max_detections), max_detections]
        self.with_masks = with_masks
        self._images: dict[int, _Image] = {}
        self._tables: dict[Kind, Table] = {}

    def update(self, predictions: Sequence[Mapping[str, Any]], annotations: Sequence[Mapping[str, Any]]) -> None:
        """Add images.

        Args:
            predictions: of each image `boxes` (N, 4) xyxy in its own pixels, `scores` (N,), `labels` (N,) and, where
                masks are scored, `masks`: bool (N, H, W), or a list of COCO's run lengths `{"size", "counts"}`,
                compressed or not; tensors on any device, or arrays.
            annotations: of each image `image_id`, `size` (H, W), and of its objects `boxes` (N, 4) xyxy, `labels`,
                `crowd` and `areas` (N,), `masks` likewise, or None where there are none.

        Raises:
            ValueError: a prediction has no masks although they are scored.
        """
        for prediction, annotation in zip(predictions, annotations, strict=True):
            image_id = int(annotation["image_id"])
            if image_id not in self._images:
                self._images[image_id] = self._image(prediction, annotation)
        self._tables = {}

    def state(self) -> dict[int, _Image]:
        """Image id → what was found and what there is."""
        return dict(self._images)

    def merge(self, state: dict[int, _Image]) -> None:
        """Add another process's images."""
        self._images = state | self._images
        self._tables = {}

    @property
    def count(self) -> int:
        """Images seen."""
        return len(self._images)

    def compute(self) -> dict[str, float]:
        """COCO's twelve figures for boxes, then twelve for masks where they are scored, and `count`, the images.

        All in percent: `ap_box`, `ap_box_50`, `ap_box_75`, by size `ap_box_s`, `ap_box_m`, `ap_box_l`; with 1, 10 and
        100 detections an image, or `max_detections`, `ar_box_1`, `ar_box_10`, `ar_box_100`, by size `ar_box_s`,
        `ar_box_m`, `ar_box_l`; and `ap_mask` and so on for masks. A figure for which there are no objects is left out.

        Raises:
            ValueError: no image was scored, or none of them shows an object.
        """
        scores: dict[str, float] = {}
        for kind, table in self._evaluated().items():
            figures = {f"ap_{kind}": _precision(table)}
            figures |= {f"ap_{kind}_{name}": _precision(table, threshold=T) for name, T in THRESHOLDS.items()}
            figures |= {f"ap_{kind}_{name}": _precision(table, area=A) for name, A in AREAS.items()}
            figures |= {f"ar_{kind}_{name}": _recall(table, limit=D) for D, name in enumerate(map(str, self.limits))}
            figures |= {f"ar_{kind}_{name}": _recall(table, area=A) for name, A in AREAS.items()}
            scores |= {name: value for name, value in figures.items() if value is not None}
        return scores | {"count": float(self.count)}

    def report(self) -> dict[str, Any]:
        """Rows `{label, name, objects, ap_box, ap_box_50, ap_box_75}`, likewise for masks; None without objects."""
        tables = self._evaluated()
        labels = [image.target.labels[~image.target.crowd] for image in self._images.values()]
        objects = np.bincount(np.concatenate(labels), minlength=len(self.classes)).tolist()
        rows = []
        for label, name in enumerate(self.classes):
            row: dict[str, Any] = {"label": label, "name": name, "objects": objects[label]}
            for kind, table in tables.items():
                row[f"ap_{kind}"] = _precision(table, label=label)
                row |= {f"ap_{kind}_{at}": _precision(table, threshold=T, label=label) for at, T in THRESHOLDS.items()}
            rows.append(row)
        return {"per_class": rows}

    @property
    def images(self) -> dict[int, _Image]:
        """Image id → its `size` (H, W), `found` and `target`, in the order of the ids."""
        return dict(sorted(self._images.items()))

    def curves(self) -> list[ClassCurve]:
        """Return precision, recall and F1 of boxes at IoU 0.5 over the score, for each class."""
        return class_curves(self.images.values(), len(self.classes), self.limits[HIGHEST])

    def score_thresholds(self, floor: float) -> list[float | None]:
        """Return each class's score threshold with the highest F1 at IoU 0.5; None if nothing was found.

        Args:
            floor: the score that the detections exceed.
        """
        return [best and best[0] for best in (curve.best(floor) for curve in self.curves())]

    def confusion_matrix(self, floor: float) -> list[list[int]]:
        """Count boxes by true class (rows) and detected class (columns) at IoU 0.5, the background last.

        Detections count above their class's best score threshold, or above `floor` if there is none.
        """
        thresholds = [floor if one is None else one for one in self.score_thresholds(floor)]
        return confusion(self.images.values(), thresholds).tolist()

    def results(self, category_ids: Sequence[int | None]) -> list[dict[str, Any]]:
        """The detections as COCO's results JSON has them.

        pycocotools takes the area of a detection from `bbox` where there is one, so for masks it gives this metric's
        figures by size only if `bbox` is removed.

        Args:
            category_ids: the data set's own id of each label; detections of labels with None are left out.

        Returns:
            Dicts `{image_id, category_id, bbox (xywh), score}`, with `segmentation` where there are masks.
        """
        rows: list[dict[str, Any]] = []
        for image_id, (size, found, _) in sorted(self._images.items()):
            boxes, labels, scores = _xywh(found.boxes).tolist(), found.labels.tolist(), found.scores.tolist()
            for place, (box, label, score) in enumerate(zip(boxes, labels, scores, strict=True)):
                if category_ids[label] is None:
                    continue
                row = {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
                if found.masks is not None:
                    row["segmentation"] = {"size": list(size), "counts": found.masks[place].decode("ascii")}
                rows.append(row)
        return rows

    def _image(self, prediction: Mapping[str, Any], annotation: Mapping[str, Any]) -> _Image:
        masks = prediction.get("masks") if self.with_masks else None
        if self.with_masks and masks is None:
            raise ValueError("masks are scored, but a prediction has none; give `masks`, or score with_masks=False")
        found = _Found(
            _array(prediction["boxes"], np.float64).reshape(-1, 4),
            _array(prediction["labels"], np.int64),
            _array(prediction["scores"], np.float64),
            _compressed(masks),
        )
        target = _Target(
            _array(annotation["boxes"], np.float64).reshape(-1, 4),
            _array(annotation["labels"], np.int64),
            _array(annotation["areas"], np.float64),
            _array(annotation["crowd"], bool),
            _compressed(annotation["masks"]) if self.with_masks else None,
        )
        height, width = annotation["size"]
        return _Image((int(height), int(width)), found, target)

    def _evaluated(self) -> dict[Kind, Table]:
        """The evaluator's tables, kept until another image comes."""
        if not self._tables:
            images = self._images.values()
            if not images:
                raise ValueError("no image was scored; the validation split is empty or none of its files can be read")
            if all(image.target.crowd.all() for image in images):
                raise ValueError(f"none of the {len(images)} images scored shows an object; give a set that has some")
            has_masks = self.with_masks and all(image.target.masks is not None for image in images)
            kinds: tuple[Kind, ...] = ("box", "mask") if has_masks else ("box",)
            self._tables = {kind: self._evaluate(kind) for kind in kinds}
        return self._tables

    def _evaluate(self, kind: Kind) -> Table:
        """`precision` (T, R, K, A, D) and `recall` (T, K, A, D), −1 where there is nothing to find."""
        # Images are numbered in the order of their ids, so equal scores rank alike however the images came.
        images = [image for _, image in sorted(self._images.items())]
        frame = {
            "images": [{"id": at, "height": p.size[0], "width": p.size[1]} for at, p in enumerate(images)],
            "categories": [{"id": label, "name": name} for label, name in enumerate(self.classes)],
        }
        target = COCO(frame | {"annotations": _numbered([_target_rows(p.target, p.size, kind) for p in images])})
        found = COCO(frame | {"annotations": _numbered([_found_rows(p.found, p.size, kind) for p in images])})
        evaluator = COCOeval_faster(target, found, IOU_TYPES[kind])
        evaluator.params.maxDets = self.limits
        evaluator.evaluate()
        evaluator.accumulate()
        return {name: np.asarray(evaluator.eval[name]) for name in ("precision", "recall")}


def _target_rows(target: _Target, size: tuple[int, int], kind: Kind) -> list[Row]:
    columns = {"area": target.areas.tolist(), "iscrowd": target.crowd.astype(int).tolist()}
    return _rows(target.boxes, target.labels, columns | _segmentations(target.masks, size, kind))


def _found_rows(found: _Found, size: tuple[int, int], kind: Kind) -> list[Row]:
    segmentations = _segmentations(found.masks, size, kind)
    if segmentations:
        areas = np.asarray(coco_mask.area(segmentations["segmentation"])).tolist() if len(found.labels) else []
    else:
        areas = _xywh(found.boxes)[:, 2:].prod(1).tolist()
    columns = {"area": areas, "score": found.scores.tolist(), "iscrowd": [0] * len(areas)}
    return _rows(found.boxes, found.labels, columns | segmentations)


def _segmentations(masks: list[bytes] | None, size: tuple[int, int], kind: Kind) -> dict[str, list[Any]]:
    if kind == "box":
        return {}
    assert masks is not None
    return {"segmentation": [{"size": list(size), "counts": counts} for counts in masks]}


def _rows(boxes: np.ndarray, labels: np.ndarray, columns: Mapping[str, list[Any]]) -> list[Row]:
    """One dict for each object, from columns of them."""
    columns = {"bbox": _xywh(boxes).tolist(), "category_id": labels.tolist(), **columns}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _numbered(rows_of_images: Sequence[list[Row]]) -> list[Row]:
    """Every row with the number of its image and its own; numbers of rows begin at 1, since 0 means no match."""
    rows = [row | {"image_id": at} for at, rows in enumerate(rows_of_images) for row in rows]
    return [row | {"id": number} for number, row in enumerate(rows, 1)]


def _precision(table: Table, threshold: int | None = None, area: int = ALL_AREAS, label: int | None = None) -> Figure:
    """Mean of the precision over thresholds, points of recall and classes, or of one threshold or class of them."""
    thresholds = slice(None) if threshold is None else slice(threshold, threshold + 1)
    labels = slice(None) if label is None else slice(label, label + 1)
    return _mean(table["precision"][thresholds, :, labels, area, HIGHEST])


def _recall(table: Table, area: int = ALL_AREAS, limit: int = HIGHEST) -> Figure:
    return _mean(table["recall"][:, :, area, limit])


def _mean(values: np.ndarray) -> Figure:
    """Mean in percent of what is not −1, or None."""
    known = values[values > -1]
    return 100.0 * float(known.mean()) if known.size else None


def _xywh(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _array(values: Any, dtype: type) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        # bfloat16, as scores may be, is unknown to NumPy.
        values = (values.float() if values.is_floating_point() else values).cpu().numpy()
    return np.asarray(values).astype(dtype)


def _compressed(masks: Any) -> list[bytes] | None:
    """Bitmaps (N, H, W), or run lengths, as COCO's compressed run lengths."""
    if masks is None:
        return None
    if isinstance(masks, torch.Tensor):
        masks = masks.cpu()
    # One bitmap at a time: all at once would need as much memory again.
    return [_counts(mask) if isinstance(mask, Mapping) else _encode(mask) for mask in masks]


def _counts(mask: Mapping[str, Any]) -> bytes:
    counts = mask["counts"]
    if isinstance(counts, list | tuple):
        runs: Any = coco_mask.frPyObjects({"size": list(mask["size"]), "counts": list(counts)}, *mask["size"])
        return runs["counts"]
    return counts.encode("ascii") if isinstance(counts, str) else counts


def _encode(bitmap_HW: Any) -> bytes:
    return coco_mask.encode(np.asfortranarray(_array(bitmap_HW, np.uint8)))["counts"]

"""The score that Grad-CAM explains: of each kind of task one number that gradients flow from.

Legend: `H W` grid or pixels · `K` classes · `N` anchors or detections.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from globalvit.closest import suggest
from globalvit.detectors.anchors import flatten
from globalvit.detectors.boxes import clip, decode, iou
from globalvit.detectors.cascade import CascadeHeads
from globalvit.detectors.padding import scale_boxes
from globalvit.explain.scene import Region, Scene
from globalvit.explain.trace import Asked
from globalvit.tasks.detect import DenseDetector, Detector, RegionDetector
from globalvit.tasks.segment import Segmenter
from globalvit.tasks.task import Task

BACKGROUND = "background"


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """A score, whose it is, and where in the image it was read if not everywhere."""

    score: Tensor
    target: int
    region: Region | None = None


def score_of(scene: Scene, images_BCHW: Tensor, asked: Asked) -> Scored:
    """The score of the class asked for, or of the one that the model says.

    Raises:
        ValueError: the class is not there, or nothing in the image has a score of it.
    """
    if asked.target is not None:
        _check_target(scene.model, asked.target)
    return _OF_KIND[scene.model.kind](scene, images_BCHW, asked)


def find_class(model: Task, word: str) -> int:
    """The label of a class, by its name or its number.

    Raises:
        ValueError: no class is called so; the text gives the closest names.
    """
    names = model.class_names
    if word in names:
        return names.index(word)
    if word.isdecimal():
        return _check_target(model, int(word))
    near = suggest(word, names) or f" Known: {_some(names)}"
    raise ValueError(f"class {word!r} is not known.{near}")


def _check_target(model: Task, target: int) -> int:
    if not 0 <= target < model.spec.num_classes:
        raise ValueError(f"target={target} is not there; the classes are 0 to {model.spec.num_classes - 1}")
    return target


def _of_image(scene: Scene, images_BCHW: Tensor, asked: Asked) -> Scored:
    logits_K = scene.model(images_BCHW)[0]
    target = int(logits_K.argmax()) if asked.target is None else asked.target
    return Scored(score=logits_K[target], target=target)


def _of_pixels(scene: Scene, images_BCHW: Tensor, asked: Asked) -> Scored:
    """Logits summed over a pixel or region, else over all places that the class was found at."""
    model = cast(Segmenter, scene.model)
    logits_KHW = model.coarse_logits(images_BCHW)[0]
    found_HW = logits_KHW.argmax(0)
    if asked.pixel is not None or asked.region is not None:
        grid = (found_HW.shape[0], found_HW.shape[1])
        is_asked_HW = scene.start(model.backbone.strides[0], grid, asked.pixel, asked.region) > 0
        target = _commonest(model, found_HW[is_asked_HW]) if asked.target is None else asked.target
    else:
        target = _commonest(model, found_HW.flatten()) if asked.target is None else asked.target
        is_asked_HW = found_HW == target
    if not is_asked_HW.any():
        found = [model.class_names[label] for label in found_HW.unique().tolist()]
        raise ValueError(
            f"no pixel was found to be {model.class_names[target]!r}; choose a pixel or region whose score to explain, "
            f"or one of the classes that were found: {_some(found)}"
        )
    return Scored(score=logits_KHW[target][is_asked_HW].sum(), target=target)


def _commonest(model: Task, labels_N: Tensor) -> int:
    """The label that occurs most; the background only where there is nothing else."""
    counts_K = labels_N.bincount(minlength=model.spec.num_classes)
    for label, name in enumerate(model.class_names):
        if name.lower() == BACKGROUND and counts_K[label] < len(labels_N):
            counts_K[label] = 0
    return int(counts_K.argmax())


def _of_object(scene: Scene, images_BCHW: Tensor, asked: Asked) -> Scored:
    """The logit of one detection: the best of its class, at the pixel or region where one is given."""
    model = cast(Detector, scene.model)
    box_4, target = _chosen(scene, model, asked)
    maps = model(images_BCHW)
    if isinstance(model, RegionDetector):
        score = _region_logit(model, maps["features"], box_4, target)
    else:
        score = _anchor_logit(cast(DenseDetector, model), maps, box_4, target, scene.input_size)
    left, top, right, bottom = scale_boxes(box_4, scene.input_size, scene.original_size).round().int().tolist()
    return Scored(score=score, target=target, region=(left, top, max(right, left + 1), max(bottom, top + 1)))


def _chosen(scene: Scene, model: Detector, asked: Asked) -> tuple[Tensor, int]:
    """Box in the input's pixels and label of the detection that is meant."""
    found = model.predict(scene.images[0])[0]
    boxes_N4, labels_N = found["boxes"], found["labels"]
    if not len(boxes_N4):
        raise ValueError(
            "nothing was found in the image, so there is no score to explain; take another image or train longer"
        )
    if asked.target is not None:
        is_class = labels_N == asked.target
        if not is_class.any():
            name, others = model.class_names[asked.target], dict.fromkeys(found["names"])
            raise ValueError(f"no {name!r} was found in the image; found were {_some(list(others))}")
        boxes_N4, labels_N = boxes_N4[is_class], labels_N[is_class]
    best = _nearest(scene, boxes_N4, asked)
    return boxes_N4[best].to(scene.images.device), int(labels_N[best])


def _nearest(scene: Scene, boxes_N4: Tensor, asked: Asked) -> int:
    """The first box, or the first that holds the pixel, or the one that overlaps the region most."""
    if asked.pixel is None and asked.region is None:
        return 0
    x, y = asked.pixel or (0, 0)
    given = asked.region or (x, y, x + 1, y + 1)
    # A place outside the image is refused in the same words as elsewhere.
    scene.cells_of(asked.region, 1) if asked.region else scene.cell_of((x, y), 1)
    place_14 = scale_boxes(boxes_N4.new_tensor([given], dtype=torch.float32), scene.original_size, scene.input_size)
    if asked.region is not None:
        return int(iou(boxes_N4, place_14)[:, 0].argmax())
    middle = place_14[0].view(2, 2).mean(0)
    holds = (boxes_N4[:, :2] <= middle).all(1) & (middle <= boxes_N4[:, 2:]).all(1)
    if not holds.any():
        raise ValueError(f"no object was found at pixel={x},{y}; choose a pixel of one, or leave it out for the best")
    return int(holds.nonzero()[0, 0])


def _region_logit(model: RegionDetector, features: list[Tensor], box_4: Tensor, target: int) -> Tensor:
    """What the box head says of the box, of a cascade the mean of its three."""
    boxes = [box_4[None]]
    if not isinstance(model.roi, CascadeHeads):
        return model.roi.boxes(features, boxes)[0][0, target]
    stages = range(len(model.roi.box_heads))
    return torch.stack([model.roi.boxes(stage, features, boxes)[0][0, target] for stage in stages]).mean()


def _anchor_logit(
    model: DenseDetector, maps: dict[str, list[Tensor]], box_4: Tensor, target: int, size: tuple[int, int]
) -> Tensor:
    """The logit of the anchor that the box came from: the one whose own box is the nearest."""
    anchors, per_cell = torch.cat(model.dense.anchors.of_maps(maps["logits"])), model.dense.anchors.per_cell
    logits_NK, deltas_N4 = (
        torch.cat([flatten(x, per_cell) for x in maps[name]], 1)[0] for name in ("logits", "deltas")
    )
    with torch.no_grad():
        overlaps_N = iou(clip(decode(anchors, deltas_N4), size), box_4[None])[:, 0]
    return logits_NK[int(overlaps_N.argmax()), target]


def _some(names: list[str] | tuple[str, ...], most: int = 8) -> str:
    """A few names and dots."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


_OF_KIND: dict[str, Callable[[Scene, Tensor, Asked], Scored]] = {
    "classify": _of_image,
    "segment": _of_pixels,
    "detect": _of_object,
}

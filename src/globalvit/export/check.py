"""Whether a written file gives what the model gives, at several sizes and batches, and how fast.

Legend: `B` images · `N` detections · `h w` grid.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from globalvit.export.graph import Graph
from globalvit.export.plan import Plan

Run = Callable[[Tensor], list[Tensor]]
BATCHES = (1, 2, 3)
# The smallest there is, a square one, and odd and oblong ones that no window divides.
SIZES = ((32, 32), (64, 64), (97, 131), (160, 96))
# Largest difference as a part of the largest value.
LIMITS = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
# Where answers are chosen, not computed, equal scores may be ordered either way.
CHOSEN_LIMIT = 2e-2
PIXELS = 0.5
# Seconds beside which what a first run prepares counts for little.
LONG = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One run of the written file beside the model.

    Attributes:
        batch: images.
        height: of the images in pixels.
        width: of the images in pixels.
        difference: the largest of any output, as a part of its largest value; of labels and boxes, the share of those
            that the model does not have; of masks, the mean over one.
        seconds: that the file took.
        eager_seconds: that the model took.
        objects: detections of the model that were compared; None where there are none to compare.
    """

    batch: int
    height: int
    width: int
    difference: float
    seconds: float
    eager_seconds: float
    objects: int | None = None


def check(graph: Graph, run: Run, reference: Graph) -> Iterator[Check]:
    """Run file and model at every batch and size that the plan leaves open.

    Args:
        graph: what the file was made of.
        run: runs the file.
        reference: the same in float32.

    Raises:
        ValueError: the file fails, or differs by more than its precision explains; the text says where and by how much.
    """
    for batch, (height, width) in cases(graph.plan):
        images = graph.noise(batch, height, width)
        name = f"batch {batch} of {height}×{width} pixels"
        found, seconds = _timed(run, images, name)
        with torch.inference_mode():
            expected, eager_seconds = _timed(lambda x: list(reference(x)), images, name)
        done = Check(
            batch=batch,
            height=height,
            width=width,
            difference=differ(graph.names, found, expected, name),
            seconds=seconds,
            eager_seconds=eager_seconds,
            objects=_count(dict(zip(graph.names, expected, strict=True))) if "boxes" in graph.names else None,
        )
        limit = CHOSEN_LIMIT if _is_chosen(graph) else LIMITS[graph.plan.precision]
        if not done.difference <= limit:
            raise ValueError(
                f"the file's answers differ from the model's by {done.difference:.2g} at {name}, more than {limit:g}; "
                f"no file was kept: try another opset, or bind it to one size with image_size"
            )
        yield done


def cases(plan: Plan) -> list[tuple[int, tuple[int, int]]]:
    """(batch, size) of every check."""
    sizes = SIZES if plan.image_size is None else (plan.image_size,)
    return [(batch, size) for batch in (BATCHES if plan.has_open_batch else (1,)) for size in sizes]


def _is_chosen(graph: Graph) -> bool:
    return graph.plan.has_postprocessing and graph.task.kind != "classify"


def _timed(run: Run, images: Tensor, name: str) -> tuple[list[Tensor], float]:
    """The outputs, and the seconds of a second run, as the first one may prepare; a long one is not repeated."""
    try:
        outputs, seconds = _clock(run, images)
        return (outputs, seconds) if seconds >= LONG else _clock(run, images)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the file does not run on {name}, so none was kept: {reason}") from error


def _clock(run: Run, images: Tensor) -> tuple[list[Tensor], float]:
    start = time.perf_counter()
    outputs = run(images)
    return outputs, time.perf_counter() - start


def differ(names: Sequence[str], found: Sequence[Tensor], expected: Sequence[Tensor], name: str) -> float:
    """The largest difference of any output.

    Raises:
        ValueError: an output has another shape.
    """
    for output, ours, theirs in zip(names, expected, found, strict=True):
        if ours.shape != theirs.shape:
            raise ValueError(
                f"the file's {output} is {tuple(theirs.shape)} at {name} where the model's is {tuple(ours.shape)}; "
                f"no file was kept: bind it to one size with image_size"
            )
    if "boxes" in names:
        return _differ_objects(dict(zip(names, found, strict=True)), dict(zip(names, expected, strict=True)))
    return max(_differ(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def _differ(found: Tensor, expected: Tensor) -> float:
    if not expected.is_floating_point():
        return float((found != expected).float().mean())
    if not found.isfinite().all():
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


def _count(expected: dict[str, Tensor]) -> int:
    return int((expected["scores"] > 0).sum())


def _differ_objects(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The share of the model's detections that the file misses, or the difference of scores or masks if larger."""
    scores = _differ(found["scores"], expected["scores"])
    real_BN = expected["scores"] > 0
    near_BNN = (found["boxes"][:, None] - expected["boxes"][:, :, None]).abs().amax(-1) <= PIXELS
    same_BNN = near_BNN & (found["labels"][:, None] == expected["labels"][:, :, None])
    missing = (real_BN & ~same_BNN.any(2)).sum() / real_BN.sum().clamp(min=1)
    masks = _differ_masks(found["masks"], expected["masks"], same_BNN & real_BN[..., None]) if "masks" in found else 0.0
    return max(scores, float(missing), masks)


def _differ_masks(found_BNhw: Tensor, expected_BNhw: Tensor, same_BNN: Tensor) -> float:
    """The largest mean difference of an object's mask and its counterpart's."""
    images, objects, counterparts = same_BNN.nonzero(as_tuple=True)
    if not len(images):
        return 0.0
    differences = (found_BNhw[images, counterparts] - expected_BNhw[images, objects]).abs().mean((1, 2))
    return float(differences.max().nan_to_num(nan=float("inf")))

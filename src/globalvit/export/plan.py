"""Options of an export, checked before any work is done."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from globalvit.detectors.limits import MOST_DETECTIONS, check_limit
from globalvit.models.variants import as_size

Format = Literal["onnx", "torch"]
Precision = Literal["fp32", "fp16", "bf16"]
Layout = Literal["nchw", "nhwc"]
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
ENDINGS = ".onnx (ONNX) or .pt2 (torch.export)"
PRECISIONS = ("fp32", "fp16", "bf16")
LAYOUTS = ("nchw", "nhwc")
DYNAMIC = ("batch", "size")
# 18 is the oldest that torch writes without a conversion, which loses sizes; newer ones have nothing these graphs need.
OPSETS = range(18, 24)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Options of an exported file.

    Attributes:
        format: `onnx`, or `torch` for torch.export's `.pt2`.
        precision: of weights and arithmetic; float images go in and floats come out as float32 all the same.
        image_size: (height, width) that the file is bound to; None leaves the size open.
        has_open_batch: any number of images goes in; else one at a time.
        preprocessing: layout of uint8 images that are normalized inside; None takes float32 NCHW, normalized outside.
        has_postprocessing: probabilities, label maps or boxes come out, not raw maps.
        opset: of ONNX.
        score_threshold: the score that a detection has to exceed, where boxes are found inside.
        max_detections: objects of each image, where boxes are found inside.

    Raises:
        ValueError: a value is none of these, or no runtime could run the file.
    """

    format: Format
    precision: Precision = "fp32"
    image_size: tuple[int, int] | None = None
    has_open_batch: bool = True
    preprocessing: Layout | None = None
    has_postprocessing: bool = False
    opset: int = OPSETS[0]
    score_threshold: float = 0.05
    max_detections: int = MOST_DETECTIONS

    def __post_init__(self) -> None:
        if self.format not in SUFFIXES:
            raise ValueError(f"format={self.format!r} must be 'onnx' or 'torch'")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision={self.precision!r} must be one of {', '.join(PRECISIONS)}")
        if self.format == "onnx" and self.precision == "bf16":
            raise ValueError(
                "precision='bf16' is refused for ONNX: onnxruntime has no bf16 convolutions on a CPU, so that the file "
                "could not be checked; take fp16 or fp32, or format='torch', which runs bf16"
            )
        if self.preprocessing is not None and self.preprocessing not in LAYOUTS:
            raise ValueError(f"preprocessing={self.preprocessing!r} must be 'nchw' or 'nhwc', the layout of the images")
        if self.opset not in OPSETS:
            raise ValueError(f"opset={self.opset} must be {OPSETS[0]} to {OPSETS[-1]}")
        if self.format != "onnx" and self.opset != OPSETS[0]:
            raise ValueError(f"opset={self.opset} does not apply to a .pt2 file; leave it out")
        if not 0 <= self.score_threshold < 1:
            raise ValueError(f"score_threshold={self.score_threshold} must be 0 or more and under 1")
        check_limit(self.max_detections)


def choose_format(path: Path, given: str | None) -> Format:
    """Return the given format, or that of the file name's ending.

    Raises:
        ValueError: the file name has another ending.
    """
    by_suffix = {suffix: name for name, suffix in SUFFIXES.items()}
    found = given or by_suffix.get(path.suffix)
    if found not in SUFFIXES or path.suffix != SUFFIXES[found]:
        wanted = f"{SUFFIXES[given]} for the format {given}" if given in SUFFIXES else ENDINGS
        raise ValueError(f"expected a file name ending in {wanted}, got {path}")
    return "onnx" if found == "onnx" else "torch"


def choose_sizes(
    image_size: int | tuple[int, int] | None, dynamic: Collection[str] | None, own: tuple[int, int]
) -> tuple[tuple[int, int] | None, bool]:
    """Return (the fixed image size or None, whether the batch size is dynamic).

    Args:
        image_size: side or (height, width) that was asked for.
        dynamic: what was asked to stay open, of `batch` and `size`; None is both, or `batch` with an `image_size`.
        own: the model's own size, for a file that is bound to one nobody named.

    Raises:
        ValueError: a word is neither, or the size was both named and asked to stay open.
    """
    if dynamic is None:
        dynamic = ("batch",) if image_size is not None else DYNAMIC
    if unknown := sorted(set(dynamic) - set(DYNAMIC)):
        words = ", ".join(map(repr, unknown))
        raise ValueError(f"dynamic={words} must be 'batch', 'size', both or neither")
    if "size" in dynamic and image_size is not None:
        raise ValueError(
            f"image_size={image_size} binds the file to one size and dynamic='size' leaves it open; leave one out"
        )
    if "size" in dynamic:
        return None, "batch" in dynamic
    return (own if image_size is None else as_size(image_size)), "batch" in dynamic

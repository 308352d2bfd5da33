"""The published weight files: address, license, preprocessing and score of each.

No torch here. Another family adds its lines to `RECORDS`. Published detection and segmentation weights are not in the
table because no such files could be located; their form is readable all the same (see `forms.py`).

Scores are percent of ImageNet-1K's validation images, as the authors of the weights print them. timm's files are copies
of NVIDIA's weights of 2022, for which no figure of its own is repeated here.
"""

from dataclasses import asdict, dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeGuard

from globalvit.closest import suggest
from globalvit.models.variants import unalias

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
GCVIT_LICENSE = "CC-BY-NC-SA-4.0"
GPVIT_LICENSE = "Apache-2.0"
GPVIT_RELEASE = "https://github.com/ChenhongyiYang/GPViT/releases/download/v0.0.1"
# Stands for a model's first weights, so that a recipe can serve every model.
FIRST = "published"
HUB = "https://huggingface.co"


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """Preprocessing of images for a classifier, as its weights were evaluated.

    Attributes:
        image_size: (height, width) of the tensor, in pixels.
        crop_ratio: part of the resized image's side that the center crop keeps.
        crop_mode: `center` resizes and crops the center, `squash` resizes the whole image to `image_size`.
        interpolation: of the resizing.
        mean: subtracted from each channel of values in 0 … 1.
        std: divides each channel after that.
    """

    image_size: tuple[int, int]
    crop_ratio: float = 1.0
    crop_mode: Literal["center", "squash"] = "center"
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """Preprocessing of images for a segmenter or detector, as its weights were evaluated.

    Attributes:
        short_side: of the resized image, in pixels, unless the longer one would pass `long_side`; None leaves its
            size.
        long_side: in pixels.
        multiple: both sides are rounded up to a multiple of this.
        interpolation: of the resizing.
        mean: subtracted from each channel of values in 0 … 1.
        std: divides each channel after that.
    """

    short_side: int | None
    long_side: int
    multiple: int = 1
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def preprocessing_of(transform: Any) -> Preprocessing | Fit:
    """Return the record of an evaluation transform: a `Preprocessing` or `Fit` with its fields."""
    kind = Fit if hasattr(transform, "short_side") else Preprocessing
    return kind(**{field.name: getattr(transform, field.name) for field in fields(kind)})


def preprocessing_from_dict(values: dict[str, Any]) -> Preprocessing | Fit:
    """Return the `Preprocessing` or `Fit` that `to_dict` was called on."""
    plain: dict[str, Any] = {key: tuple(one) if isinstance(one, list) else one for key, one in values.items()}
    return Fit(**plain) if "short_side" in plain else Preprocessing(**plain)


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightRecord:
    """A published weight file.

    Attributes:
        model: the model it fits.
        weights: its name in `create_model(weights=...)`.
        form: whose names its entries have: `gcvit_official`, `gpvit_official`, `timm` or `mm`.
        source: `hub` (Hugging Face), `url`, or `drive` (Google Drive, which only a browser can fetch from).
        address: where it is, for a person or a browser.
        file_name: what a copy of it is called.
        repo: the repository on the hub and the file in it; None for other sources.
        license: SPDX identifier of the weights' license.
        preprocessing: its evaluation transform.
        num_classes: outputs of its head.
        top1: accuracy in percent, None where none is published.
        top5: percent of images whose class is among the first five.
    """

    model: str
    weights: str
    form: str
    source: Literal["hub", "url", "drive"]
    address: str
    file_name: str
    repo: tuple[str, str] | None = None
    license: str
    preprocessing: Preprocessing
    num_classes: int = 1000
    top1: float | None = None
    top5: float | None = None


def records(model: str) -> tuple[WeightRecord, ...]:
    """Return the weight files of a model, its authors' own first; empty if none are published."""
    model = unalias(model)
    return tuple(record for record in RECORDS if record.model == model)


def find(model: str, weights: str) -> WeightRecord:
    """Return the record of a model's weights; `published` is the first one.

    Raises:
        ValueError: the model has no weights of this name; the text gives the closest ones.
    """
    known = {record.weights: record for record in records(model)}
    if weights == FIRST and known:
        return next(iter(known.values()))
    if weights not in known:
        has = f"it has {', '.join(known)}" if known else "none are published for it"
        raise ValueError(f"model {model!r} has no weights {weights!r}; {has}.{suggest(weights, known)}")
    return known[weights]


def is_name(weights: object) -> TypeGuard[str]:
    """Return whether `weights` is a name of this catalog, known or misspelled, rather than a path."""
    if not isinstance(weights, str):
        return False
    if any(record.weights == weights for record in RECORDS):
        return True
    return not any(mark in weights for mark in "./\\") and not Path(weights).exists()


def find_file(path: str | PathLike[str]) -> WeightRecord | None:
    """Return the record of a file with its published name or in Hugging Face's cache; None for any other file."""
    path = Path(path)
    return next((record for record in RECORDS if record.file_name == path.name or _is_cached(path, record)), None)


def _is_cached(path: Path, record: WeightRecord) -> bool:
    if record.repo is None:
        return False
    repo, file = record.repo
    return path.name == file and f"models--{repo.replace('/', '--')}" in path.parts


def default_preprocessing(model: str) -> Preprocessing:
    """Return the evaluation transform of a model's first weights.

    Raises:
        ValueError: no weights are published for the model.
    """
    found = records(model)
    if not found:
        raise ValueError(f"no weights are published for model {model!r}; give its preprocessing")
    return found[0].preprocessing


def _center(crop_ratio: float, side: int = 224) -> Preprocessing:
    return Preprocessing(image_size=(side, side), crop_ratio=crop_ratio)


def _squash(side: int) -> Preprocessing:
    return Preprocessing(image_size=(side, side), crop_mode="squash")


def _nvidia(model: str, weights: str, file_name: str, preprocessing: Preprocessing, top1: float | None) -> WeightRecord:
    return WeightRecord(
        model=model,
        weights=weights,
        form="gcvit_official",
        source="hub",
        address=f"{HUB}/nvidia/GCViT/resolve/main/{file_name}",
        file_name=file_name,
        repo=("nvidia/GCViT", file_name),
        license=GCVIT_LICENSE,
        preprocessing=preprocessing,
        top1=top1,
    )


def _timm(model: str) -> WeightRecord:
    return WeightRecord(
        model=model,
        weights="timm_in1k",
        form="timm",
        source="hub",
        address=f"{HUB}/timm/{model}.in1k/resolve/main/model.safetensors",
        file_name=f"{model}.in1k.safetensors",
        repo=(f"timm/{model}.in1k", "model.safetensors"),
        # timm's pages say Apache-2.0, but the weights are NVIDIA's, renamed.
        license=GCVIT_LICENSE,
        preprocessing=_center(0.875),
    )


def _gpvit(size: int, top1: float, top5: float) -> WeightRecord:
    file_name = f"gpvit_l{size}_in1k_300e.pth"
    return WeightRecord(
        model=f"gpvit_l{size}",
        weights="gpvit_in1k",
        form="gpvit_official",
        source="url",
        address=f"{GPVIT_RELEASE}/{file_name}",
        file_name=file_name,
        license=GPVIT_LICENSE,
        preprocessing=_center(0.875),
        top1=top1,
        top5=top5,
    )


_1K, _21K = "nvidia_in1k", "nvidia_in21k_ft_in1k"
RECORDS: tuple[WeightRecord, ...] = (
    _nvidia("gcvit_xxtiny", _1K, "gcvit_1k_xxtiny.pth.tar", _center(1.0), 79.9),
    _nvidia("gcvit_xtiny", _1K, "gcvit_1k_xtiny.pth.tar", _center(0.875), 82.0),
    _nvidia("gcvit_tiny", _1K, "gcvit_1k_tiny.pth.tar", _center(1.0), 83.5),
    _nvidia("gcvit_tiny2", _1K, "gcvit_1k_tiny2.pth.tar", _center(0.875), 83.7),
    _nvidia("gcvit_small", _1K, "gcvit_1k_small.pth.tar", _center(0.875), 84.3),
    _nvidia("gcvit_small2", _1K, "gcvit_1k_small2.pth.tar", _center(0.875), 84.8),
    _nvidia("gcvit_base", _1K, "gcvit_1k_base.pth.tar", _center(1.0), 85.0),
    _nvidia("gcvit_large", _1K, "gcvit_1k_large.pth.tar", _center(1.0), 85.7),
    WeightRecord(
        model="gcvit_large",
        weights=_21K,
        form="gcvit_official",
        source="drive",
        address="https://drive.google.com/uc?export=download&id=1maGDr6mJkLyRTUkspMzCgSlhDzNRFGEf",
        file_name="gcvit_21k_large_224.pth.tar",
        license=GCVIT_LICENSE,
        preprocessing=_center(1.0),
        top1=86.6,
    ),
    _nvidia("gcvit_large_384", _21K, "gcvit_21k_large_384.pth.tar", _squash(384), 87.4),
    _nvidia("gcvit_large_512", _21K, "gcvit_21k_large_512.pth.tar", _squash(512), None),
    _timm("gcvit_xxtiny"),
    _timm("gcvit_xtiny"),
    _timm("gcvit_tiny"),
    _timm("gcvit_small"),
    _timm("gcvit_base"),
    _gpvit(1, 80.5, 95.4),
    _gpvit(2, 83.4, 96.6),
    _gpvit(3, 84.1, 96.9),
    _gpvit(4, 84.3, 96.9),
)

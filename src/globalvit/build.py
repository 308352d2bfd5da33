"""Models by name: `create_model`, `list_models`, `model_info`, and opening what a training left behind."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from os import PathLike
from typing import Any

from torch import nn

from globalvit.closest import suggest
from globalvit.data.imagenet import imagenet_names
from globalvit.data.transforms import EvalTransform
from globalvit.heads.classify import ClassifyHead, GroupPool, MeanPool
from globalvit.models.backbone import Backbone
from globalvit.models.gcvit import GCViT
from globalvit.models.gpvit import GPViT
from globalvit.models.variants import (
    ALIASES,
    PUBLISHED,
    VARIANTS,
    Form,
    GCViTConfig,
    GPViTConfig,
    ModelSpec,
    Published,
    Window,
    as_size,
    choose_window,
)
from globalvit.tasks.classify import Classifier
from globalvit.tasks.task import Task
from globalvit.weights import catalog, load
from globalvit.weights.load import LoadReport

IMAGENET_CLASSES = 1000
Source = str | PathLike[str] | Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """What is known of a model without building it.

    Attributes:
        name: as `list_models` gives it.
        published: counted and printed figures.
        config: the backbone's sizes.
        weights: its published weight files, with address, licence, preprocessing and score.
    """

    name: str
    published: Published
    config: GCViTConfig | GPViTConfig
    weights: tuple[catalog.WeightRecord, ...]


def list_models(pattern: str = "*") -> list[str]:
    """Names that `create_model` knows and that match a shell-style `pattern`, in the order of size."""
    return [name for name in VARIANTS if fnmatchcase(name, pattern)]


def model_info(name: str) -> ModelInfo:
    """Parameters, multiply-adds, published scores, weights, licences and preprocessing of a model.

    Raises:
        ValueError: no model has this name; the text gives the closest ones.
    """
    name = resolve_name(name)
    return ModelInfo(name=name, published=PUBLISHED[name], config=VARIANTS[name], weights=catalog.records(name))


def resolve_name(name: str) -> str:
    """The name of `list_models` that `name` is, or stands for as an alias such as `gc_vit_tiny`.

    Raises:
        ValueError: no model has this name; the text gives the closest ones.
    """
    resolved = ALIASES.get(name, name)
    if resolved not in VARIANTS:
        hint = suggest(name, [*VARIANTS, *ALIASES]) or " `globalvit models` lists them."
        raise ValueError(f"model {name!r} is not known.{hint}")
    return resolved


def create_model(
    name: str,
    weights: Source | None = None,
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    image_size: int | tuple[int, int] | None = None,
    window: Window | str | None = None,
    drop_path: float | None = None,
    classes: Sequence[str] | None = None,
    preprocessing: EvalTransform | None = None,
) -> Task:
    """Build a model for a task, with fresh weights or given ones.

    Args:
        name: one of `list_models`, or an alias such as `gc_vit_tiny`.
        weights: a name of the catalogue (`nvidia_in1k`), a file, or a state dict; None starts afresh.
        num_classes: outputs of the head; by default as many as `classes`, else 1000.
        in_channels: channels of the images.
        image_size: side or (height, width) in pixels that the windows are chosen for, 32 or more; it never restricts
            the images. None is the model's own.
        window: tokens a side of the attention windows in the four stages, or `"ratio"` for the paper's proportion to
            `image_size`; None is the variant's own, or the proportion under 224 pixels.
        drop_path: rate of the last block in place of the variant's own.
        classes: names of the labels 0 … num_classes − 1.
        preprocessing: evaluation transform in place of the weights' own.

    Returns:
        The task module, in training mode.

    Raises:
        ValueError: a name is not known or a value does not fit; the text says what would.
        OSError: the weights are not at hand and cannot be fetched; the text names the address and a folder for a copy.
    """
    name = resolve_name(name)
    record = catalog.find(name, weights) if catalog.is_name(weights) else None
    spec = ModelSpec(
        model=name,
        num_classes=num_classes or (len(classes) if classes else IMAGENET_CLASSES),
        in_channels=in_channels,
        image_size=None if image_size is None else as_size(image_size),
        window=None if window is None else _window(VARIANTS[name], image_size, window),
        drop_path=drop_path,
    )
    if classes is None and record is not None and spec.num_classes == IMAGENET_CLASSES:
        classes = imagenet_names()
    task = build_task(spec, preprocessing or _preprocessing(spec, record), tuple(classes) if classes else None)
    if weights is not None:
        load_weights(task, record or weights)
    return task


def build_task(spec: ModelSpec, preprocessing: EvalTransform, classes: tuple[str, ...] | None = None) -> Task:
    """The task module of a `ModelSpec`, with fresh weights.

    Raises:
        ValueError: `num_classes` is under 1, or does not fit `classes`.
    """
    if spec.num_classes < 1:
        raise ValueError(f"num_classes={spec.num_classes} must be at least 1")
    backbone = create_backbone(
        spec.model,
        in_channels=spec.in_channels,
        image_size=spec.image_size,
        window=spec.window,
        drop_path=spec.drop_path,
    )
    head = ClassifyHead(_pool(spec.model), backbone.channels[-1], spec.num_classes)
    head.init_weights()
    return Classifier(spec, backbone, head, preprocessing, classes)


def create_backbone(
    name: str,
    *,
    form: Form = "classification",
    in_channels: int = 3,
    image_size: int | tuple[int, int] | None = None,
    window: Window | str | None = None,
    drop_path: float | None = None,
    outputs: tuple[int, ...] | None = None,
) -> Backbone:
    """Build a backbone without a head, with fresh weights: `backbone(images)` gives its maps, finest first.

    Args:
        name: one of `list_models`.
        form: `detection` is the published detection backbone of GC ViT: windows of 24 and an LN on every map.
        in_channels: channels of the images.
        image_size: as in `create_model`.
        window: as in `create_model`.
        drop_path: rate of the last block in place of the variant's own.
        outputs: blocks of GPViT whose tokens become maps, by default the last one; `(2, 5, 8, 11)` in the papers'
            segmentation systems.

    Raises:
        ValueError: a name is not known or a value does not fit; the text says what would.
    """
    name = resolve_name(name)
    config = replace(VARIANTS[name], in_channels=in_channels)
    if drop_path is not None:
        config = replace(config, drop_path=drop_path)
    if isinstance(config, GPViTConfig):
        backbone = GPViT(_gpvit_config(config, form, image_size, window, outputs))
    else:
        backbone = GCViT(_gcvit_config(config, form, image_size, window, outputs))
    backbone.init_weights()
    return backbone


def _gcvit_config(
    config: GCViTConfig,
    form: Form,
    image_size: int | tuple[int, int] | None,
    window: Window | str | None,
    outputs: tuple[int, ...] | None,
) -> GCViTConfig:
    if outputs is not None:
        raise ValueError(f"outputs={outputs} chooses blocks of GPViT; GC ViT gives the maps of its four stages")
    if form == "detection":
        config = config.detection_form()
    if form == "classification" or window is not None:
        config = replace(config, window=choose_window(config, image_size, window))
    return config


def _gpvit_config(
    config: GPViTConfig,
    form: Form,
    image_size: int | tuple[int, int] | None,
    window: Window | str | None,
    outputs: tuple[int, ...] | None,
) -> GPViTConfig:
    if form == "detection":
        raise ValueError("form='detection' is GC ViT's; choose GPViT's maps with outputs=(2, 5, 8, 11)")
    if window is not None:
        _window(config, image_size, window)
    if image_size is not None:
        as_size(image_size)
    return config if outputs is None else replace(config, outputs=outputs)


def _window(
    config: GCViTConfig | GPViTConfig, image_size: int | tuple[int, int] | None, window: Window | str
) -> Window:
    if isinstance(config, GPViTConfig):
        raise ValueError(f"window={window!r} chooses the windows of GC ViT; GPViT has stripes of a fixed width")
    return choose_window(config, image_size, window)


def _pool(name: str) -> nn.Module:
    config = VARIANTS[name]
    return GroupPool(config.width) if isinstance(config, GPViTConfig) and config.pooling == "group" else MeanPool()


def _preprocessing(spec: ModelSpec, record: catalog.WeightRecord | None) -> EvalTransform:
    """The transform of the weights, or of the model's first ones, at the size and channels asked for."""
    values = asdict(record.preprocessing if record else catalog.default_preprocessing(spec.model))
    if spec.image_size is not None:
        values["image_size"] = spec.image_size
    return EvalTransform(**values).for_channels(spec.in_channels)


def load_weights(model: nn.Module, source: Source | catalog.WeightRecord) -> LoadReport:
    """Load published or own weights into a task or a backbone.

    Args:
        model: what `create_model` or `create_backbone` returned.
        source: a name of the catalogue, a file, or a state dict: ours, the official one, timm's or a detector's.

    Returns:
        What was taken, resized, left fresh and dropped.

    Raises:
        ValueError: the source does not fit the model; the text lists at most ten differing keys and their number.
        OSError: the file is missing or cannot be fetched; the text says where a copy can be put.
    """
    return load.load_weights(model, source)


def save_weights(model: Task, path: str | PathLike[str]) -> None:
    """Write a task's weights as safetensors, with what `open_checkpoint` needs to build it again.

    Args:
        model: what `create_model` returned.
        path: ends in `.safetensors`; the file is replaced atomically.

    Raises:
        OSError: the disk is full or the folder cannot be written; a file that was there is kept.
    """
    load.save_weights(path, model, model.spec, model.classes, model.preprocessing)


def preprocessing(name: str, weights: str | None = None) -> EvalTransform:
    """The evaluation transform of a model's weights: from a PIL image to a float tensor (3, H, W).

    Raises:
        ValueError: the model or the weights' name is not known.
    """
    name = resolve_name(name)
    return _preprocessing(ModelSpec(model=name), catalog.find(name, weights) if weights else None)


def open_checkpoint(
    path: str | PathLike[str], *, model: str | None = None, use_ema: bool = True, which: str = "best"
) -> Task:
    """Make a trained model ready for use.

    Args:
        path: a weight file, a checkpoint folder or a run folder.
        model: the model's name, for a file that does not say it.
        use_ema: take the averaged weights where there are some.
        which: checkpoint of a run folder: `best`, `last` or `step-N`.

    Returns:
        The task in evaluation mode, with its classes and preprocessing where the file holds them.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: the file does not say its model and `model` is None, or it does not fit the model.
    """
    found = load.resolve_checkpoint(path, which=which, use_ema=use_ema, model=model and resolve_name(model))
    given = found.preprocessing
    transform = EvalTransform(**asdict(given)) if given else _preprocessing(found.spec, found.record)
    task = build_task(found.spec, transform, found.classes)
    load_weights(task, found.file)
    return task.eval()

"""Models by name: `create_model`, `list_models`, `model_info`, and opening what a training left behind."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from os import PathLike
from typing import Any, Literal

from torch import nn

from globalvit import extensions
from globalvit.closest import names_arguments, suggest
from globalvit.data.classification.imagenet import imagenet_names
from globalvit.data.classification.transforms import EvalTransform
from globalvit.data.common.transforms import FitTransform
from globalvit.models.ablations import check_ablation
from globalvit.models.backbone import Backbone
from globalvit.models.gcvit import GCViT
from globalvit.models.gcvit_ablated import AblatedGCViT
from globalvit.models.gpvit import GPViT
from globalvit.models.variants import (
    GCVIT,
    GPVIT,
    PUBLISHED,
    Form,
    GCViTConfig,
    GPViTConfig,
    Kind,
    ModelSpec,
    Published,
    Window,
    as_size,
    choose_window,
    form_of,
    model_names,
    split_name,
    unalias,
    variants,
)
from globalvit.necks.gpvit_adapter import AdaptedGPViT
from globalvit.tasks.classify import Classifier, build_classifier
from globalvit.tasks.detect import build_detector
from globalvit.tasks.segment import build_segmenter
from globalvit.tasks.task import Preprocessing, Task
from globalvit.weights import catalog, load
from globalvit.weights.heads import head_of
from globalvit.weights.load import LoadReport, Weights
from globalvit.weights.names import listed
from globalvit.weights.thresholds import read_thresholds

IMAGENET_CLASSES = 1000
# Classes where none are asked for: those of ImageNet, ADE20K and COCO.
DEFAULT_CLASSES = {"classify": IMAGENET_CLASSES, "segment": 150, "detect": 80}
# Sides of the images in the papers' segmentation (ADE20K) and detection (COCO) systems.
FITS = {
    "segment": FitTransform(short_side=512, long_side=2048, multiple=32),
    "detect": FitTransform(short_side=800, long_side=1333),
}
# The finest stride of GPViT's pyramid in the forms that have one.
FINEST: dict[Form, Literal[4, 8]] = {"detection": 4, "one_stage": 8}
BUILDERS: dict[str, Callable[..., Task]] = {
    "classify": build_classifier,
    "segment": build_segmenter,
    "detect": build_detector,
}
Source = str | PathLike[str] | Mapping[str, Any] | Weights


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """What is known of a model without building it.

    Attributes:
        name: as `list_models` gives it.
        published: counted and printed figures; None for a network of an extension.
        config: the backbone's sizes.
        weights: its published weight files, with address, license, preprocessing and score.
    """

    name: str
    published: Published | None
    config: Any
    weights: tuple[catalog.WeightRecord, ...]


def list_models(pattern: str = "*", *, kind: Kind | None = None) -> list[str]:
    """Names that `create_model` knows and that match a shell-style `pattern`, in the order of size.

    Args:
        pattern: such as `gcvit_*` or `*_upernet`.
        kind: `classify`, `segment` or `detect`. Without it, classifiers are meant where some match the pattern: every
            name of a segmenter or detector begins with one's.
    """
    names = [name for name in model_names() if fnmatchcase(name, pattern)]
    classifiers = [name for name in names if name in variants()]
    if kind is None:
        return classifiers or names
    return [name for name in names if ModelSpec(model=name).kind == kind]


def model_info(name: str) -> ModelInfo:
    """Parameters, multiply-adds, published scores, weights, licenses and preprocessing of a model.

    Raises:
        ValueError: no model has this name; the text gives the closest ones.
    """
    name = resolve_name(name)
    backbone, _ = split_name(name)
    return ModelInfo(
        name=name, published=PUBLISHED.get(backbone), config=variants()[backbone], weights=catalog.records(backbone)
    )


def resolve_name(name: str) -> str:
    """The name of `list_models` that `name` is, or stands for as an alias such as `gc_vit_tiny`.

    Raises:
        ValueError: no model has this name; the text gives the closest ones.
    """
    resolved = unalias(name)
    if resolved not in model_names():
        hint = suggest(resolved, model_names()) or " `globalvit models` lists them."
        raise ValueError(f"model {name!r} is not known.{hint}")
    return resolved


@names_arguments
def create_model(
    name: str,
    weights: Source | None = None,
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    image_size: int | tuple[int, int] | None = None,
    window: Window | str | None = None,
    drop_path: float | None = None,
    ablation: Sequence[str] = (),
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    multi_label: bool = False,
) -> Task:
    """Build a model for a task, with fresh weights or given ones.

    Args:
        name: one of `list_models`, or an alias such as `gc_vit_tiny`.
        weights: a name of the catalog (`nvidia_in1k`), a file, or a state dict; None starts afresh.
        num_classes: outputs of the head; by default as many as `classes`, else 1000, of segmenters 150, of detectors
            80.
        in_channels: channels of the images.
        image_size: side or (height, width) in pixels that the windows are chosen for, 32 or more; it never restricts
            the images. None is the model's own.
        window: tokens a side of the attention windows in the four stages, `"ratio"` for the paper's proportion to
            `image_size`, `"own"` for the variant's own; None is the variant's own, or the proportion under 224 pixels,
            and 24 in detectors.
        drop_path: rate of the last block in place of the variant's own.
        ablation: designs of the paper's ablations in place of GC ViT's own, words of `models.ablations`.
        classes: names of the labels 0 … num_classes − 1.
        preprocessing: evaluation transform in place of the weights' own.
        multi_label: whether an image may have any number of a classifier's labels.

    Returns:
        The task module, in training mode.

    Raises:
        TypeError: an argument is unknown; the message names the one to use.
        ValueError: a name is not known or a value does not fit; the text says what would.
        OSError: the weights cannot be fetched; the text names the address and a folder for a copy.
    """
    name = resolve_name(name)
    classes = _class_names(classes)
    spec = ModelSpec(model=name, in_channels=in_channels, drop_path=drop_path, ablation=check_ablation(ablation))
    spec = replace(
        spec,
        multi_label=multi_label,
        num_classes=_num_classes(num_classes, classes, spec),
        image_size=None if image_size is None else as_size(image_size),
        window=None if window is None else _window(spec.backbone, image_size, window),
    )
    record = catalog.find(spec.backbone, weights) if catalog.is_name(weights) else None
    _refuse_published(record, spec)
    if classes is None and _is_imagenet(spec, record):
        classes = imagenet_names()
    task = build_task(spec, preprocessing or _preprocessing(spec, record), classes)
    if weights is not None:
        load_weights(task, record or weights)
    return task


def _class_names(classes: Sequence[str] | None) -> tuple[str, ...] | None:
    if classes is None:
        return None
    names = classes if isinstance(classes, str) else tuple(classes)
    if isinstance(names, str) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"expected the names of the classes as a list of texts, got classes={classes!r}")
    return names


def _num_classes(num_classes: int | None, classes: tuple[str, ...] | None, spec: ModelSpec) -> int:
    if num_classes is not None:
        return num_classes
    return len(classes) if classes else DEFAULT_CLASSES[spec.kind]


def build_task(spec: ModelSpec, preprocessing: Preprocessing, classes: tuple[str, ...] | None = None) -> Task:
    """The task module of a `ModelSpec`, with fresh weights.

    Raises:
        ValueError: a value does not fit the model, or `num_classes` does not fit `classes`.
    """
    backbone = create_backbone(
        spec.backbone,
        form=form_of(spec.head),
        in_channels=spec.in_channels,
        image_size=spec.image_size,
        window=spec.window,
        drop_path=spec.drop_path,
        ablation=spec.ablation,
    )
    registered = next((head for head in extensions.heads() if head.name == spec.head), None)
    build = registered.build if registered else BUILDERS[spec.kind]
    return build(spec, backbone, preprocessing, classes)


@names_arguments
def create_backbone(
    name: str,
    *,
    form: Form = "classification",
    in_channels: int = 3,
    image_size: int | tuple[int, int] | None = None,
    window: Window | str | None = None,
    drop_path: float | None = None,
    ablation: Sequence[str] = (),
    outputs: tuple[int, ...] | None = None,
) -> Backbone:
    """Build a backbone without a head, with fresh weights: `backbone(images)` gives its maps, finest first.

    Args:
        name: one of `list_models`.
        form: `segmentation` gives four maps, each with an LN; `detection` is the published detection backbone: GC ViT
            with windows of 24 and an LN on every map, GPViT with its adapter; `one_stage` is the form for detectors
            without a region stage, for which GPViT leaves out the map of stride 4.
        in_channels: channels of the images.
        image_size: as in `create_model`.
        window: as in `create_model`.
        drop_path: rate of the last block in place of the variant's own.
        ablation: as in `create_model`.
        outputs: blocks of GPViT whose tokens become maps, by default the last one; `(2, 5, 8, 11)` in the papers'
            segmentation systems.

    Raises:
        ValueError: a name is not known or a value does not fit; the text says what would.
    """
    name = resolve_name(name)
    config = replace(variants()[name], in_channels=in_channels)
    chosen = {} if drop_path is None else {"drop_path": drop_path}
    if image_size is not None:
        as_size(image_size)
    if not isinstance(config, GCViTConfig):
        _refuse_gcvits_own(name, ablation, window)
    if isinstance(config, GCViTConfig):
        config = replace(_gcvit_config(config, form, image_size, window, outputs), **chosen)
        backbone = AblatedGCViT(config, check_ablation(ablation)) if ablation else GCViT(config)
    elif isinstance(config, GPViTConfig):
        config = replace(_gpvit_config(config, form, outputs), **chosen)
        backbone = AdaptedGPViT(config, finest=FINEST[form]) if form in FINEST else GPViT(config)
    else:
        backbone = _from_extension(name, replace(config, **chosen), form, outputs)
    backbone.init_weights()
    return backbone


def _from_extension(name: str, config: Any, form: Form, outputs: tuple[int, ...] | None) -> Backbone:
    family = extensions.family_of(name)
    assert family is not None
    if outputs is not None:
        raise ValueError(f"outputs={outputs} chooses blocks of GPViT; leave it out for {name}")
    return family.build(config, form)


def _refuse_published(record: catalog.WeightRecord | None, spec: ModelSpec) -> None:
    if record is not None and spec.ablation:
        raise ValueError(
            f"the weights {record.weights} are GC ViT's own and do not fit ablation={','.join(spec.ablation)}; "
            f"start without weights (--weights none)"
        )


def _refuse_gcvits_own(name: str, ablation: Sequence[str], window: Window | str | None) -> None:
    if ablation:
        raise ValueError(f"ablation={','.join(ablation)} replaces parts of GC ViT; {name} has none of them")
    if window is not None:
        has = "GPViT has stripes of a fixed width" if name in GPVIT else f"leave it out for {name}"
        raise ValueError(f"window={window!r} chooses the windows of GC ViT; {has}")


def _gcvit_config(
    config: GCViTConfig,
    form: Form,
    image_size: int | tuple[int, int] | None,
    window: Window | str | None,
    outputs: tuple[int, ...] | None,
) -> GCViTConfig:
    if outputs is not None:
        raise ValueError(f"outputs={outputs} chooses blocks of GPViT; GC ViT gives the maps of its four stages")
    chosen = choose_window(config, image_size, window)
    if form == "segmentation":
        config = config.segmentation_form()
    if form in ("detection", "one_stage"):
        config = config.detection_form()
        chosen = config.window if window is None else chosen
    return replace(config, window=chosen)


def _gpvit_config(config: GPViTConfig, form: Form, outputs: tuple[int, ...] | None) -> GPViTConfig:
    if outputs is not None and form in FINEST:
        raise ValueError(f"outputs={outputs} chooses maps of stride 8; with form={form!r} the adapter makes the maps")
    if form == "segmentation":
        config = config.segmentation_form()
    if form in FINEST:
        config = config.detection_form()
    return config if outputs is None else replace(config, outputs=outputs)


def _window(name: str, image_size: int | tuple[int, int] | None, window: Window | str) -> Window:
    _refuse_gcvits_own(name, (), None if name in GCVIT else window)
    return choose_window(variants()[name], image_size, window)


def _preprocessing(spec: ModelSpec, record: catalog.WeightRecord | None) -> Preprocessing:
    """The transform of the task: a classifier's as its weights were evaluated, at the size and channels asked for."""
    if spec.kind != "classify":
        return _fit(spec).for_channels(spec.in_channels)
    values = asdict(record.preprocessing if record else _default_preprocessing(spec.model))
    if spec.image_size is not None:
        values["image_size"] = spec.image_size
    return EvalTransform(**values).for_channels(spec.in_channels)


def _default_preprocessing(model: str) -> catalog.Preprocessing:
    if catalog.records(model):
        return catalog.default_preprocessing(model)
    side = variants()[model].image_size
    return catalog.Preprocessing(image_size=(side, side))


def _fit(spec: ModelSpec) -> FitTransform:
    """Bounds of the sides as in the papers' systems, or in proportion for another image size."""
    published = FITS[spec.kind]
    assert published.short_side is not None
    if spec.image_size is None:
        return published
    short = min(spec.image_size)
    return replace(published, short_side=short, long_side=round(short * published.long_side / published.short_side))


def load_weights(
    model: nn.Module, source: Source | catalog.WeightRecord, *, use_ema: bool = True, allow_nonfinite: bool = False
) -> LoadReport:
    """Load published or own weights into a task or a backbone.

    Args:
        model: what `create_model` or `create_backbone` returned.
        source: a name of the catalog, a file, or a state dict: ours, the official one, timm's or a detector's.
        use_ema: take the averaged weights where a checkpoint has both; false takes the raw ones.
        allow_nonfinite: take weights with NaN or infinity too.

    Returns:
        What was taken, resized, left fresh and dropped.

    Raises:
        ValueError: the source does not fit the model; the text lists at most ten differing keys and their number.
        OSError: the file is missing or cannot be fetched; the text says where a copy can be put.
    """
    report = load.load_weights(model, source, use_ema=use_ema, allow_nonfinite=allow_nonfinite)
    is_named = report.is_published and not report.head_is_fresh
    if is_named and isinstance(model, Classifier) and model.classes is None:
        model.classes = imagenet_names() if model.spec.num_classes == IMAGENET_CLASSES else None
    return report


def save_weights(model: Task, path: str | PathLike[str]) -> None:
    """Write a task's weights as safetensors, with what `open_checkpoint` needs to build it again.

    Args:
        model: what `create_model` returned. A head that was replaced by one for another number of classes is saved as
            such.
        path: ends in `.safetensors`; the file is replaced atomically.

    Raises:
        ValueError: a part of the model was replaced by one of another kind, or it is not a task.
        OSError: the disk is full or the folder cannot be written; a file that was there is kept.
    """
    if not isinstance(model, Task):
        raise ValueError(
            f"expected a model of create_model(), got {type(model).__name__}; save its state_dict() with torch.save"
        )
    state = model.state_dict()
    spec = load.matching_spec(model.spec, state, "the model")
    load.save_weights(
        path,
        state,
        spec,
        load.fitting_classes(model.classes, spec, "the model"),
        model.preprocessing,
        score_thresholds=model.score_thresholds,
    )


def preprocessing(
    name: str, weights: str | None = None, *, image_size: int | tuple[int, int] | None = None
) -> Preprocessing:
    """The evaluation transform of a model's weights: from a PIL image to a float tensor (3, H, W).

    Args:
        name: one of `list_models`, or an alias.
        weights: a name of the catalog (default: the model's first ones).
        image_size: as in `create_model`.

    Raises:
        ValueError: the model or the weights' name is not known.
    """
    spec = ModelSpec(model=resolve_name(name), image_size=None if image_size is None else as_size(image_size))
    return _preprocessing(spec, catalog.find(spec.backbone, weights) if weights else None)


def open_checkpoint(
    path: str | PathLike[str],
    *,
    model: str | None = None,
    use_ema: bool = True,
    which: str = "best",
    allow_nonfinite: bool = False,
) -> Task:
    """Make a trained model ready for use.

    Args:
        path: a weight file, a checkpoint folder or a run folder.
        model: the model's name, for a file that does not say it.
        use_ema: take the averaged weights where there are some; false takes the raw ones.
        which: checkpoint of a run folder: `best`, `last` or `step-N`.
        allow_nonfinite: take weights with NaN or infinity too.

    Returns:
        The task in evaluation mode, with its classes and preprocessing where the file holds them.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: the file does not say its model and `model` is None, it does not fit the model, or has no head.
    """
    found = load.resolve_checkpoint(path, which=which, use_ema=use_ema, model=model and resolve_name(model))
    if head_of(found.weights.state) is None:
        raise ValueError(
            f"{found.file} holds a backbone without a head; use create_model({found.spec.model!r}, weights=…, "
            f"num_classes=…) and train it"
        )
    try:
        transform = as_transform(found.preprocessing) or _preprocessing(found.spec, found.record)
        classes = found.classes or (imagenet_names() if _is_imagenet(found.spec, found.record) else None)
        task = build_task(found.spec, transform, classes)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{found.file} describes no model that can be built: {error}; fetch it again") from error
    task.score_thresholds = read_thresholds(found.file, found.spec.num_classes)
    report = load_weights(task, found.weights, allow_nonfinite=allow_nonfinite)
    if report.fresh:
        raise ValueError(
            f"{found.file} does not hold all of {found.spec.model}: {len(report.fresh)} parameters are missing: "
            f"{listed(report.fresh)}; to train them use create_model({found.spec.model!r}, weights=…)"
        )
    return task.eval()


def _is_imagenet(spec: ModelSpec, record: catalog.WeightRecord | None) -> bool:
    """Whether a model has the classes of published weights, which are those of ImageNet-1K."""
    return record is not None and spec.kind == "classify" and spec.num_classes == IMAGENET_CLASSES


def as_transform(saved: catalog.Preprocessing | catalog.Fit | None) -> Preprocessing | None:
    """The transform that was saved with weights; None where none was."""
    if saved is None:
        return None
    return FitTransform(**asdict(saved)) if isinstance(saved, catalog.Fit) else EvalTransform(**asdict(saved))

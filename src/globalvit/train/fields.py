"""Settings of a training run: one flat, typed dataclass, with timm's names where they exist; does not import torch."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from globalvit.hardware import DeviceChoice, PrecisionChoice
from globalvit.models.ablations import CHOICES, check_ablation
from globalvit.models.variants import Kind

# Layout of a data folder by kind of task, for messages.
LAYOUTS: dict[Kind, str] = {
    "classify": "train/CLASS/ and val/CLASS/, or --data-dir digits",
    "segment": "images/train/, images/val/ and labels in annotations/train/, annotations/val/, or --data-dir shapes",
    "detect": "annotations/instances_train.json and instances_val.json next to train/ and val/, a YOLO data.yaml, "
    "Pascal VOC XML files, or --data-dir shapes",
}

# Headings of the help page.
MODEL, DATA, BATCH = "model and weights", "data", "batch"
SCHEDULE, OPTIMIZER = "schedule", "optimizer"
AUGMENTATION, EVALUATION = "augmentation", "evaluation's preprocessing (default: the weights' own)"
SEGMENTATION, DETECTION = "segmentation", "detection"
RUNNING, RUN = "device and precision", "run folder"


# Experiment trackers that `log` takes.
TRACKERS = ("tensorboard", "trackio", "wandb", "mlflow")
PRECISION_HELP = (
    "compute precision; auto uses the fastest that the device supports natively; --amp is auto, --no-amp is fp32"
)
DEVICE_HELP = "auto uses an NVIDIA GPU if there is one, otherwise the CPU"
# timm's flag for mixed precision, with the values for on and off.
AMP = ("amp", "auto", "fp32")


def option(group: str, default: Any, text: str, **metadata: Any) -> Any:
    """Return a field with its help text, under a heading of the help page."""
    return field(default=default, metadata={"help": text, "group": group, **metadata})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All settings of a training run; `globalvit.train.config.load_config` creates it.

    Raises:
        ValueError: a value is out of range; the message names field, value and range.
    """

    model: str = option(MODEL, "gcvit_xxtiny", "model name, see `globalvit models`")
    weights: str | None = option(
        MODEL, None, "published weights or a file to start from, or `none` to train from scratch"
    )
    num_classes: int | None = option(MODEL, None, "outputs of the head (default: the number of class folders)")
    in_chans: int = option(MODEL, 3, "number of image channels")
    img_size: int | tuple[int, int] | None = option(
        MODEL,
        None,
        "image side length in pixels, or height and width; in segmentation, of the training crops (default: the "
        "weights' own)",
        aliases=("image_size",),
    )
    window: tuple[int, int, int, int] | Literal["ratio", "own"] | None = option(
        MODEL,
        None,
        "attention window of the four stages in tokens, `ratio` or `own` (default: 24 in detectors, otherwise chosen "
        "for the image size)",
    )
    drop_path: float | None = option(
        MODEL, None, "stochastic depth rate of the last block (default: the variant's own)"
    )
    ablation: tuple[str, ...] = option(
        MODEL, (), f"changes to GC ViT's design, as in the paper's ablations: any of {', '.join(CHOICES)}"
    )
    grad_checkpointing: bool = option(
        MODEL, False, "recompute activations in the backward pass to save memory at the cost of time"
    )
    sync_bn: bool = option(MODEL, False, "synchronize batch norm statistics across GPUs")
    freeze_bn: bool = option(MODEL, False, "freeze batch norm statistics")

    data_dir: str | None = option(
        DATA,
        None,
        "folder with one folder per split, built-in data (`digits`, `shapes`), or `hf:NAME` of the Hugging Face Hub",
    )
    train_split: str = option(DATA, "train", "name of the folder to train on")
    val_split: str | None = option(
        DATA, None, "name of the folder to evaluate on (default: `val`, `valid` or `validation`)"
    )
    val_fraction: float | None = option(
        DATA,
        None,
        "fraction of the training images to hold out for evaluation (default: 0.1 if there is no evaluation folder)",
    )
    format: str | None = option(
        DATA,
        None,
        "coco, yolo, voc, folders, table, masks, class-masks, shards, huggingface (default: detected)",
    )
    train_annotations: str | None = option(
        DETECTION, None, "COCO annotation file for training; may be outside `data_dir` (default: detected)"
    )
    val_annotations: str | None = option(
        DETECTION, None, "COCO annotation file for evaluation; may be outside `data_dir` (default: detected)"
    )
    multi_label: bool | Literal["auto"] = option(
        DATA, "auto", "whether images may have any number of labels, in classification by tables (auto: by the table)"
    )
    nested_classes: bool = option(
        DATA,
        False,
        "treat every folder that directly contains images as a class, at any depth, instead of the top-level folders",
    )
    workers: int = option(DATA, 4, "data loading workers per training process")

    batch_size: int = option(BATCH, 32, "images per forward and backward pass, per process")
    global_batch: int | None = option(
        BATCH, None, "images per optimizer step that `lr` is meant for; `lr` is scaled linearly to the actual number"
    )
    grad_accum_steps: int = option(BATCH, 1, "forward and backward passes per optimizer step")
    auto_batch: bool = option(BATCH, False, "use the largest `batch_size` that fits into memory")
    small_set: bool = option(
        BATCH,
        False,
        "lower `batch_size` to a 20th of the training images, but not below 8; off if the batch is given in other ways",
    )

    epochs: int = option(
        SCHEDULE, 50, "length of the learning-rate schedule in epochs, with warm-up but without cooldown"
    )
    steps: int | None = option(SCHEDULE, None, "length of the run in optimizer steps, instead of epochs")
    warmup_epochs: float = option(SCHEDULE, 5.0, "linear warm-up, in epochs")
    warmup_steps: int | None = option(SCHEDULE, None, "linear warm-up in optimizer steps, instead of epochs")
    cooldown_epochs: int = option(SCHEDULE, 0, "epochs at `min_lr` after the schedule")
    sched: Literal["cosine", "poly", "step", "multistep", "constant"] = option(
        SCHEDULE, "cosine", "shape of the schedule"
    )
    decay_epochs: float = option(SCHEDULE, 30.0, "epochs between decays of the step schedule")
    decay_milestones: tuple[float, ...] = option(
        SCHEDULE, (8.0, 11.0), "epochs after which the multistep schedule decays"
    )
    decay_rate: float = option(SCHEDULE, 0.1, "factor of the step schedules, power of the poly schedule")
    lr: float = option(SCHEDULE, 5e-4, "peak learning rate")
    warmup_lr: float = option(SCHEDULE, 1e-6, "learning rate at the start of the warm-up")
    min_lr: float = option(SCHEDULE, 1e-6, "learning rate at the end")

    opt: str = option(OPTIMIZER, "adamw", "name of a timm optimizer")
    opt_betas: tuple[float, ...] | None = option(OPTIMIZER, None, "betas of the optimizer (default: its own)")
    opt_eps: float | None = option(OPTIMIZER, None, "epsilon of the optimizer (default: its own)")
    momentum: float = option(OPTIMIZER, 0.9, "momentum of optimizers that have one")
    weight_decay: float = option(OPTIMIZER, 0.05, "weight decay; not applied to biases, norms and position tables")
    layer_decay: float | None = option(
        OPTIMIZER,
        None,
        "layer-wise learning-rate decay: factor per group of blocks, of which there are at most 12, away from the head "
        "(default: none)",
    )
    head_lr_scale: float = option(OPTIMIZER, 1.0, "learning-rate factor of everything but the backbone")
    clip_grad: float | None = option(OPTIMIZER, None, "maximum gradient norm (default: no clipping)")
    model_ema: bool = option(OPTIMIZER, False, "keep an exponential moving average of the weights")
    model_ema_decay: float = option(OPTIMIZER, 0.9998, "decay of the moving average")
    model_ema_warmup: bool = option(OPTIMIZER, False, "increase the decay of the moving average from 0, for short runs")

    mixup: float = option(AUGMENTATION, 0.0, "alpha of Mixup; 0 is off")
    cutmix: float = option(AUGMENTATION, 0.0, "alpha of CutMix; 0 is off")
    mixup_prob: float = option(AUGMENTATION, 1.0, "probability of mixing a batch")
    mixup_switch_prob: float = option(AUGMENTATION, 0.5, "probability of CutMix if Mixup and CutMix are both on")
    mixup_off_epoch: int = option(AUGMENTATION, 0, "epoch from which mixing is off; 0 mixes until the end")
    smoothing: float = option(AUGMENTATION, 0.1, "label smoothing")
    aa: str | None = option(
        AUGMENTATION, None, "automatic augmentation in timm's notation, such as rand-m9-mstd0.5-inc1"
    )
    color_jitter: float | None = option(AUGMENTATION, 0.4, "strength of color jitter; ignored if `aa` replaces it")
    reprob: float = option(AUGMENTATION, 0.0, "probability of random erasing")
    remode: Literal["pixel", "rand", "const"] = option(AUGMENTATION, "pixel", "what random erasing fills in")
    recount: int = option(AUGMENTATION, 1, "number of areas that random erasing fills")
    scale: tuple[float, float] = option(
        AUGMENTATION, (0.08, 1.0), "minimum and maximum area of the random crop, as fractions of the image"
    )
    ratio: tuple[float, float] = option(
        AUGMENTATION, (0.75, 1.3333333333333333), "minimum and maximum aspect ratio of the random crop"
    )
    hflip: float = option(AUGMENTATION, 0.5, "probability of a horizontal flip")
    vflip: float = option(AUGMENTATION, 0.0, "probability of a vertical flip")
    train_interpolation: Literal["random", "bilinear", "bicubic"] = option(
        AUGMENTATION, "random", "interpolation of the random crop"
    )
    progressive: tuple[int, ...] | None = option(
        AUGMENTATION, None, "image sizes in pixels for progressive resizing, each for an equal share of the epochs"
    )

    crop_pct: float | None = option(
        EVALUATION, None, "fraction of the image that evaluation keeps (default: the weights' own)"
    )
    crop_mode: Literal["center", "squash"] | None = option(
        EVALUATION, None, "how evaluation makes an image square (default: the weights' own)"
    )
    interpolation: Literal["bilinear", "bicubic"] | None = option(
        EVALUATION, None, "interpolation in evaluation (default: the weights' own)"
    )
    mean: tuple[float, ...] | None = option(
        EVALUATION, None, "channel means in 0..1 to subtract (default: the weights' own)"
    )
    std: tuple[float, ...] | None = option(
        EVALUATION, None, "channel standard deviations in 0..1 to divide by (default: the weights' own)"
    )

    short_side: int | None = option(
        EVALUATION, None, "shorter side of the images in pixels, in segmentation and detection"
    )
    long_side: int | None = option(
        EVALUATION, None, "maximum longer side after resizing to `short_side` (default: the published ratio)"
    )
    size_multiple: int | None = option(EVALUATION, None, "round both sides up to multiples of this")

    class_file: str | None = option(
        SEGMENTATION, None, "file with class names, JSON or one per line (default: the data folder's)"
    )
    reduce_zero_label: bool = option(SEGMENTATION, False, "label 0 marks pixels that are not learned, as in ADE20K")
    ignore_label: int | None = option(
        SEGMENTATION, None, "label to ignore, in addition to 255; 255 if it does not mark an object"
    )
    resize_ratio: tuple[float, float] = option(
        SEGMENTATION, (0.5, 2.0), "minimum and maximum scale factor before the crop"
    )
    crop_max_share: float = option(SEGMENTATION, 0.75, "maximum fraction of a crop that one class may fill")
    photometric: bool = option(SEGMENTATION, True, "vary brightness, contrast, saturation and hue")
    aux_weight: float = option(SEGMENTATION, 0.4, "weight of the auxiliary head's loss")
    ohem: bool = option(SEGMENTATION, False, "learn only from the hardest pixels (online hard example mining)")
    class_weights: tuple[float, ...] | None = option(SEGMENTATION, None, "weight of each class in the loss")
    eval_mode: Literal["whole", "slide"] = option(
        SEGMENTATION, "whole", "evaluate whole images, or slide a window of the training crop size"
    )
    eval_stride: int | None = option(
        SEGMENTATION, None, "stride of the sliding window in pixels (default: two thirds of its side)"
    )
    eval_scales: tuple[float, ...] = option(SEGMENTATION, (1.0,), "scale factors to average predictions over")
    eval_flip: bool = option(EVALUATION, False, "average predictions with those of the flipped image")

    det_augment: Literal["resize", "detr", "jitter"] = option(
        DETECTION, "resize", "resize to one size, to several sizes with crops as in DETR, or large-scale jitter"
    )
    det_crop: int | None = option(DETECTION, None, "maximum side of the training crop in pixels (default: no crop)")
    jitter_scale: tuple[float, float] = option(
        DETECTION, (0.1, 2.0), "minimum and maximum scale factor of large-scale jitter"
    )
    roi_samples: int = option(DETECTION, 512, "regions per image that a two-stage detector is trained on in each step")
    crowd_as_instances: bool = option(
        DETECTION, False, "treat annotations with iscrowd 1 as single objects, as CVAT writes them"
    )
    keep_empty: bool = option(DETECTION, False, "also train on images without objects")

    precision: PrecisionChoice = option(RUNNING, "auto", PRECISION_HELP, switch=AMP)  # noqa: RUF009 - the type is a Literal
    kernels: Literal["auto", "torch", "c", "triton"] = option(
        RUNNING, "auto", "kernels for the models; torch uses only PyTorch's operators"
    )
    torch_operations: tuple[str, ...] | None = option(
        RUNNING,
        None,
        "operations computed with PyTorch's operators, such as linear/float32/small (default: with `auto`, those that "
        "are faster that way on this CPU)",
    )
    torchcompile: bool = option(RUNNING, False, "compile the model with torch.compile")
    channels_last: bool = option(RUNNING, False, "keep images and convolutions in channels-last memory order")
    device: DeviceChoice = option(RUNNING, "auto", f"device to train on; {DEVICE_HELP}")  # noqa: RUF009 - the type is a Literal
    dist_timeout: float = option(RUNNING, 600.0, "seconds to wait for other processes before the run fails")
    seed: int = option(RUNNING, 0, "random seed")

    output: str = option(RUN, "runs", "folder for runs")
    tag: str | None = option(RUN, None, "name of this run's folder (default: the recipe's name and a number)")
    resume: str | None = option(
        RUN, None, "run folder or checkpoint folder to resume from; `auto` resumes the run of --tag if it exists"
    )
    accept_changed_data: bool = option(
        RUN, False, "resume although files or labels changed since the run began; classes must be the same"
    )
    lock_timeout: float = option(RUN, 15.0, "seconds to wait while another process trains in the same run folder")
    exit_0_on_signal: bool = option(
        RUN, False, "exit with status 0 instead of 143 or 130 when SIGTERM or SIGINT ends the run early"
    )
    val_interval: int = option(RUN, 1, "epochs between evaluations; the last epoch is always evaluated")
    val_steps: int | None = option(RUN, None, "optimizer steps between evaluations, instead of epochs")
    early_stop: int = option(
        RUN, 0, "stop after this many evaluations without a better score; 0 disables early stopping"
    )
    checkpoint_every: int = option(
        RUN, 0, "steps between checkpoints in addition to those at the end of epochs; 0 writes none"
    )
    checkpoint_interval: int = option(RUN, 1, "epochs between checkpoints")
    checkpoint_hist: int = option(RUN, 2, "checkpoints to keep in addition to the best")
    log_interval: int = option(RUN, 50, "steps between log records of the training loss")
    log: tuple[str, ...] = option(RUN, (), f"experiment trackers to log to: any of {', '.join(TRACKERS)}")

    def __post_init__(self) -> None:
        object.__setattr__(self, "ablation", check_ablation(self.ablation))
        for tracker in self.log:
            if tracker not in TRACKERS:
                raise ValueError(f"log={tracker!r} is not a tracker; expected any of {', '.join(TRACKERS)}")
        for name, (low, high) in _BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name}={value} must be {_range(low, high)}")
        if self.steps is not None and (self.warmup_steps or 0) >= self.steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} must be less than steps={self.steps}; lower --warmup-steps"
            )
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs:g} must be less than epochs={self.epochs}; lower --warmup-epochs"
            )

    @property
    def total_epochs(self) -> int:
        """Number of epochs of the run: the schedule and its cooldown."""
        return self.epochs + self.cooldown_epochs

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for YAML and JSON, in field order."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


_ANY = float("inf")
_POSITIVE = 1e-30
_BOUNDS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(["num_classes", "in_chans", "batch_size", "global_batch", "grad_accum_steps"], (1, _ANY)),
    **dict.fromkeys(
        ["steps", "val_steps", "short_side", "long_side", "size_multiple", "eval_stride", "det_crop", "roi_samples"],
        (1, _ANY),
    ),
    **dict.fromkeys(["warmup_steps", "aux_weight"], (0, _ANY)),
    **dict.fromkeys(["head_lr_scale"], (_POSITIVE, _ANY)),
    **dict.fromkeys(["crop_max_share"], (_POSITIVE, 1)),
    **dict.fromkeys(["epochs", "val_interval", "checkpoint_interval", "checkpoint_hist", "log_interval"], (1, _ANY)),
    "workers": (0, 4096),
    **dict.fromkeys(["warmup_epochs", "cooldown_epochs", "mixup_off_epoch", "weight_decay"], (0, _ANY)),
    **dict.fromkeys(["early_stop", "checkpoint_every", "warmup_lr", "min_lr"], (0, _ANY)),
    # The range of PyTorch's seeds, and more workers and seconds than any machine or job has.
    "seed": (0, 2**63 - 1),
    "lock_timeout": (0, 1e6),
    "dist_timeout": (1, 1e6),
    **dict.fromkeys(["mixup", "cutmix", "color_jitter"], (0, _ANY)),
    **dict.fromkeys(["lr", "clip_grad", "opt_eps", "decay_epochs", "decay_rate"], (_POSITIVE, _ANY)),
    **dict.fromkeys(["mixup_prob", "mixup_switch_prob", "reprob", "hflip", "vflip", "momentum"], (0, 1)),
    **dict.fromkeys(["model_ema_decay", "smoothing", "drop_path", "val_fraction"], (0, 0.9999999)),
    **dict.fromkeys(["layer_decay", "crop_pct"], (_POSITIVE, 1)),
    "recount": (1, _ANY),
    "ignore_label": (0, 65535),
}


def _range(low: float, high: float) -> str:
    floor = "more than 0" if low == _POSITIVE else f"{low:g} or more"
    if high == _ANY:
        return floor
    ceiling = "less than 1" if 0.99 < high < 1 else f"at most {high:g}"
    return f"{floor} and {ceiling}"

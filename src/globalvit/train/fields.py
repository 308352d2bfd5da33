"""The settings of a training run: one flat, typed dataclass with timm's names where timm has one. No torch here."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from globalvit.hardware import DeviceChoice, PrecisionChoice
from globalvit.models.ablations import CHOICES, check_ablation
from globalvit.models.variants import Kind

# What a data folder looks like, by kind of task, for messages.
LAYOUTS: dict[Kind, str] = {
    "classify": "train/CLASS/ and val/CLASS/, or --data-dir digits",
    "segment": "images/train/, images/val/ and labels in annotations/train/, annotations/val/, or --data-dir shapes",
    "detect": "annotations/instances_train.json and instances_val.json beside train/ and val/, with YOLO's data.yaml "
    "or Pascal VOC's XML, or --data-dir shapes",
}

# Headings of the help page.
MODEL, DATA, BATCH = "model and weights", "data", "batch"
SCHEDULE, OPTIMIZER = "schedule", "optimizer"
AUGMENTATION, EVALUATION = "augmentation", "evaluation's preprocessing (default: the weights' own)"
SEGMENTATION, DETECTION = "segmentation", "detection"
RUNNING, RUN = "device and precision", "run folder"


PRECISION_HELP = (
    "precision of products; auto takes the fastest that the device computes natively; --amp is auto, --no-amp fp32"
)
DEVICE_HELP = "auto takes an NVIDIA GPU if there is one, otherwise the CPU"
# timm's switch for mixed precision, the value that it turns on, and the one that it turns off.
AMP = ("amp", "auto", "fp32")


def option(group: str, default: Any, text: str, **metadata: Any) -> Any:
    """A field with its help text, under a heading of the help page."""
    return field(default=default, metadata={"help": text, "group": group, **metadata})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything a training run is asked for; `globalvit.train.config.load_config` fills it.

    Raises:
        ValueError: a value is out of its range; the text names field, value and range.
    """

    model: str = option(MODEL, "gcvit_xxtiny", "name of the model, see `globalvit models`")
    weights: str | None = option(MODEL, None, "published weights or a file to start from, or `none` to start at random")
    num_classes: int | None = option(MODEL, None, "outputs of the head (default: the number of class folders)")
    in_chans: int = option(MODEL, 3, "channels of the images")
    img_size: int | tuple[int, int] | None = option(
        MODEL,
        None,
        "side of the images in pixels, or height and width; in segmentation, of training's crops (default: the "
        "weights' own)",
        aliases=("image_size",),
    )
    window: tuple[int, int, int, int] | Literal["ratio", "own"] | None = option(
        MODEL,
        None,
        "attention window of the four stages in tokens, `ratio` or `own` (default: 24 in detectors, else as the image "
        "size needs)",
    )
    drop_path: float | None = option(
        MODEL, None, "stochastic depth rate of the last block (default: the variant's own)"
    )
    ablation: tuple[str, ...] = option(
        MODEL, (), f"designs in place of GC ViT's own, as in the paper's ablations, from {', '.join(CHOICES)}"
    )
    grad_checkpointing: bool = option(
        MODEL, False, "recompute activations in the backward pass, which saves memory and costs time"
    )
    sync_bn: bool = option(MODEL, False, "share the statistics of batch norms between GPUs")
    freeze_bn: bool = option(MODEL, False, "keep the statistics of batch norms as they are")

    data_dir: str | None = option(DATA, None, "folder with a folder for each split, or `digits` or `shapes`, built in")
    train_split: str = option(DATA, "train", "name of the folder to train on")
    val_split: str | None = option(
        DATA, None, "name of the folder to evaluate on (default: `val`, `valid` or `validation`)"
    )
    val_fraction: float | None = option(
        DATA,
        None,
        "part of the training images to hold out for evaluation (default: 0.1 if no folder is found to evaluate on)",
    )
    format: str | None = option(
        DATA, None, "format of the data: coco, yolo, voc, folders or table (default: the one that the folder fits)"
    )
    train_annotations: str | None = option(
        DETECTION, None, "COCO annotations of the images to train on, below `data_dir` or anywhere (default: found)"
    )
    val_annotations: str | None = option(
        DETECTION, None, "COCO annotations of the images to evaluate on, below `data_dir` or anywhere (default: found)"
    )
    nested_classes: bool = option(
        DATA, False, "every folder that directly holds images is a class, at any depth; else the uppermost folders are"
    )
    workers: int = option(DATA, 4, "workers of each training process")

    batch_size: int = option(BATCH, 32, "images of one forward and backward pass of each process")
    global_batch: int | None = option(
        BATCH, None, "images of one optimizer step that `lr` is meant for; another number scales `lr` linearly"
    )
    grad_accum_steps: int = option(BATCH, 1, "passes that make one optimizer step")
    auto_batch: bool = option(BATCH, False, "choose `batch_size` as the largest that fits the memory")

    epochs: int = option(
        SCHEDULE, 50, "length of the learning-rate schedule in epochs, warm-up included and cooldown not"
    )
    steps: int | None = option(SCHEDULE, None, "length of the run in optimizer steps, in place of epochs")
    warmup_epochs: float = option(SCHEDULE, 5.0, "linear warm-up, in epochs")
    warmup_steps: int | None = option(SCHEDULE, None, "linear warm-up in optimizer steps, in place of epochs")
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
    opt_betas: tuple[float, ...] | None = option(OPTIMIZER, None, "moment decays of the optimizer (default: its own)")
    opt_eps: float | None = option(OPTIMIZER, None, "epsilon of the optimizer (default: its own)")
    momentum: float = option(OPTIMIZER, 0.9, "momentum of optimizers that have one")
    weight_decay: float = option(OPTIMIZER, 0.05, "decay of weights; biases, norms and position tables are spared")
    layer_decay: float | None = option(
        OPTIMIZER, None, "factor on the learning rate for each block away from the head (default: none)"
    )
    head_lr_scale: float = option(OPTIMIZER, 1.0, "factor on the learning rate of everything but the backbone")
    clip_grad: float | None = option(OPTIMIZER, None, "largest norm of the gradient (default: no clipping)")
    model_ema: bool = option(OPTIMIZER, False, "keep an exponential moving average of the weights")
    model_ema_decay: float = option(OPTIMIZER, 0.9998, "decay of the moving average")
    model_ema_warmup: bool = option(
        OPTIMIZER, False, "let the decay of the moving average grow from 0, as short runs need"
    )

    mixup: float = option(AUGMENTATION, 0.0, "alpha of Mixup; 0 is off")
    cutmix: float = option(AUGMENTATION, 0.0, "alpha of CutMix; 0 is off")
    mixup_prob: float = option(AUGMENTATION, 1.0, "probability of mixing a batch")
    mixup_switch_prob: float = option(AUGMENTATION, 0.5, "probability of CutMix where both are on")
    mixup_off_epoch: int = option(AUGMENTATION, 0, "epoch from which nothing is mixed; 0 mixes to the end")
    smoothing: float = option(AUGMENTATION, 0.1, "label smoothing")
    aa: str | None = option(
        AUGMENTATION, None, "automatic augmentation in timm's notation, such as rand-m9-mstd0.5-inc1"
    )
    color_jitter: float | None = option(AUGMENTATION, 0.4, "strength of color jitter, where `aa` does not replace it")
    reprob: float = option(AUGMENTATION, 0.0, "probability of random erasing")
    remode: Literal["pixel", "rand", "const"] = option(AUGMENTATION, "pixel", "what random erasing fills in")
    recount: int = option(AUGMENTATION, 1, "areas that random erasing fills")
    scale: tuple[float, float] = option(
        AUGMENTATION, (0.08, 1.0), "smallest and largest area of the random crop, as parts of the image"
    )
    ratio: tuple[float, float] = option(
        AUGMENTATION, (0.75, 1.3333333333333333), "smallest and largest ratio of the random crop's sides"
    )
    hflip: float = option(AUGMENTATION, 0.5, "probability of a horizontal flip")
    vflip: float = option(AUGMENTATION, 0.0, "probability of a vertical flip")
    train_interpolation: Literal["random", "bilinear", "bicubic"] = option(
        AUGMENTATION, "random", "interpolation of the random crop"
    )
    progressive: tuple[int, ...] | None = option(
        AUGMENTATION, None, "image sizes in pixels to train at one after the other, in equal shares of the epochs"
    )

    crop_pct: float | None = option(
        EVALUATION, None, "part of the image that evaluation keeps (default: the weights' own)"
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
        EVALUATION, None, "channel deviations in 0..1 to divide by (default: the weights' own)"
    )

    short_side: int | None = option(
        EVALUATION, None, "shorter side of the images of segmenters and detectors, in pixels"
    )
    long_side: int | None = option(
        EVALUATION, None, "most that the longer side may then have (default: the published ratio)"
    )
    size_multiple: int | None = option(EVALUATION, None, "number that both sides are made multiples of")

    class_file: str | None = option(
        SEGMENTATION, None, "file with the classes' names, JSON or one per line (default: that of the data)"
    )
    reduce_zero_label: bool = option(SEGMENTATION, False, "label 0 stands for what is not to be learned, as in ADE20K")
    ignore_label: int | None = option(
        SEGMENTATION, None, "value of label maps that is to be ignored, in addition to 255; 255 if it marks no object"
    )
    resize_ratio: tuple[float, float] = option(
        SEGMENTATION, (0.5, 2.0), "smallest and largest factor on the size before a crop"
    )
    crop_max_share: float = option(SEGMENTATION, 0.75, "most that one class may fill of a crop")
    photometric: bool = option(SEGMENTATION, True, "vary brightness, contrast, saturation and hue")
    aux_weight: float = option(SEGMENTATION, 0.4, "weight of the auxiliary head's loss")
    ohem: bool = option(SEGMENTATION, False, "learn from the hardest pixels only")
    class_weights: tuple[float, ...] | None = option(SEGMENTATION, None, "weight of each class in the loss")
    eval_mode: Literal["whole", "slide"] = option(
        SEGMENTATION, "whole", "evaluate whole images, or by a window of the size of training's crops"
    )
    eval_stride: int | None = option(SEGMENTATION, None, "pixels between windows (default: two thirds of their side)")
    eval_scales: tuple[float, ...] = option(SEGMENTATION, (1.0,), "sizes to average, as factors")
    eval_flip: bool = option(SEGMENTATION, False, "average each image and its mirror image")

    det_augment: Literal["resize", "detr", "jitter"] = option(
        DETECTION, "resize", "to one size, to several sizes and crops as DETR does it, or large-scale jitter"
    )
    det_crop: int | None = option(DETECTION, None, "most pixels of each side to train on (default: all)")
    jitter_scale: tuple[float, float] = option(
        DETECTION, (0.1, 2.0), "smallest and largest factor of large-scale jitter"
    )
    roi_samples: int = option(DETECTION, 512, "regions of an image that a two-stage detector learns from at a time")
    crowd_as_instances: bool = option(
        DETECTION, False, "read annotations with iscrowd 1 as single objects, as CVAT means them"
    )
    keep_empty: bool = option(DETECTION, False, "train on images without objects too")

    precision: PrecisionChoice = option(RUNNING, "auto", PRECISION_HELP, switch=AMP)  # noqa: RUF009 - the type is a Literal
    kernels: Literal["auto", "torch", "c", "triton"] = option(
        RUNNING, "auto", "kernels that compute the networks; torch uses PyTorch's operators only"
    )
    torch_operations: tuple[str, ...] | None = option(
        RUNNING,
        None,
        "operations left to PyTorch's operators, such as linear/float32/small (default: with `auto` those that are "
        "faster so on this CPU)",
    )
    torchcompile: bool = option(RUNNING, False, "compile the model")
    channels_last: bool = option(RUNNING, False, "keep images and convolutions in channels-last memory order")
    device: DeviceChoice = option(RUNNING, "auto", f"device to train on; {DEVICE_HELP}")  # noqa: RUF009 - the type is a Literal
    fsdp: bool = option(RUNNING, False, "shard model, gradients and optimizer over the GPUs (FSDP2)")
    dist_timeout: float = option(
        RUNNING, 600.0, "seconds to wait for the other processes before the run ends with an error"
    )
    seed: int = option(RUNNING, 0, "seed of everything random")

    output: str = option(RUN, "runs", "folder of the runs")
    tag: str | None = option(RUN, None, "name of this run's folder (default: the recipe's name and a number)")
    resume: str | None = option(
        RUN, None, "run folder or checkpoint folder to go on from; `auto`: that of --tag, if there is one"
    )
    accept_changed_data: bool = option(
        RUN, False, "resume although files or labels changed since the run began; classes must be the same"
    )
    lock_timeout: float = option(RUN, 15.0, "seconds to wait for another process that trains in the same run folder")
    exit_0_on_signal: bool = option(
        RUN, False, "exit with status 0, not 143 or 130, when SIGTERM or SIGINT ends the run before its end"
    )
    val_interval: int = option(RUN, 1, "epochs between evaluations; the end is always evaluated")
    val_steps: int | None = option(RUN, None, "optimizer steps between evaluations, in place of epochs")
    early_stop: int = option(RUN, 0, "evaluations without a better score after which to stop; 0 never stops early")
    checkpoint_every: int = option(
        RUN, 0, "steps between checkpoints beside those at the end of every epoch; 0 makes none"
    )
    checkpoint_interval: int = option(RUN, 1, "epochs between checkpoints")
    checkpoint_hist: int = option(RUN, 2, "checkpoints to keep beside the best")
    log_interval: int = option(RUN, 50, "steps between records of the training loss")

    def __post_init__(self) -> None:
        object.__setattr__(self, "ablation", check_ablation(self.ablation))
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
        """Epochs of the whole run: the schedule and its cooldown."""
        return self.epochs + self.cooldown_epochs

    def to_dict(self) -> dict[str, Any]:
        """Plain values for YAML and JSON, in the order of the fields."""
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
    # What PyTorch takes as a seed, and more workers and seconds than any machine or job has.
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

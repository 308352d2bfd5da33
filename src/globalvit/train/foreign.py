"""Keys of timm's `train.py` and of the official GC ViT files that no setting here has: ignored, or refused."""

from collections.abc import Mapping
from typing import Any

# What timm writes into its files where nobody asked for another.
TIMMS_LR_BASE = 0.1

# Data sets and loaders of other kinds, and how they are fed.
_DATA = """
    dataset class_map dataset_download dataset_trust_remote_code train_num_samples val_num_samples input_img_mode
    input_key target_key input_size data_len lmdb_dataset epoch_repeats aug_repeats aug_splits resplit pin_mem
    no_prefetcher prefetcher use_multi_epochs_loader use_multi_epochs_loaders worker_seeding validation_batch_size
    validation_batch_size_multiplier vbs no_aug train_crop_mode color_jitter_prob grayscale_prob gaussian_blur_prob
    mixup_mode cutmix_minmax tta naflex_loader
"""

# Parts that these models do not have: dropout, batch norm, other poolings, other losses, other ways to build.
_MODEL = """
    pretrained gp drop drop_rate drop_connect drop_block
    attn_drop_rate attn_drop bn_momentum bn_eps bn_tf dist_bn split_bn jsd jsd_loss bce_loss bce_sum
    bce_target_thresh bce_pos_weight head_init_scale head_init_bias model_kwargs fast_norm fuser torchscript
    aot_autograd torchcompile_mode ampere_sparsity mesa mesa_start_ratio use_checkpoint
"""

# Schedules and optimizer details that are not offered.
_OPTIMIZATION = """
    lr_base lr_base_size lr_base_scale lr_noise lr_noise_pct lr_noise_std lr_cycle_mul lr_cycle_decay lr_cycle_limit
    lr_k_decay lr_ep sched_on_updates warmup_prefix warmup_iter patience_epochs start_epoch clip_mode
    layer_decay_min_scale layer_decay_no_opt_scale opt_kwargs no_resume_opt model_ema_force_cpu synchronize_step
"""

# How a process is started and what it writes.
_RUNNING = """
    apex_amp amp_dtype amp_impl bfloat model_dtype local_rank world_size rank dist_url no_ddp_bb
    device_modules recovery_interval save_images eval_metric log_wandb wandb wandb_project wandb_tags wandb_resume_id
    eval_first eval_checkpoint loadcheckpoint validate validate_only config
"""

FOREIGN_KEYS = frozenset("\n".join([_DATA, _MODEL, _OPTIMIZATION, _RUNNING]).split())

# What would change the training and is not offered → the values that change nothing; None and empty ones never do.
UNMET: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("drop", "drop_rate", "drop_connect", "drop_block", "attn_drop", "attn_drop_rate"), (0,)),
    **dict.fromkeys(("jsd", "jsd_loss", "bce_loss", "no_aug", "resplit", "split_bn", "warmup_prefix"), (False,)),
    **dict.fromkeys(("aug_repeats", "epoch_repeats"), (0, 1)),
    **dict.fromkeys(("aug_splits", "grayscale_prob", "gaussian_blur_prob", "mesa", "head_init_bias"), (0,)),
    **dict.fromkeys(("layer_decay_min_scale", "start_epoch", "no_resume_opt"), (0,)),
    **dict.fromkeys(("lr_cycle_mul", "lr_cycle_limit", "lr_k_decay", "color_jitter_prob", "head_init_scale"), (1,)),
    **dict.fromkeys(("lr_noise", "cutmix_minmax", "opt_kwargs", "model_kwargs", "layer_decay_no_opt_scale"), ()),
    **dict.fromkeys(("class_map", "train_num_samples", "loadcheckpoint"), ()),
    "train_crop_mode": ("rrc",),
    "mixup_mode": ("batch",),
    "clip_mode": ("norm",),
    "gp": ("avg",),
    "input_img_mode": ("RGB",),
    "eval_metric": ("top1",),
    "dataset": ("ImageFolder", "image_folder", "imagenet"),
}


def changes_training(key: str, value: Any, layer: Mapping[str, Any]) -> bool:
    """Whether a key asks for another training than the one that its layer gives here."""
    if value in (None, "", [], {}):
        return False
    if key == "input_size":
        side = layer.get("img_size")
        return not isinstance(value, list) or side is None or value[-2:] not in ([side, side], side)
    if key == "lr_base":
        return layer.get("lr") is None and value != TIMMS_LR_BASE
    return key in UNMET and value not in UNMET[key]


# What splits a model over GPUs elsewhere.
SHARDING = "fsdp"

# Other names of what is known here by timm's present one.
RENAMED = {
    "data": "data_dir",
    "image_size": "img_size",
    "initial_checkpoint": "weights",
    "pretrained_path": "weights",
    "experiment": "tag",
    "drop_path_rate": "drop_path",
    "native_amp": "amp",
}

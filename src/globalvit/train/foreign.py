"""Keys of timm's `train.py` and of the official GC ViT files that mean nothing here: known, named, ignored."""

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
    pretrained pretrained_path gp drop drop_rate drop_connect drop_block
    attn_drop_rate attn_drop bn_momentum bn_eps bn_tf dist_bn split_bn jsd jsd_loss bce_loss bce_sum
    bce_target_thresh bce_pos_weight head_init_scale head_init_bias model_kwargs fast_norm fuser torchscript
    aot_autograd torchcompile_mode ampere_sparsity mesa mesa_start_ratio use_checkpoint
"""

# Schedules and optimizer details that are not offered.
_OPTIMizATION = """
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

FOREIGN_KEYS = frozenset("\n".join([_DATA, _MODEL, _OPTIMizATION, _RUNNING]).split())

# What would make another training of it and is not offered: refused unless it is switched off.
_UNMET = """
    aug_splits jsd jsd_loss bce_loss drop drop_rate drop_connect drop_block attn_drop attn_drop_rate
"""
UNMET = frozenset(_UNMET.split())

# Other names of what is known here by timm's present one.
RENAMED = {
    "data": "data_dir",
    "initial_checkpoint": "weights",
    "experiment": "tag",
    "drop_path_rate": "drop_path",
    "native_amp": "amp",
}

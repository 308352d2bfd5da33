"""The shipped recipes: which there are, what heads them, and that they are the published trainings."""

from dataclasses import replace

import pytest

from globalvit.data.classification.imagenet import imagenet_21k_synsets
from globalvit.models.ablations import CHOICES
from globalvit.models.variants import GCVIT, GPVIT, VARIANTS
from globalvit.train.config import RECIPES, available_recipes, load_config

PUBLISHED = [name for name in GCVIT if name not in ("gcvit_large_384", "gcvit_large_512")]


SEGMENTERS = [f"{name}_{head}" for name in GPVIT for head in ("upernet", "segformer")]
OURS = [f"gcvit_{size}_upernet" for size in ("tiny", "small", "base")]
DETECTORS = [
    f"{name}_{head}_{times}" for name in GPVIT for head in ("mask_rcnn", "retinanet") for times in ("1x", "3x")
]
GCVIT_DETECTORS = ["gcvit_tiny_mask_rcnn", *(f"gcvit_{size}_cascade_mask_rcnn" for size in ("tiny", "small", "base"))]
ABLATIONS = [f"gcvit_tiny_{word}" for word in CHOICES]
STARTS = ["gcvit_large_21k", "digits", "shapes_segmentation", "shapes_detection"]
TUNING = [
    "finetune",
    "finetune_segmentation",
    "finetune_detection",
    "scratch",
    "scratch_segmentation",
    "scratch_detection",
]


def test_every_published_training_has_a_recipe_and_there_are_quick_starts():
    detectors = [*DETECTORS, *(f"{name}_3x" for name in GCVIT_DETECTORS)]
    assert set(available_recipes()) == {*VARIANTS, *SEGMENTERS, *OURS, *ABLATIONS, *detectors, *STARTS, *TUNING}


@pytest.mark.parametrize("name", available_recipes())
def test_a_recipe_is_headed_by_command_score_and_cost(name):
    head = [line for line in (RECIPES / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    for word in ("Command:", "Expected:", "Cost:"):
        assert any(line.startswith(f"# {word}") for line in head), word


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_have_the_published_settings(name):
    config = load_config(name)
    large = name in ("gcvit_base", "gcvit_large")
    assert config.model == name
    assert config.drop_path == GCVIT[name].drop_path
    assert (config.batch_size, config.global_batch) == ((32, 1024) if large else (128, 4096))
    assert (config.lr, config.warmup_lr, config.min_lr) == (5e-3, 1e-6, 5e-6)
    assert (config.total_epochs, config.cooldown_epochs, config.warmup_epochs) == (310, 10, 20)
    assert (config.opt, config.opt_betas, config.weight_decay, config.clip_grad) == ("adamw", (0.9, 0.999), 0.05, 5.0)
    assert (config.mixup, config.cutmix, config.mixup_switch_prob, config.smoothing) == (0.8, 1.0, 0.5, 0.1)
    assert (config.aa, config.color_jitter, config.reprob) == ("rand-m9-mstd0.5-inc1", 0.4, 0.25)
    assert (config.model_ema, config.model_ema_decay, config.model_ema_warmup) == (True, 0.9998, False)
    assert (config.precision, config.crop_pct, config.train_interpolation) == ("auto", 0.875, "random")


@pytest.mark.parametrize("word", CHOICES)
def test_ablations_change_one_design_of_the_published_training(word):
    assert load_config(f"gcvit_tiny_{word}") == replace(load_config("gcvit_tiny"), ablation=(word,))


@pytest.mark.parametrize("name", GPVIT)
def test_gpvit_recipes_have_the_published_settings(name):
    config = load_config(name)
    assert config.model == name
    assert config.drop_path == GPVIT[name].drop_path
    assert (config.batch_size, config.global_batch) == (128, 2048)
    assert (config.lr, config.warmup_lr, config.min_lr) == (2e-3, 2e-6, 2e-5)
    assert (config.total_epochs, config.cooldown_epochs, config.warmup_epochs) == (300, 0, 20)
    assert (config.opt, config.weight_decay, config.clip_grad, config.model_ema) == ("adamw", 0.05, 1.0, False)
    assert (config.mixup, config.cutmix, config.mixup_switch_prob, config.smoothing) == (0.8, 1.0, 0.5, 0.1)
    assert (config.aa, config.color_jitter, config.reprob) == ("rand-m9-n2-mstd0.5-inc1", 0.0, 0.25)
    assert config.crop_pct == 0.875


@pytest.mark.parametrize(("name", "size"), [("gcvit_large_384", 384), ("gcvit_large_512", 512)])
def test_recipes_of_larger_images_say_that_they_are_ours(name, size):
    assert "our choice, no expected score" in (RECIPES / f"{name}.yaml").read_text()
    assert (load_config(name).img_size, load_config(name).drop_path) == (size, 0.1)


def test_the_recipe_of_imagenet_21k_has_its_classes_and_says_that_it_is_ours():
    config = load_config("gcvit_large_21k")
    assert (config.model, config.num_classes, config.epochs) == ("gcvit_large", len(imagenet_21k_synsets()), 90)
    assert "our choice, no expected score" in (RECIPES / "gcvit_large_21k.yaml").read_text()


@pytest.mark.parametrize("head", ["upernet", "segformer"])
@pytest.mark.parametrize("backbone", GPVIT)
def test_gpvit_segmentation_recipes_have_the_published_settings(backbone, head):
    config = load_config(f"{backbone}_{head}")
    assert config.model == f"{backbone}_{head}"
    assert (config.lr, config.weight_decay, config.head_lr_scale) == (
        1.2e-4,
        0.01,
        10.0 if head == "segformer" else 1.0,
    )
    assert (config.steps, config.warmup_steps, config.warmup_lr, config.min_lr) == (160_000, 1500, 1e-6, 0.0)
    assert (config.sched, config.decay_rate, config.global_batch) == ("poly", 1.0, 16)
    assert (config.img_size, config.short_side, config.long_side, config.size_multiple) == (512, 512, 2048, 32)
    assert (config.resize_ratio, config.crop_max_share, config.photometric) == ((0.5, 2.0), 0.75, True)
    assert (config.reduce_zero_label, config.class_file, config.aux_weight) == (True, "ade20k", 0.4)
    assert (config.drop_path, config.sync_bn, config.eval_mode) == (0.1, True, "whole")


@pytest.mark.parametrize("variant", ["tiny", "small", "base"])
def test_upernet_on_gc_vit_follows_gpvits_settings_and_says_so(variant):
    name = f"gcvit_{variant}_upernet"
    ours, gpvits = load_config(name), load_config("gpvit_l1_upernet")
    assert "our choice, no expected score" in (RECIPES / f"{name}.yaml").read_text()
    assert ours.drop_path == GCVIT[f"gcvit_{variant}"].drop_path
    assert replace(ours, model=gpvits.model, drop_path=gpvits.drop_path) == gpvits


@pytest.mark.parametrize("name", DETECTORS)
def test_gpvit_detection_recipes_have_the_published_settings(name):
    config = load_config(name)
    model, times = name.rsplit("_", 1)
    is_long = times == "3x"
    assert (config.model, config.drop_path, config.sync_bn) == (model, 0.1, True)
    assert (config.lr, config.weight_decay, config.global_batch) == (2e-4, 0.05, 16)
    assert (config.epochs, config.decay_milestones) == ((36, (27, 33)) if is_long else (12, (8, 11)))
    assert (config.sched, config.decay_rate, config.warmup_steps, config.warmup_lr) == ("multistep", 0.1, 500, 2e-7)
    assert (config.short_side, config.long_side) == (800, 1333)
    assert (config.det_augment, config.det_crop) == (("detr", 1024) if is_long else ("resize", None))
    assert config.clip_grad == (35.0 if "retinanet" in model else None)


@pytest.mark.parametrize("model", GCVIT_DETECTORS)
def test_gcvit_detection_recipes_have_the_published_settings(model):
    config = load_config(f"{model}_3x")
    assert (config.model, config.drop_path, config.global_batch) == (model, 0.2, 16)
    assert (config.lr, config.weight_decay, config.warmup_steps) == (1e-4, 0.05, 2500)
    assert (config.epochs, config.decay_milestones, config.det_augment) == (36, (27, 33), "detr")
    assert (config.clip_grad, config.det_crop) == (None, None)

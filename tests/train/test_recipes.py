"""The shipped recipes: which there are, what heads them, and that they are the published trainings."""

import pytest

from globalvit.models.variants import GCVIT, GPVIT, VARIANTS
from globalvit.train.config import RECIPES, available_recipes, load_config

PUBLISHED = [name for name in GCVIT if name not in ("gcvit_large_384", "gcvit_large_512")]


def test_every_variant_has_a_recipe_and_there_are_two_quick_starts():
    assert set(available_recipes()) == {*VARIANTS, "digits", "finetune"}


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
    assert (config.amp, config.crop_pct, config.train_interpolation) == (True, 0.875, "random")


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

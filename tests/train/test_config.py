"""From recipes, files and flags to a config: who wins, and what is refused in which words."""

import logging

import pytest
import yaml

from globalvit.train.config import (
    available_recipes,
    check_resumable,
    from_dict,
    load_config,
    scale_lr,
    share_batch,
    to_yaml,
)
from globalvit.train.fields import TrainConfig


@pytest.fixture
def file(tmp_path):
    def write(text, name="my.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_defaults_are_overruled_by_the_base_then_the_file_then_flags(file):
    file("opt: sgd\nmomentum: 0.5\nweight_decay: 0.1\n", "below.yaml")
    above = file("base: below.yaml\nmomentum: 0.7\nweight_decay: 0.2\n")
    config = load_config(above, {"weight_decay": 0.3})
    assert (config.opt, config.momentum, config.weight_decay) == ("sgd", 0.7, 0.3)
    assert config.sched == TrainConfig.sched


def test_a_file_may_build_on_a_shipped_recipe(file):
    config = load_config(file("base: digits\nepochs: 3\n"))
    assert config.data_dir == "digits"
    assert config.epochs == 3


def test_without_a_source_it_is_finetune():
    assert load_config() == load_config("finetune")


@pytest.mark.parametrize(
    ("model", "ending"),
    [("gcvit_tiny", ""), ("gcvit_tiny_segformer", "_segmentation"), ("gcvit_tiny_mask_rcnn", "_detection")],
)
def test_fresh_weights_train_by_a_recipe_of_their_own(model, ending, caplog):
    with caplog.at_level(logging.INFO):
        config = load_config(None, {"model": model, "weights": None})
    assert config == load_config(f"scratch{ending}", {"model": model})
    assert caplog.messages[0].startswith(f"recipe scratch{ending}: --weights none starts from fresh weights")
    assert len(caplog.messages) == 2
    own = load_config(None, {"model": model, "weights": "own.pth"})
    assert own == load_config(f"finetune{ending}", {"model": model, "weights": "own.pth"})
    named = load_config("finetune", {"model": model, "weights": None, "lr": 0.2})
    assert (named.lr, named.layer_decay) == (0.2, 0.7)


@pytest.mark.parametrize("name", available_recipes())
def test_every_recipe_round_trips_through_its_yaml(name, file):
    config = load_config(name)
    assert load_config(file(to_yaml(config))) == config
    assert from_dict(config.to_dict(), "here") == config


def test_numbers_that_yaml_reads_as_text_are_numbers(file):
    config = load_config(file("lr: 1e-3\nopt_betas: [0.9, 0.95]\nimg_size: 64\nimg_size: [64, 96]\nclip_grad: 1\n"))
    assert (config.lr, config.opt_betas, config.img_size, config.clip_grad) == (1e-3, (0.9, 0.95), (64, 96), 1.0)


def test_an_alias_of_a_model_is_its_name(file):
    assert load_config(file("model: gc_vit_tiny\n")).model == "gcvit_tiny"


def test_dashes_and_other_names_of_timm_are_understood(file):
    config = load_config(file("batch-size: 7\nexperiment: mine\ndrop_path_rate: 0.3\ninitial_checkpoint: ''\n"))
    assert (config.batch_size, config.tag, config.drop_path, config.weights) == (7, "mine", 0.3, None)


def test_an_empty_value_of_timms_files_is_the_default(file):
    config = load_config(file("opt: null\naa: null\n"))
    assert (config.opt, config.aa) == ("adamw", None)


def test_keys_without_meaning_here_are_listed_in_one_line(file, caplog):
    with caplog.at_level(logging.INFO):
        load_config(file("epochs: 10\nwarmup_epochs: 1\ncooldown_epochs: 0\naug_splits: 0\ndist_bn: reduce\n"))
    assert [record.getMessage().split(", since they", 1)[1] for record in caplog.records] == [
        " have no effect here: aug_splits=0, dist_bn=reduce"
    ]


@pytest.mark.parametrize(
    ("key", "off", "on"),
    [
        ("bce_loss", "false", "true"),
        ("drop", "0.0", "0.1"),
        ("aug_repeats", "0", "3"),
        ("aug_repeats", "1", "3"),
        ("epoch_repeats", "0.", "2"),
        ("grayscale_prob", "null", "0.2"),
        ("gaussian_blur_prob", "0", "0.5"),
        ("color_jitter_prob", "null", "0"),
        ("train_crop_mode", "rrc", "rkrc"),
        ("mixup_mode", "batch", "elem"),
        ("cutmix_minmax", "null", "[0.2, 0.8]"),
        ("clip_mode", "norm", "agc"),
        ("lr_cycle_mul", "1.0", "2"),
        ("lr_noise", "[]", "[0.4, 0.9]"),
        ("lr_k_decay", "1.0", "1.5"),
        ("warmup_prefix", "false", "true"),
        ("model_kwargs", "{}", "{depths: [1]}"),
        ("opt_kwargs", "{}", "{caution: true}"),
        ("mesa", "0.0", "0.25"),
        ("class_map", "''", "map.txt"),
        ("dataset", "''", "hfds/food101"),
        ("eval_metric", "top1", "loss"),
        ("lr_base", "0.1", "0.5"),
        ("input_size", "null", "[3, 192, 192]"),
    ],
)
def test_what_would_change_the_training_is_refused_unless_it_is_off(file, key, off, on):
    load_config(file(f"{key}: {off}\n"))
    with pytest.raises(ValueError, match=rf"{key}=.* in .* is not offered and would change the training; take it out"):
        load_config(file(f"{key}: {on}\n"))


def test_a_size_that_is_said_twice_and_a_rate_that_is_not_used_change_nothing(file):
    config = load_config(file("img_size: 192\ninput_size: [3, 192, 192]\nlr: 0.001\nlr_base: 0.5\n"))
    assert (config.img_size, config.lr) == (192, 0.001)
    assert load_config(file("pretrained_path: mine.safetensors\n")).weights == "mine.safetensors"


@pytest.mark.parametrize(
    ("text", "precision"),
    [("amp: true", "auto"), ("native_amp: false", "fp32"), ("amp: false\nprecision: bf16", "bf16")],
)
def test_timms_switch_for_mixed_precision_is_a_precision(file, text, precision):
    assert load_config(file(text + "\n")).precision == precision


def test_pretrained_stands_for_the_published_weights(file):
    assert load_config(file("pretrained: true\n")).weights == "published"
    assert load_config(file("pretrained: false\n")).weights is None
    assert load_config(file("pretrained: true\nweights: mine.safetensors\n")).weights == "mine.safetensors"


# The keys and habits of the official repository's files and commands, with timm's names.
OFFICIAL = """
model: gc_vit_tiny
amp: true
model_ema: true
model_ema_decay: 0.9998
sched: cosine
opt: adamw
opt_eps: 1e-8
opt_betas: null
weight_decay: 0.05
clip_grad: 5.0
clip_mode: norm
epochs: 300
cooldown_epochs: 10
warmup_epochs: 20
warmup_lr: 1.0e-06
min_lr: 5.0e-06
lr: 0.005
batch_size: 128
data_dir: /imagenet
img_size: 224
input_size: [3, 224, 224]
num_classes: 1000
drop_path: 0.2
drop: 0.0
aa: rand-m9-mstd0.5-inc1
color_jitter: 0.4
crop_pct: 0.875
cutmix: 1.0
cutmix_minmax: null
mixup: 0.8
mixup_mode: batch
mixup_prob: 1.0
mixup_switch_prob: 0.5
ratio: [0.75, 1.3333333333333333]
scale: [0.08, 1.0]
remode: pixel
reprob: 0.25
smoothing: 0.1
train_interpolation: random
resume: ''
local_rank: 0
seed: 42
workers: 8
"""


def test_an_official_file_is_a_config(file):
    config = load_config(file(OFFICIAL), {"batch_size": 32})
    assert (config.model, config.precision, config.lr, config.batch_size) == ("gcvit_tiny", "auto", 0.005, 32)
    assert (config.total_epochs, config.opt_betas, config.resume) == (310, None, None)
    # It states no global batch: its lr is meant as it stands.
    assert scale_lr(config, 8).lr == 0.005


def test_a_recipe_that_becomes_shorter_shortens_its_warm_up_and_cooldown(caplog):
    with caplog.at_level(logging.INFO):
        config = load_config("gcvit_tiny", {"epochs": 30})
    assert (config.epochs, config.warmup_epochs, config.cooldown_epochs) == (30, 2.0, 1)
    assert "epochs changed by the command line: warmup_epochs 20 becomes 2 in proportion" in caplog.text


def test_a_warm_up_named_with_the_epochs_stays():
    assert load_config("gcvit_tiny", {"epochs": 30, "warmup_epochs": 5}).warmup_epochs == 5


def test_lr_follows_the_batch_and_says_so(caplog):
    config = load_config("gcvit_tiny", {"batch_size": 64})
    with caplog.at_level(logging.INFO):
        scaled = scale_lr(config, 8)
    assert scaled.lr == pytest.approx(5e-3 / 8)
    assert scaled.min_lr == pytest.approx(5e-6 / 8)
    assert scaled.global_batch == 512
    assert "lr 0.005 is for a global batch of 4096, here it is 512: lr scaled to 0.000625" in caplog.text


def test_lr_on_the_command_line_is_not_scaled(caplog):
    with caplog.at_level(logging.INFO):
        scaled = scale_lr(load_config("gcvit_tiny", {"batch_size": 64, "lr": 0.1}), 8)
    assert (scaled.lr, scaled.global_batch, caplog.text) == (0.1, 512, "")


def test_the_recipes_own_batch_leaves_lr_alone():
    assert scale_lr(load_config("gcvit_tiny"), 32).lr == 5e-3
    assert scale_lr(load_config("gcvit_tiny", {"grad_accum_steps": 4}), 8).lr == 5e-3


def test_an_unknown_recipe_names_the_closest():
    with pytest.raises(ValueError, match=r"no recipe is named 'digts'\. Did you mean 'digits'"):
        load_config("digts")


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"config file lost\.yaml does not exist; shipped recipes: digits"):
        load_config("lost.yaml")


def test_an_unknown_key_names_the_closest(file):
    with pytest.raises(ValueError, match=r"unknown key 'warmup_epoch' in .*my\.yaml\. Did you mean 'warmup_epochs'"):
        load_config(file("warmup_epoch: 3\n"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("lr: fast", "lr='fast' in .*my.yaml must be a number"),
        ("epochs: 1.5", "epochs=1.5 in .* must be a whole number"),
        ("amp: 3", "amp=3 in .* must be true or false"),
        ("precision: fp8", "precision='fp8' in .* must be 'auto' or 'fp32' or 'tf32' or 'bf16' or 'fp16'"),
        ("scale: [1]", r"scale=\[1\] in .* must be a list of 2 numbers"),
        ("window: [7, 7]", "must be a list of 4 numbers or 'ratio'"),
        ("mean: 0.5", "mean=0.5 in .* must be a list of numbers"),
        ("batch_size: 0", "batch_size=0 must be 1 or more"),
        ("lr: 0", "lr=0.0 must be more than 0"),
        ("smoothing: 1.0", "smoothing=1.0 must be 0 or more and less than 1"),
        ("crop_pct: 1.5", "crop_pct=1.5 must be more than 0 and at most 1"),
        ("{epochs: 5, warmup_epochs: 5}", "warmup_epochs=5 must be less than epochs=5; lower --warmup-epochs"),
        ("- 1", "must hold `key: value` lines, not a list"),
        ("a: [", "is not readable as YAML"),
    ],
)
def test_a_wrong_value_is_refused_with_what_was_expected(file, line, words):
    with pytest.raises(ValueError, match=words):
        load_config(file(line + "\n"))


def test_files_that_build_on_each_other_are_refused(file):
    file("base: my.yaml\n", "other.yaml")
    with pytest.raises(ValueError, match=r"my\.yaml names itself as its base, by way of .*my\.yaml and .*other\.yaml"):
        load_config(file("base: other.yaml\n"))


def test_settings_that_decide_about_the_result_cannot_change_on_resume():
    saved = TrainConfig(lr=0.1, smoothing=0.0)
    check_resumable(TrainConfig(lr=0.1, smoothing=0.0, workers=7, log_interval=3), saved)
    with pytest.raises(ValueError, match=r"other settings \(lr 0.1, now 0.2; smoothing 0.0, now 0.1\); leave those"):
        check_resumable(TrainConfig(lr=0.2, smoothing=0.1), saved)


def test_a_resumed_run_spreads_its_batch_over_other_processes():
    saved = TrainConfig(batch_size=8, global_batch=16)
    assert share_batch(saved, saved, 4).batch_size == 4
    assert share_batch(TrainConfig(batch_size=2, global_batch=16), saved, 4).batch_size == 2
    with pytest.raises(ValueError, match="16 images a step, which 3 processes × 1 passes cannot share"):
        share_batch(saved, saved, 3)


def test_the_yaml_of_a_config_has_every_field_in_order():
    assert list(yaml.safe_load(to_yaml(TrainConfig()))) == list(TrainConfig.__dataclass_fields__)


def test_naming_epochs_ends_the_counting_in_steps(tmp_path):
    (tmp_path / "steps.yaml").write_text("steps: 1000\nwarmup_steps: 100\nval_steps: 50\n")
    shorter = load_config(tmp_path / "steps.yaml", {"steps": 20})
    assert (shorter.steps, shorter.warmup_steps, shorter.val_steps) == (20, 2, 50)
    in_epochs = load_config(tmp_path / "steps.yaml", {"epochs": 9})
    assert (in_epochs.epochs, in_epochs.steps, in_epochs.warmup_steps, in_epochs.val_steps) == (9, None, None, None)
    with pytest.raises(ValueError, match="warmup_steps=20 must be less than steps=20"):
        load_config(tmp_path / "steps.yaml", {"steps": 20, "warmup_steps": 20})


def test_sharding_is_answered_with_ddp(tmp_path):
    words = "use torchrun \\(DDP\\), which is enough up to 204 M parameters"
    with pytest.raises(ValueError, match=f"fsdp=true in the command line is not offered: {words}"):
        load_config("digits", {"fsdp": True})
    path = tmp_path / "mine.yaml"
    path.write_text("base: digits\nfsdp: true\n")
    with pytest.raises(ValueError, match=rf"fsdp=true in .*mine\.yaml is not offered: {words}"):
        load_config(path)
    # Files of earlier versions name it.
    path.write_text("base: digits\nfsdp: false\n")
    assert load_config(path) == load_config("digits")
    assert from_dict({"fsdp": True}, "state.json") == TrainConfig()

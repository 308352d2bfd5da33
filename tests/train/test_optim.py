"""Parameter groups, schedule, optimizers by name and the moving average."""

import math

import pytest
import torch
from torch import nn

from globalvit.build import create_backbone, create_model
from globalvit.models.variants import VARIANTS
from globalvit.train.config import load_config
from globalvit.train.fields import TrainConfig
from globalvit.train.optim import Schedule, create_ema, create_optimizer, gradient_norm, parameter_groups


@pytest.fixture
def task(toy):
    return create_model("gcvit_xxtiny", num_classes=3, image_size=32)


def names_of(task, groups, **wanted):
    names = {parameter: name for name, parameter in task.named_parameters()}
    chosen = [group for group in groups if all(group[key] == value for key, value in wanted.items())]
    return {names[parameter] for group in chosen for parameter in group["params"]}


def test_biases_norms_and_bias_tables_have_no_weight_decay(task):
    groups = parameter_groups(task, 0.05)
    spared = names_of(task, groups, weight_decay=0.0)
    decayed = names_of(task, groups, weight_decay=0.05)
    assert spared | decayed == {name for name, _ in task.named_parameters()}
    assert all(
        parameter.ndim <= 1 or name.endswith("bias_table")
        for name, parameter in task.named_parameters()
        if name in spared
    )
    assert {"backbone.stem.conv.weight", "head.linear.weight"} <= decayed
    assert {"head.linear.bias", "backbone.norm.weight", "backbone.stages.0.blocks.0.attention.bias_table"} <= spared


def test_layer_decay_shrinks_the_rate_with_the_distance_from_the_head(task):
    groups = parameter_groups(task, 0.05, layer_decay=0.5)
    depths = task.backbone.num_depths
    assert "head.linear.weight" in names_of(task, groups, lr_scale=1.0)
    assert "backbone.norm.weight" in names_of(task, groups, lr_scale=0.5)
    assert "backbone.stem.conv.weight" in names_of(task, groups, lr_scale=0.5**depths)
    assert "backbone.stages.3.blocks.0.mlp.fc1.weight" in names_of(task, groups, lr_scale=0.25)


@pytest.mark.parametrize("name", VARIANTS)
def test_no_stem_stands_still_at_the_default_layer_decay(name):
    task = nn.Module()
    with torch.device("meta"):
        task.backbone = create_backbone(name)
    groups = parameter_groups(task, 0.05, load_config("finetune").layer_decay)
    scales = {}
    for group in groups:
        for key in names_of(task, [group]):
            scales[task.backbone.depth_of(key.removeprefix("backbone."))] = group["lr_scale"]
    ordered = [scales[depth] for depth in range(task.backbone.num_depths)]
    assert ordered == sorted(ordered)
    assert sorted(set(ordered)) == pytest.approx([0.7**distance for distance in range(12, 0, -1)])


def test_the_schedule_is_warm_up_cosine_and_cooldown_by_step(task):
    config = TrainConfig(epochs=4, warmup_epochs=1, cooldown_epochs=1, lr=1.0, warmup_lr=0.1, min_lr=0.01)
    schedule = Schedule(create_optimizer(task, config), config, steps_per_epoch=10)
    rates = [schedule.set_lr(step) for step in range(50)]
    assert rates[:11] == pytest.approx([0.1 + 0.09 * step for step in range(10)] + [rates[10]])
    for step in (10, 25, 39):
        assert rates[step] == pytest.approx(0.01 + 0.495 * (1 + math.cos(math.pi * step / 40)))
    assert rates[40:] == pytest.approx([0.01] * 10)


def test_the_schedule_of_a_step_does_not_depend_on_the_steps_before(task):
    config = TrainConfig(epochs=4, warmup_epochs=1, layer_decay=0.5)
    optimizer = create_optimizer(task, config)
    schedule = Schedule(optimizer, config, 10)
    first = schedule.set_lr(17)
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule.set_lr(3)
    assert schedule.set_lr(17) == first
    assert [group["lr"] for group in optimizer.param_groups] == rates
    assert min(rates) == pytest.approx(first * 0.5**task.backbone.num_depths)


@pytest.mark.parametrize("sched", ["cosine", "poly", "step", "constant"])
def test_every_schedule_reaches_its_peak_and_never_exceeds_it(task, sched):
    config = TrainConfig(epochs=4, warmup_epochs=0.5, lr=0.3, sched=sched, decay_epochs=2)
    schedule = Schedule(create_optimizer(task, config), config, 10)
    rates = [schedule.set_lr(step) for step in range(40)]
    assert max(rates) == pytest.approx(0.3, rel=0.05)
    assert rates[0] < rates[4]


@pytest.mark.parametrize(("opt", "lr"), [("adamw", 3e-4), ("sgd", 0.01), ("lamb", 3e-3), ("lion", 1e-4)])
def test_an_optimizer_of_timm_lowers_the_loss(task, opt, lr):
    optimizer = create_optimizer(task.eval(), TrainConfig(opt=opt, lr=lr))
    batch = {"images": torch.randn(4, 3, 32, 32), "labels": torch.tensor([0, 1, 2, 0])}
    losses = []
    for _ in range(8):
        loss = task.losses(batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_an_unknown_optimizer_names_the_closest(task):
    with pytest.raises(ValueError, match=r"opt='adamv' is not known to timm\. Did you mean 'adam"):
        create_optimizer(task, TrainConfig(opt="adamv"))


def test_an_option_that_an_optimizer_lacks_is_named(task):
    with pytest.raises(ValueError, match="opt='sgd' has no betas; leave --opt-betas out"):
        create_optimizer(task, TrainConfig(opt="sgd", opt_betas=(0.9, 0.99)))


def test_the_moving_average_follows_timms_rule(task):
    ema = create_ema(task, TrainConfig(model_ema=True, model_ema_decay=0.75))
    before = task.head.linear.weight.detach().clone()
    with torch.no_grad():
        task.head.linear.weight.add_(1.0)
    ema.update(task, step=5)
    torch.testing.assert_close(ema.module.head.linear.weight, before + 0.25)


def test_the_moving_average_with_warm_up_forgets_the_start(task):
    ema = create_ema(task, TrainConfig(model_ema=True, model_ema_warmup=True))
    with torch.no_grad():
        task.head.linear.weight.add_(1.0)
    ema.update(task, step=1)
    torch.testing.assert_close(ema.module.head.linear.weight, task.head.linear.weight)
    assert ema.get_decay(100) < ema.get_decay(1000) < 0.9998


def test_without_a_moving_average_there_is_none(task):
    assert create_ema(task, TrainConfig()) is None


def test_the_gradient_norm_is_over_all_parameters():
    parameters = [
        torch.nn.Parameter(torch.zeros(2)),
        torch.nn.Parameter(torch.zeros(1)),
        torch.nn.Parameter(torch.ones(1)),
    ]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert float(gradient_norm(parameters)) == pytest.approx(5.0)


def test_a_schedule_may_be_counted_in_steps(task):
    config = TrainConfig(steps=20, warmup_steps=5, sched="poly", decay_rate=1.0, lr=1.0, warmup_lr=0.5, min_lr=0.0)
    schedule = Schedule(create_optimizer(task, config), config, steps_per_epoch=7)
    rates = [schedule.set_lr(step) for step in range(20)]
    assert rates == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9] + [1 - step / 20 for step in range(5, 20)])


def test_a_schedule_may_fall_at_milestones(task):
    config = TrainConfig(epochs=12, warmup_steps=2, sched="multistep", lr=1.0, warmup_lr=0.0)
    schedule = Schedule(create_optimizer(task, config), config, steps_per_epoch=5)
    rates = [schedule.set_lr(step) for step in (0, 1, 2, 39, 40, 54, 55, 59)]
    assert rates == pytest.approx([0, 0.5, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_the_head_may_learn_faster(task):
    groups = parameter_groups(task, 0.05, head_lr_scale=10.0)
    assert names_of(task, groups, lr_scale=10.0) == {"head.linear.weight", "head.linear.bias"}

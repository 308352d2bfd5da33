"""Runs in this process: they learn, repeat, write their folder, and stop with a message when they must."""

import json
import logging

import pytest
import torch
import yaml

from globalvit.data.common import loading
from globalvit.tasks.classify import Classifier
from globalvit.train import evaluate as evaluation
from globalvit.train.callbacks import CallbackError
from globalvit.train.config import load_config
from globalvit.train.loop import Trainer, train

pytestmark = pytest.mark.usefixtures("toy")


@pytest.fixture
def losses(metrics):
    return lambda folder: [record["loss"] for record in metrics(folder, "train")]


def test_a_run_learns(config, losses, metrics):
    folder = train(config(epochs=8, lr=3e-3, smoothing=0.0))
    assert sum(losses(folder)[-4:]) / 4 < losses(folder)[0] / 2
    assert metrics(folder, "evaluate")[-1]["top1"] > 60


def test_the_same_seed_gives_the_same_numbers(config, metrics):
    first, again, other = (train(config(tag=tag, seed=seed, epochs=1)) for tag, seed in (("a", 5), ("b", 5), ("c", 6)))
    assert metrics(first) == metrics(again)
    assert metrics(first) != metrics(other)


@pytest.mark.usefixtures("rendered")
def test_a_run_leaves_everything_in_its_folder(config, losses):
    folder = train(config(model_ema=True, model_ema_warmup=True))
    for name in (
        *("config.yaml", "summary.json", "metrics.jsonl", "classes.json", "log.txt", "samples/train_batch.png"),
        *("plots/loss.png", "plots/accuracy.png", "plots/lr.png", "plots/confusion_matrix.png"),
        *("checkpoints/last", "checkpoints/best", "checkpoints/step-12/model.safetensors"),
        *("checkpoints/step-12/ema.safetensors", "checkpoints/step-12/state.json"),
    ):
        assert (folder / name).stat().st_size > 0, name
    assert json.loads((folder / "classes.json").read_text()) == ["blue", "green", "red"]
    summary = json.loads((folder / "summary.json").read_text())
    assert 0 <= summary["top1"] <= summary["top5"] == 100
    assert (summary["finished"], summary["weights"], summary["steps_done"]) == (True, "ema", 12)
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert (written["precision"], written["global_batch"], written["num_classes"]) == ("fp32", 4, 3)
    assert (written["crop_mode"], len(written["mean"])) == ("center", 3)
    assert len(losses(folder)) == 12


def test_a_run_folder_is_never_overwritten(config, tmp_path):
    folder = train(config(epochs=1))
    with pytest.raises(FileExistsError, match=r"run folder .*run exists; choose another --tag, or --resume .*run"):
        train(config(epochs=1))
    assert folder == tmp_path / "runs" / "run"


def test_a_run_without_a_tag_is_numbered(config):
    assert train(config(tag=None, epochs=1), "blocks").name == "blocks-1"
    assert train(config(tag=None, epochs=1), "blocks").name == "blocks-2"


def test_the_checkpoint_repeats_the_score_of_the_summary(config):
    from globalvit.build import open_checkpoint

    run = config(model_ema=True, model_ema_warmup=True)
    folder = train(run)
    task = open_checkpoint(folder)
    source = loading_source(run)
    loader = loading.eval_loader(source, task.preprocessing, batch_size=4)
    found = evaluation.evaluate(task, loader, task.preprocessing, torch.device("cpu")).compute()
    summary = json.loads((folder / "summary.json").read_text())
    assert (found["top1"], found["loss"]) == (summary["top1"], summary["loss"])


def loading_source(run):
    from globalvit.data.classification.dataset import open_split

    return open_split(run.data_dir, "val")


def test_accumulated_passes_equal_a_larger_batch(config, losses):
    plain = {"opt": "sgd", "lr": 0.05, "drop_path": 0.0, "epochs": 3}
    whole = losses(train(config(tag="whole", batch_size=8, **plain)))
    halves = losses(train(config(tag="halves", batch_size=4, grad_accum_steps=2, **plain)))
    assert len(whole) == len(halves) == 9
    assert halves == pytest.approx(whole, abs=1e-5)


def test_early_stopping_ends_after_evaluations_without_a_better_score(config, metrics, caplog):
    with caplog.at_level(logging.INFO):
        folder = train(config(epochs=9, lr=1e-30, warmup_lr=0.0, min_lr=0.0, early_stop=2))
    assert len(metrics(folder, "evaluate")) == 3
    assert "no better score in 2 evaluations" in caplog.text


def test_image_sizes_progress_in_equal_shares(config, monkeypatch):
    sizes = []
    losses_of = Classifier.losses
    monkeypatch.setattr(
        Classifier, "losses", lambda self, batch: sizes.append(batch["images"].shape[-1]) or losses_of(self, batch)
    )
    train(config(epochs=2, img_size=48, progressive=(32, 48)))
    assert sizes == [32] * 6 + [48] * 6


def test_a_run_may_be_counted_in_steps(config, metrics):
    folder = train(config(steps=7, warmup_steps=2, val_steps=3))
    assert [record["step"] for record in metrics(folder, "evaluate")] == [3, 6, 7]
    assert max(record["step"] for record in metrics(folder, "train")) == 7
    assert json.loads((folder / "summary.json").read_text())["steps_done"] == 7


def test_evaluation_and_checkpoints_come_at_their_intervals(config, metrics):
    folder = train(config(epochs=5, val_interval=2, checkpoint_interval=3, checkpoint_every=7, checkpoint_hist=9))
    assert [record["step"] for record in metrics(folder, "evaluate")] == [12, 24, 30]
    steps = {path.name for path in (folder / "checkpoints").glob("step-*")}
    assert {"step-7", "step-14", "step-18", "step-21", "step-28", "step-30"} <= steps


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16"},
        {"grad_checkpointing": True},
        {"channels_last": True},
        {"in_chans": 1},
        {"mixup": 0.8, "cutmix": 1.0, "mixup_off_epoch": 1},
        {"aa": "rand-m9-mstd0.5-inc1", "reprob": 0.5, "workers": 1},
        {"layer_decay": 0.7, "clip_grad": 1.0, "drop_path": 0.3},
        {"img_size": (32, 64)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_train(config, losses, options):
    found = losses(train(config(epochs=1, **options)))
    assert found
    assert all(0 < loss < 20 for loss in found)


def test_the_chosen_batch_is_written_to_the_config_and_kept(config, losses, monkeypatch):
    folder = train(config(epochs=1, auto_batch=True, batch_size=1))
    assert 0 < losses(folder)[0] < 20
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert (written["auto_batch"], written["batch_size"], written["global_batch"]) == (True, 26, 26)
    monkeypatch.setattr("globalvit.train.session.choose_batch", None)
    train(load_config(folder / "config.yaml", {"resume": str(folder)}))


@pytest.mark.parametrize(("loss", "words"), [("nan", "loss is nan"), ("inf", "loss is inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_files(config, monkeypatch, loss, words):
    weights = spoil_loss(monkeypatch, float(loss), at_step=3)
    with pytest.raises(FloatingPointError, match=rf"{words} in step 3 on rank 0; rank 0's batch held .*\.png, .*\.png"):
        train(config(log_interval=1))
    assert torch.isfinite(weights()).all()


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_step(config, monkeypatch):
    weights = spoil_loss(monkeypatch, 1.0, at_step=2, gradient=float("nan"))
    with pytest.raises(FloatingPointError, match="gradient norm is nan in step 2 on rank 0"):
        train(config())
    assert torch.isfinite(weights()).all()


class Spoiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss, value, gradient):
        ctx.gradient = gradient
        return loss * value

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.gradient, None, None


def spoil_loss(monkeypatch, value, *, at_step, gradient=1.0):
    """Multiply loss and gradient at one step; returns a look at the head's weights."""
    losses_of, seen = Classifier.losses, []

    def losses(self, batch):
        seen.append(self)
        found = losses_of(self, batch)
        return {"loss": Spoiled.apply(found["loss"], value, gradient)} if len(seen) == at_step else found

    monkeypatch.setattr(Classifier, "losses", losses)
    return lambda: seen[-1].head.linear.weight.detach()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"),
        MemoryError("no room"),
    ],
)
def test_running_out_of_memory_says_what_to_lower(config, monkeypatch, error):
    def losses(self, batch):
        raise error

    monkeypatch.setattr(Classifier, "losses", losses)
    words = r"out of memory in step 1 with batch_size=4 and img_size=32; lower --batch-size .*--grad-checkpointing"
    with pytest.raises(MemoryError, match=words):
        train(config())


def test_other_errors_of_a_step_stay_what_they_are(config, monkeypatch):
    def losses(self, batch):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Classifier, "losses", losses)
    with pytest.raises(RuntimeError, match="a bug"):
        train(config())


def test_too_few_images_for_a_step_are_refused(config):
    with pytest.raises(ValueError, match="27 training images do not fill one batch of 28"):
        train(config(batch_size=28))
    with pytest.raises(ValueError, match=r"do not fill one step of 4 images × 1 process\(es\) × 7 passes; lower"):
        train(config(grad_accum_steps=7))


def test_another_number_of_classes_is_refused(config, images):
    with pytest.raises(ValueError, match=rf"num_classes=1000, but {images} has 3 classes; leave --num-classes out"):
        train(config(num_classes=1000))


def test_data_is_asked_for(config):
    with pytest.raises(ValueError, match="no data: give --data-dir FOLDER"):
        train(config(data_dir=None))


def test_the_best_is_chosen_by_the_average_and_both_are_logged(config, metrics, monkeypatch):
    # Of the model and of its average, epoch by epoch.
    made_up = iter([50.0, 10.0, 20.0, 30.0, 90.0, 20.0])

    def score(self, task):
        metric = task.metric()
        metric.made_up = next(made_up)
        return metric

    monkeypatch.setattr("globalvit.metrics.accuracy.Accuracy.compute", lambda self: {"top1": self.made_up})
    monkeypatch.setattr(Trainer, "_score", score)
    folder = train(config(epochs=3, model_ema=True, checkpoint_hist=1))
    assert [(r["top1"], r["ema_top1"]) for r in metrics(folder, "evaluate")] == [(50, 10), (20, 30), (90, 20)]
    assert (folder / "checkpoints" / "best").read_text() == "step-12\n"
    assert json.loads((folder / "summary.json").read_text())["top1"] == 30


def test_a_terminal_gets_a_bar(config, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    train(config(epochs=1))
    shown = capsys.readouterr().err
    for word in ("epoch", "6/6", "loss", "img/s", "left", "MiB"):
        assert word in shown


def test_elsewhere_there_are_lines(config, caplog, monkeypatch):
    monkeypatch.setattr("globalvit.train.progress.LINE_EVERY", 0.0)
    with caplog.at_level(logging.INFO):
        train(config(epochs=1))
    assert "step 6/6, epoch 1.0, loss" in caplog.text


class Failing:
    """A callback that fails in the second step, before anything is saved."""

    def on_step(self, step):
        assert step.step < 2, "broken"


def test_a_run_that_fails_before_its_first_checkpoint_can_be_started_again(config, tmp_path, caplog):
    with caplog.at_level(logging.INFO), pytest.raises(CallbackError, match="no checkpoint was saved yet"):
        train(config(epochs=1), callbacks=[Failing()])
    assert not (tmp_path / "runs" / "run").exists()
    assert "classes: 'blue', 'green', 'red'" in caplog.text
    assert train(config(epochs=1)) == tmp_path / "runs" / "run"

"""`globalvit train` as it is typed: flags, files, messages and exit statuses."""

import os
import re
import signal

import pytest
import yaml

from globalvit.cli.main import main
from globalvit.train.loop import Trainer


@pytest.fixture
def words(settings):
    def make(**changes):
        return ["train", *(f"--{key}={value}" for key, value in settings(**changes).items())]

    return make


def test_the_settings_are_printed_and_read_back(capsys, tmp_path):
    assert main(["train", "--config", "digits", "--batch_size", "8", "--amp", "--print-config"]) == 0
    printed = capsys.readouterr().out
    values = yaml.safe_load(printed)
    assert (values["data_dir"], values["batch_size"], values["precision"]) == ("digits", 8, "auto")
    assert values["global_batch"] == 64
    (tmp_path / "again.yaml").write_text(printed)
    assert main(["train", f"--config={tmp_path / 'again.yaml'}", "--print-config"]) == 0
    assert capsys.readouterr().out == printed


def test_the_commands_of_the_official_readme_are_understood(capsys):
    line = "--config gcvit_tiny --data_dir IMAGENET --batch-size 64 --amp --tag mine --model-ema --local_rank 0"
    assert main(["train", *line.split(), "--print-config"]) == 0
    values = yaml.safe_load(capsys.readouterr().out)
    assert (values["data_dir"], values["batch_size"], values["tag"]) == ("IMAGENET", 64, "mine")
    assert (values["precision"], values["model_ema"]) == ("auto", True)


@pytest.mark.usefixtures("toy")
def test_a_run_and_its_resumption_from_the_command_line(words, tmp_path, capsys, monkeypatch):
    assert main(words(tag="first", epochs=1, weights="none")) == 0
    run = tmp_path / "runs" / "first"
    assert (run / "summary.json").exists()
    assert main(["train", "--resume", str(run), "--workers", "0"]) == 0
    assert main(["train", "--resume", str(run / "checkpoints" / "last" / "model.safetensors")]) == 0
    assert main(["train", "--resume", str(run), "--lr", "0.5"]) == 1
    error = capsys.readouterr().err
    assert "globalvit: error: cannot resume with other settings (" in error
    assert "now 0.5" in error


@pytest.mark.usefixtures("toy")
def test_resume_auto_goes_on_although_the_default_recipe_has_changed(words, tmp_path, capsys):
    old = tmp_path / "old.yaml"
    old.write_text("min_lr: 0.0\nmixup: 0.2\nsmoothing: 0.2\nlayer_decay: 0.5\nbatch_size: 8\nepochs: 2\n")
    line = words(tag="kept", resume="auto", epochs=1, warmup_epochs=0, weights="none")
    assert main([*line, f"--config={old}"]) == 0
    run = tmp_path / "runs" / "kept"
    before = (run / "config.yaml").read_text()
    assert main(line) == 0
    assert f"{run} resumes with its own settings; flags override them" in capsys.readouterr().err
    assert (run / "config.yaml").read_text() == before
    assert main([*line, "--mixup=0.4"]) == 1
    assert "cannot resume with other settings (mixup 0.2, now 0.4); leave those" in capsys.readouterr().err


@pytest.mark.usefixtures("toy")
def test_config_and_resume_together_as_people_type_it(words, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("epochs: 1\nwarmup_epochs: 0\n")
    base = [word for word in words(tag="first") if "epochs" not in word]
    assert main([*base, f"--config={recipe}"]) == 0
    assert main([*base, f"--config={recipe}", f"--resume={tmp_path / 'runs' / 'first'}"]) == 0


@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        ("--config digts", 1, "no recipe is named 'digts'. Did you mean 'digits'"),
        ("--config lost.yaml --data-dir x", 1, "config file lost.yaml does not exist"),
        ("--batchsize 3", 2, "unknown option --batchsize. Did you mean '--batch-size'"),
        ("--batch-size many", 2, "--batch-size 'many' is not understood"),
        ("--config digits --batch-size 0", 1, "batch_size=0 must be 1 or more"),
        ("--config finetune", 2, "requires --data-dir FOLDER"),
        ("--config digits --data-dir nowhere", 1, "data folder nowhere does not exist"),
        ("--resume nowhere", 1, "--resume nowhere does not exist; give a run folder"),
        (
            "--config digits --device cpu --precision fp16",
            1,
            "precision=fp16 needs a GPU, and the device is cpu; use --precision auto",
        ),
        (
            "--config digits --device cpu --fsdp",
            2,
            "option --fsdp: use torchrun (DDP), which is enough up to 204 M",
        ),
        ("--config digits --device cpu --model gcvit_tinny", 1, "Did you mean"),
        ("--config digits --device cpu --img-size 16", 1, "give 32 pixels or more"),
        ("--config digits --device cpu --opt adamv", 1, "opt='adamv' is not known to timm"),
        ("--config digits --device cpu --mixup 0.5 --batch-size 7", 1, "cannot be mixed in pairs"),
    ],
)
def test_mistakes_are_one_line_and_a_status(line, status, message, capsys, tmp_path):
    assert main(["train", *line.split(), "--workers", "0", "--output", str(tmp_path)]) == status
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("globalvit: error: ")
    assert message in error


def test_a_resumed_folder_without_config_asks_for_it(tmp_path, capsys):
    assert main(["train", "--resume", str(tmp_path)]) == 1
    assert "no config.yaml in or above --resume" in capsys.readouterr().err


@pytest.mark.usefixtures("toy")
def test_one_command_starts_a_job_and_restarts_it(words, tmp_path, capsys):
    run = tmp_path / "runs" / "job"
    command = words(tag="job", epochs=1, weights="none", resume="auto")
    # A job that died before it saved anything leaves a folder like this.
    run.mkdir(parents=True)
    assert main(command) == 0
    scores = (run / "summary.json").read_text()
    assert main(command) == 0
    assert (run / "summary.json").read_text() == scores
    assert [path.name for path in run.parent.iterdir()] == ["job"]
    without = [word for word in command if not word.startswith("--tag")]
    assert main(without) == 1
    assert "--resume auto goes on with the run of --tag; give a --tag" in capsys.readouterr().err


@pytest.mark.usefixtures("toy")
def test_a_run_with_other_designs_is_resumed_and_validated_with_them(words, tmp_path, capsys):
    assert main(words(epochs=1, weights="none", ablation="shifted,patch_stem")) == 0
    run = tmp_path / "runs" / "run"
    assert yaml.safe_load((run / "config.yaml").read_text())["ablation"] == ["patch_stem", "shifted"]
    assert main(["validate", "--checkpoint", str(run), "--workers", "0"]) == 0
    assert main(["train", "--resume", str(run), "--workers", "0", "--ablation", "shifted"]) == 1
    assert "cannot resume with other settings (ablation ('patch_stem', 'shifted'), now ('shifted',))" in (
        capsys.readouterr().err
    )
    assert main(words(tag="x", ablation="shifted,local_only")) == 1
    assert "both replace the global blocks" in capsys.readouterr().err


@pytest.mark.usefixtures("toy")
def test_the_exit_status_says_whether_a_signal_ended_the_run_early(words, tmp_path, monkeypatch):
    """A scheduler restarts what exits with another status than 0."""
    signals, step = [signal.SIGTERM, signal.SIGINT, signal.SIGTERM], Trainer._step

    def interrupted(self, *args):
        if signals and self.state.step == 3 - len(signals):
            os.kill(os.getpid(), signals.pop(0))
        return step(self, *args)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    command = words(tag="job", epochs=1, weights="none", resume="auto")
    assert main(command) == 143
    assert main(command) == 130
    assert main([*command, "--exit-0-on-signal"]) == 0
    assert '"finished": false' in (tmp_path / "runs" / "job" / "summary.json").read_text()
    assert main(command) == 0
    assert '"finished": true' in (tmp_path / "runs" / "job" / "summary.json").read_text()


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("model", ["gcvit_xxtiny", "gcvit_xxtiny_segformer"])
def test_a_dry_run_measures_and_leaves_nothing(words, tmp_path, capsys, model):
    data = ["--data-dir=shapes", "--short-side=32", "--long-side=32"] if "segformer" in model else []
    assert main([*words(model=model, model_ema="true", weights="none"), *data, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    steps = "400" if data else "12"
    pattern = (
        r"dry run: a step of 4 images and an evaluation work; [\d.e+]+ images/s, \d+ MiB on cpu; about \d+ "
        rf"(seconds|minutes) for {steps} steps and 2 evaluations, "
        r"if reading images keeps up; no run folder was written\n"
    )
    assert re.fullmatch(pattern, shown), shown
    assert not (tmp_path / "runs").exists()
    assert main([*words(weights="none", lr=1e30, clip_grad=1e30), "--dry-run", "--val-split=lost"]) == 1
    assert "lost" in capsys.readouterr().err

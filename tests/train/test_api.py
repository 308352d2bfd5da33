"""The functions of `globalvit`: the same bits as the commands, one line for every mistake."""

import io
import json
import os
import signal
import subprocess
import sys
import traceback
from importlib import import_module
from pathlib import Path

import pytest
import torch
import toy as toy_script
from safetensors.torch import load_file

import globalvit as gv
from globalvit.cli.main import main
from globalvit.data.classification.dataset import open_split
from globalvit.jobs.validate import Result
from globalvit.metrics.coco_ap import CocoAP
from globalvit.models.variants import VARIANTS
from globalvit.train.loop import Trainer

SHORT = {
    "config": "digits",
    "steps": 3,
    "val_steps": 3,
    "warmup_steps": 1,
    "batch_size": 8,
    "workers": 0,
    "device": "cpu",
}


def flags(settings):
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def weights(path):
    """The bytes of every tensor of a file; those of its header come in no fixed order."""
    return {name: value.numpy().tobytes() for name, value in load_file(path).items()}


@pytest.fixture(scope="module")
def network():
    """Makes the smallest network a tiny one for this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "gcvit_xxtiny", toy_script.TOYS["gcvit_xxtiny"])
        yield


@pytest.fixture(scope="module")
def run(network, tmp_path_factory):
    """A run of three steps on the digits, trained from Python."""
    return gv.train(**SHORT, image_size=32, output=tmp_path_factory.mktemp("runs"), tag="python")


@pytest.fixture
def digits(tmp_path):
    """A folder of three digits."""
    source = open_split("digits", "val")
    (tmp_path / "digits").mkdir()
    for index in range(3):
        source.read(index).save(tmp_path / "digits" / f"{index}.png")
    return tmp_path / "digits"


def test_a_training_has_the_bits_of_the_commands(run, metrics, tmp_path):
    assert main(["train", *flags(SHORT), "--image-size=32", f"--output={tmp_path}", "--tag=command"]) == 0
    command = tmp_path / "command"
    assert metrics(command) == metrics(run)
    for name in ("model.safetensors", "ema.safetensors"):
        assert weights(command / "checkpoints" / "step-3" / name) == weights(run.best / name)
    settings = [text.replace(str(tmp_path), "").replace("command", "") for text in config_lines(command)]
    here = str(run.folder.parent)
    assert settings == [text.replace(here, "").replace("python", "") for text in config_lines(run.folder)]


def config_lines(folder):
    return (folder / "config.yaml").read_text().splitlines()


def test_a_run_is_a_path_with_scores_records_and_curves(run):
    assert os.fspath(run) == str(run) == str(run.folder)
    assert run.folder.name == "python"
    assert run.scores == {name: summary(run.folder)[name] for name in ("top1", "top5", "loss", "count")}
    assert run.is_finished
    assert run.metrics[-1]["kind"] == "evaluate"
    assert run.classes == list("0123456789")
    assert (run.config.steps, run.config.img_size) == (3, 32)
    assert run.best == run.last == run.folder / "checkpoints" / "step-3"
    assert run.plot().size > (600, 300)
    assert repr(run).startswith(f"<Run {run.folder}: top1 ")
    assert gv.open_checkpoint(run).classes == tuple("0123456789")
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a run folder: it has no config\.yaml"):
        gv.Run("nowhere")


def test_a_validation_has_the_bits_of_the_commands_and_defaults_to_the_runs_data(run, tmp_path):
    measured = gv.validate(run, output=tmp_path / "python")
    assert main(["validate", "--checkpoint", str(run), "--output", str(tmp_path / "command")]) == 0
    for path in (tmp_path / "command").iterdir():
        assert path.read_bytes() == (tmp_path / "python" / path.name).read_bytes(), path.name
    assert measured.scores == run.scores
    assert [row["name"] for row in measured.rows] == list("0123456789")
    assert sum(map(sum, measured.confusion_matrix)) == 360
    assert measured.plot().size > (600, 300)
    assert repr(measured).startswith("<gcvit_xxtiny: top1 ")
    assert gv.validate(run, data_dir="digits", split="train", batch_size=400).scores["count"] == 1437


def test_scores_of_detectors_are_drawn_by_class():
    metric = CocoAP(("circle", "square"), with_masks=False)
    box = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
    found = {"boxes": box, "scores": torch.ones(1), "labels": torch.zeros(1, dtype=torch.int64)}
    known = {
        "boxes": box,
        "labels": found["labels"],
        "areas": torch.full((1,), 64.0),
        "crowd": torch.zeros(1) > 0,
        "masks": None,
    }
    metric.update([found], [known | {"image_id": 1, "size": (8, 8)}])
    measured = Result("detect", "gcvit_xxtiny_retinanet", metric, {})
    assert [row["name"] for row in measured.rows] == ["circle", "square"]
    assert measured.confusion_matrix == [[1, 0, 0], [0, 0, 0], [0, 0, 0]], (
        "the last row and column are the background's"
    )
    assert measured.plot().width > 600


def test_predictions_have_the_bits_of_the_commands(run, digits, tmp_path):
    command, python = tmp_path / "command.json", tmp_path / "python.json"
    assert main(["predict", str(digits), "--checkpoint", str(run), "--top-k=3", f"--json={command}"]) == 0
    found = gv.predict(digits, checkpoint=run, top_k=3, json=python)
    assert python.read_bytes() == command.read_bytes()
    assert found == json.loads(command.read_text())["predictions"]


def test_images_come_as_paths_patterns_lists_in_memory_and_from_generators(run, digits):
    paths = sorted(digits.iterdir())
    source = open_split("digits", "val")
    expected = gv.predict(digits, checkpoint=run)
    assert [answer["image"] for answer in expected] == list(map(str, paths))
    assert gv.predict(str(digits / "*.png"), checkpoint=run) == expected
    assert gv.predict(f"{digits.parent}/**/[0-9].png", checkpoint=run) == expected
    assert gv.predict([paths[0], digits / "[12].png"], checkpoint=run) == expected
    assert gv.predict(tuple(map(str, paths)), checkpoint=run) == expected
    in_memory = gv.predict([source.read(index) for index in range(3)], checkpoint=run)
    assert [answer | {"image": path} for answer, path in zip(in_memory, map(str, paths), strict=True)] == expected
    assert [answer["image"] for answer in in_memory] == ["images[0]", "images[1]", "images[2]"]
    task = gv.open_checkpoint(run)
    given = task.preprocessing(source.read(0))
    (seen,) = gv.predict(given, checkpoint=run)
    assert seen["scores"] == pytest.approx(expected[0]["scores"])
    assert gv.predict([], checkpoint=run) == []


def test_a_generator_is_read_as_its_answers_are_asked_for(run, digits):
    read = []
    images = (read.append(path) or path for path in sorted(digits.iterdir()))
    answers = gv.predict(images, checkpoint=run, batch_size=1)
    assert read == []
    first = next(answers)
    assert len(read) == 1
    assert [first, *answers] == gv.predict(digits, checkpoint=run, batch_size=1)


def test_an_image_that_cannot_be_read_is_an_error_or_left_out(run, digits, caplog):
    (digits / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken\.png"):
        gv.predict(digits, checkpoint=run)
    assert len(gv.predict([digits, "gone.png"], checkpoint=run, skip_unreadable=True)) == 3
    assert "skipped: gone.png does not exist" in caplog.text
    for given, kind in (([3], "int"), (io.BytesIO(b"no image\n"), "BytesIO")):
        with pytest.raises(ValueError, match=rf"images\[0\]: expected a path, a PIL image .*, got {kind}"):
            gv.predict(given, checkpoint=run)


def test_a_split_is_predicted_without_naming_its_images(run, tmp_path):
    split = tmp_path / "data" / "test" / "0"
    split.mkdir(parents=True)
    open_split("digits", "val").read(0).save(split / "a.png")
    assert gv.predict(split="test", data_dir=tmp_path / "data", checkpoint=run)[0]["image"] == str(split / "a.png")


def test_explanations_are_those_of_the_command(run, digits, tmp_path):
    words = ["explain", str(digits), "--checkpoint", str(run), "--output", str(tmp_path / "command"), "--npz"]
    assert main(words) == 0
    seen = gv.explain(digits, checkpoint=run, output=tmp_path / "python", npz=True)
    names = sorted(path.name for path in (tmp_path / "command").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "python").iterdir())
    sheets = [name for name in names if name.endswith("sheet.png")]
    assert [(tmp_path / "command" / n).read_bytes() for n in sheets] == [
        (tmp_path / "python" / n).read_bytes() for n in sheets
    ]
    assert [row["kind"] for row in seen[0].rows] == ["grad_cam", "grad_cam", "global", "global"]
    assert seen[0].plot().size == seen[0].sheet.size
    (one,) = gv.explain(open_split("digits", "val").read(0), checkpoint=run, kind="grad_cam", stage=2, target=7)
    assert one.explanations[0].name == "7"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_exported_file_has_the_bits_of_the_commands(run, tmp_path):
    words = [
        "export",
        "--checkpoint",
        str(run),
        "--output",
        str(tmp_path / "a.onnx"),
        "--image-size=32",
        "--dynamic=none",
    ]
    assert main(words) == 0
    report = gv.export(run, output=tmp_path / "b.onnx", image_size=32, dynamic="none")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert report.path == tmp_path / "b.onnx"
    assert [row["difference"] for row in report.rows] == [check.difference for check in report.checks]
    with pytest.raises(
        FileExistsError, match=r"b\.onnx already exists; use --force to replace it, or give another name"
    ):
        gv.export(run, output=tmp_path / "b.onnx")


WRONG = {
    "img_size": "image_size",
    "imgsz": "image_size",
    "data": "data_dir",
    "learning_rate": "lr",
    "lr0": "lr",
    "batch": "batch_size",
    "pretrained": "weights",
    "amp": "precision",
    "num_workers": "workers",
    "num_epochs": "epochs",
    "optimizer": "opt",
    "project": "output",
    "name": "tag",
    "modle": "model",
}


@pytest.mark.parametrize(("name", "right"), WRONG.items())
def test_another_name_of_a_setting_is_answered_by_the_right_one(name, right):
    with pytest.raises(TypeError, match=rf"^unknown setting '{name}' of train\(\)\. Did you mean '{right}'") as raised:
        gv.train(**{name: 1})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("function", "settings", "kind", "text"),
    [
        (gv.validate, {"imgsz": 3}, TypeError, "unknown setting 'imgsz' of validate(). Did you mean 'image_size'?"),
        (
            gv.validate,
            {"img_size": 3},
            TypeError,
            "unknown setting 'img_size' of validate(). Did you mean 'image_size'?",
        ),
        (gv.predict, {"conf": 0.5}, TypeError, "unknown setting 'conf' of predict(). Did you mean 'score_threshold'?"),
        (gv.predict, {"source": "x"}, TypeError, "unknown setting 'source' of predict(). Did you mean 'images'?"),
        (gv.predict, {"qqqq": 1}, TypeError, "unknown setting 'qqqq' of predict(). See globalvit predict --help"),
        (gv.explain, {"images": "x", "layer": 1}, TypeError, "unknown setting 'layer' of explain()."),
        (
            gv.export,
            {"output": "a.onnx", "half": 1},
            TypeError,
            "unknown setting 'half' of export(). Did you mean 'prec",
        ),
        (gv.train, {"config": "digits", "device": 0}, ValueError, "device=0 in train() must be 'auto' or 'cpu' or"),
        (
            gv.train,
            {"config": "digits", "epochs": "many"},
            ValueError,
            "epochs='many' in train() must be a whole number",
        ),
        (gv.train, {"model": object()}, ValueError, "in train() must be text"),
        (gv.train, {}, ValueError, "train requires --data-dir FOLDER with train/CLASS/ and val/CLASS/"),
        (gv.train, {"config": "digts"}, ValueError, "no recipe is named 'digts'. Did you mean 'digits'"),
        (gv.train, {"config": "lost.yaml"}, FileNotFoundError, "config file lost.yaml does not exist"),
        (gv.train, {"config": "digits", "data_dir": "gone"}, FileNotFoundError, "data folder gone does not exist"),
        (gv.train, {"resume": "gone"}, FileNotFoundError, "--resume gone does not exist; give a run folder"),
        (gv.validate, {}, ValueError, "no model given; use --checkpoint PATH for a trained model, or --model NAME"),
        (
            gv.validate,
            {"checkpoint": "gone"},
            FileNotFoundError,
            "gone does not exist; give a weight file, a checkpoint",
        ),
        (
            gv.validate,
            {"model": "gcvit_tiny"},
            ValueError,
            "validate requires --data-dir, since only a run folder records the data",
        ),
        (gv.validate, {"checkpoint": 3}, ValueError, "checkpoint=3 in validate() must be a path"),
        (
            gv.predict,
            {"checkpoint": "gone"},
            ValueError,
            "predict requires images=, or split= and the checkpoint of a run",
        ),
        (
            gv.predict,
            {"images": "gone.png", "checkpoint": "gone"},
            FileNotFoundError,
            "gone does not exist; give a weigh",
        ),
        (
            gv.export,
            {"output": "a.tflite", "checkpoint": "gone"},
            ValueError,
            "expected a file name ending in .onnx (ONNX) or .pt2 (torch.export), got a",
        ),
    ],
)
def test_mistakes_are_exceptions_of_one_line(function, settings, kind, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind) as raised:
        function(**settings)
    assert text in str(raised.value)
    assert "\n" not in str(raised.value)


def test_images_that_do_not_exist_are_found_before_anything_is_computed(run, digits, monkeypatch):
    monkeypatch.setattr("globalvit.tasks.classify.Classifier.predict", lambda *_, **__: pytest.fail("computed"))
    with pytest.raises(FileNotFoundError, match="gone does not exist; give images, folders"):
        gv.predict([digits, "gone"], checkpoint=run)
    with pytest.raises(FileNotFoundError, match=r"no file matches .*\*\.gif; give images, folders, patterns"):
        gv.predict(str(digits / "*.gif"), checkpoint=run)


def test_packages_of_the_functions_names_stay_packages():
    import_module("globalvit.export")
    import_module("globalvit.train.config")
    assert callable(gv.train)
    assert gv.train.config.load_config("digits").data_dir == "digits"
    assert gv.export.export_model
    assert "resume" in gv.train.__doc__
    assert {name for name in dir(gv) if name in ("train", "validate", "predict", "export", "explain")} != set()


class Recorder:
    """Keeps every record under the name of its method."""

    def __init__(self):
        self.calls = []

    def on_step(self, record):
        self.calls.append(("step", record))

    def on_epoch(self, record):
        self.calls.append(("epoch", record))

    def on_checkpoint(self, record):
        self.calls.append(("checkpoint", record))

    def on_evaluate(self, record):
        self.calls.append(("evaluate", record))

    def on_end(self, record):
        self.calls.append(("end", record))


@pytest.mark.usefixtures("toy")
def test_callbacks_are_given_what_the_run_records(settings, metrics):
    log = Recorder()
    run = _train(settings, log, batch_size=9)
    assert [name for name, _ in log.calls] == [*["step"] * 3, "epoch", "checkpoint", "evaluate"] * 2 + ["end"]
    steps = [record for name, record in log.calls if name == "step"]
    known = metrics(run, "train")
    assert [(record.step, record.loss, record.lr, record.grad_norm) for record in steps] == [
        (record["step"], record["loss"], record["lr"], record["grad_norm"]) for record in known
    ]
    epochs = [record.loss for name, record in log.calls if name == "epoch"]
    assert epochs == [pytest.approx(sum(record["loss"] for record in known[at : at + 3]) / 3) for at in (0, 3)]
    evaluations = [record for name, record in log.calls if name == "evaluate"]
    assert [record.scores for record in evaluations] == [
        {name: value for name, value in record.items() if name not in ("kind", "step", "epoch")}
        for record in metrics(run, "evaluate")
    ]
    checkpoints = [record.path for name, record in log.calls if name == "checkpoint"]
    assert [path.name for path in checkpoints] == ["step-3", "step-6"]
    end = log.calls[-1][1]
    assert (end.run, end.step, end.total_steps, end.epoch, end.reason) == (run.folder, 6, 6, 2.0, "finished")
    assert end.scores == run.scores


def _train(settings, *callbacks, **changes):
    given = settings(weights=None, **changes)
    given["image_size"] = given.pop("img_size")
    return gv.train(**given, callbacks=list(callbacks))


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("method", "how"),
    [("on_step", "raise"), ("on_epoch", "return"), ("on_checkpoint", "raise"), ("on_evaluate", "return")],
)
def test_a_callback_stops_a_run_that_goes_on_where_it_was(method, how, settings, metrics, tmp_path):
    straight = _train(settings, tag="straight", batch_size=9)
    ends = []

    def stop(record):
        if record.step >= (2 if method == "on_step" else 3):
            if how == "raise":
                raise gv.StopTraining
            return gv.StopTraining
        return None

    callback = type(
        "Stopper", (), {method: lambda _, record: stop(record), "on_end": lambda _, end: ends.append(end)}
    )()
    run = _train(settings, callback, batch_size=9)
    assert not run.is_finished
    assert ends[0].reason == f"callback Stopper.{method}"
    assert run.last.name == f"step-{ends[0].step}" == ("step-2" if method == "on_step" else "step-3")
    assert gv.train(resume=run, workers=0).folder == run.folder
    assert run.is_finished
    assert metrics(run) == metrics(straight)
    assert weights(run.last / "model.safetensors") == weights(straight.last / "model.safetensors")


@pytest.mark.usefixtures("toy")
def test_a_callback_that_fails_ends_the_run_and_costs_no_checkpoint(settings):
    class Faulty:
        def on_step(self, record):
            return 1 / (8 - record.step)

    with pytest.raises(RuntimeError) as raised:
        _train(settings, Faulty(), tag="faulty")
    folder = settings()["output"] + "/faulty"
    assert str(raised.value) == (
        f"callback Faulty.on_step failed after step 8: ZeroDivisionError: division by zero; resume={folder!r} goes on "
        f"from step 6"
    )
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    assert "return 1 / (8" in "".join(traceback.format_exception(raised.value))
    run = gv.train(resume=folder, workers=0)
    assert run.is_finished


@pytest.mark.parametrize(
    ("callbacks", "text"),
    [
        (Recorder(), r"expected callbacks as a list, got Recorder; use callbacks=\[…\]"),
        ([Recorder], r"expected an object as a callback, got the class Recorder; use Recorder\(\)"),
        (
            [print],
            "expected a callback with some of on_step, on_epoch, on_checkpoint, on_evaluate, on_end, got builtin",
        ),
        (
            [type("A", (), {"on_epoch_end": 0})()],
            "callback A has a method on_epoch_end, which is never called. Did you mean",
        ),
        ([type("A", (), {"on_step": 0})()], "expected A.on_step to be a method, got int"),
    ],
)
def test_what_is_not_a_callback_is_refused_before_anything_begins(callbacks, text):
    with pytest.raises(ValueError, match=text):
        gv.train(config="digits", callbacks=callbacks)


@pytest.fixture
def _interrupts():
    """Ctrl-C as Python handles it, even where the shell that started the tests ignores it."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.usefixtures("toy", "_interrupts")
def test_an_interrupt_is_raised_once_the_run_has_saved(settings, monkeypatch):
    step = Trainer._step

    def interrupted(self, *args):
        if self.state.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _train(settings, tag="stopped")
    assert gv.Run(settings()["output"] + "/stopped").last.name == "step-3"


UNGUARDED = """
import multiprocessing, sys
multiprocessing.set_start_method("spawn", force=True)
print("the script runs")
sys.path.insert(0, {tests!r})
import toy
toy.VARIANTS.update(toy.TOYS)
import globalvit as gv
short = dict(steps=1, warmup_steps=0, workers=1, batch_size=8, device="cpu")
run = gv.train(config="digits", output={output!r}, tag="run", **short)
print(run.is_finished)
process = multiprocessing.Process(target=print)
process.start()
process.join()
"""


@pytest.mark.slow
def test_workers_that_are_spawned_do_not_run_the_script_again(tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(UNGUARDED.format(tests=str(Path(__file__).parent), output=str(tmp_path)))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=False)
    # The workers of the run import nothing of the script; its own process does, and is not allowed to train.
    assert done.stdout.split("\n")[:2] == ["the script runs", "True"]
    assert 'put the call under if __name__ == "__main__":' in done.stderr

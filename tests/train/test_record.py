"""What a run writes: records that survive a crash, run folders, plots, nothing left open."""

import json
import logging

import pytest
from PIL import Image

from globalvit.train import nonfinite
from globalvit.train.plots import plot_confusion, plot_run
from globalvit.train.record import Recorder, cut_metrics, new_folder, read_metrics, write_metrics

RECORDS = [
    {"kind": "train", "step": 5, "epoch": 0.5, "loss": 2.0, "lr": 0.1},
    {"kind": "train", "step": 10, "epoch": 1.0, "loss": 1.0, "lr": 0.05},
    {"kind": "evaluate", "step": 10, "epoch": 1.0, "loss": 1.5, "top1": 40.0, "top5": 90.0, "ema_top1": 50.0},
    {"kind": "train", "step": 15, "epoch": 1.5, "loss": 0.5, "lr": 0.01},
]


@pytest.fixture
def folder(tmp_path):
    recorder = Recorder(tmp_path)
    for record in RECORDS:
        recorder.add(record)
    recorder.sync()
    recorder.close()
    return tmp_path


def test_records_are_read_as_they_were_written(folder):
    assert read_metrics(folder) == RECORDS


def test_a_line_that_a_crash_cut_off_is_left_out(folder):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    assert read_metrics(folder) == RECORDS
    write_metrics(folder, cut_metrics(read_metrics(folder), step=15, evaluated=10))
    assert (folder / "metrics.jsonl").read_text().splitlines() == [json.dumps(record) for record in RECORDS]


@pytest.mark.parametrize(("step", "evaluated", "kept"), [(15, 10, 4), (14, 10, 3), (10, 10, 3), (10, 0, 2), (0, 0, 0)])
def test_records_are_cut_to_the_checkpoint(folder, step, evaluated, kept):
    assert cut_metrics(read_metrics(folder), step, evaluated) == RECORDS[:kept]


def test_the_log_is_written_whatever_the_level_was(tmp_path):
    logger = logging.getLogger("globalvit")
    before = logger.level, list(logger.handlers)
    recorder = Recorder(tmp_path)
    logging.getLogger("globalvit.train").info("a step")
    recorder.close()
    assert "a step" in (tmp_path / "log.txt").read_text()
    assert (logger.level, list(logger.handlers)) == before


def test_folders_are_numbered_and_tags_are_never_taken_twice(tmp_path):
    assert new_folder(tmp_path / "runs", None, "digits").name == "digits-1"
    assert new_folder(tmp_path / "runs", None, "digits").name == "digits-2"
    assert new_folder(tmp_path / "runs", "mine", "digits").name == "mine"
    with pytest.raises(FileExistsError, match="mine exists; choose another --tag, or remove the folder, which has no"):
        new_folder(tmp_path / "runs", "mine", "digits")
    (tmp_path / "runs" / "mine" / "checkpoints" / "step-2").mkdir(parents=True)
    with pytest.raises(FileExistsError, match=r"mine exists; choose another --tag, or --resume .*mine"):
        new_folder(tmp_path / "runs", "mine", "digits")


@pytest.mark.usefixtures("rendered")
def test_curves_are_drawn(tmp_path):
    plot_run(tmp_path, RECORDS)
    for name in ("loss.png", "accuracy.png", "lr.png"):
        with Image.open(tmp_path / name) as image:
            assert len(image.convert("RGB").getcolors(10**6)) > 10, name


@pytest.mark.usefixtures("rendered")
@pytest.mark.parametrize("classes", [2, 20, 40])
def test_a_confusion_matrix_is_drawn_with_the_names_that_fit(tmp_path, classes):
    counts = [[3 if row == column else row % 2 for column in range(classes)] for row in range(classes)]
    plot_confusion(tmp_path / "matrix.png", counts, [f"class {number}" for number in range(classes)])
    with Image.open(tmp_path / "matrix.png") as image:
        assert image.size[0] > 300


def test_a_class_without_images_does_not_spoil_the_matrix(tmp_path):
    plot_confusion(tmp_path / "matrix.png", [[0, 0], [1, 4]], ["none", "some"])
    assert (tmp_path / "matrix.png").exists()


def test_fp16_may_leave_out_some_steps_while_it_looks_for_its_scale():
    inf = float("inf")
    assert nonfinite.is_tolerable(1.0, inf, 1, has_scaler=True)
    assert not nonfinite.is_tolerable(1.0, inf, nonfinite.MOST_OVERFLOWS, has_scaler=True)
    assert not nonfinite.is_tolerable(inf, inf, 1, has_scaler=True)
    assert not nonfinite.is_tolerable(1.0, inf, 1, has_scaler=False)
    assert nonfinite.is_tolerable(1.0, 2.0, 0, has_scaler=False)


def test_the_rank_with_the_bad_loss_is_named_with_its_files(caplog):
    shares = [(1.0, ["a.jpg"]), (float("nan"), [f"{number}.jpg" for number in range(20)])]
    text = str(nonfinite.explain(float("nan"), float("nan"), 7, shares))
    assert text.startswith("loss is nan in step 7 on rank 1; rank 1's batch held 0.jpg, 1.jpg")
    assert "15.jpg and 4 more" in text
    assert "19.jpg" in caplog.text


def test_a_bad_gradient_makes_every_rank_a_suspect():
    text = str(nonfinite.explain(1.0, float("inf"), 7, [(1.0, ["a.jpg"]), (1.0, ["b.jpg"])]))
    assert text.startswith("gradient norm is inf in step 7 on rank 0, 1; rank 0's batch held a.jpg")

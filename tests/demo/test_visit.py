"""A tab: choosing models and images, what is said of them; models on offer."""

import os
from html import escape

import pytest

from globalvit.build import open_checkpoint
from globalvit.demo.shelf import Shelf, of_checkpoint, of_model, of_runs
from globalvit.demo.visit import Visit, examples
from globalvit.tasks.classify import Classifier


@pytest.fixture
def models(given):
    return Shelf([of_checkpoint(given.classify), of_checkpoint(given.detect)], "cpu")


def test_the_answer_is_that_of_predict_and_is_asked_once(models, given, photo, monkeypatch):
    visit = Visit(key=str(given.classify))
    visit.show(photo, "photo.png")
    visit.ask(models)
    (expected,) = open_checkpoint(given.classify).predict(photo)
    assert visit.prediction["scores"] == pytest.approx(expected["scores"])
    monkeypatch.setattr(Classifier, "predict", None)
    visit.ask(models)


def test_names_of_classes_are_text_in_the_page(models, given, photo):
    visit = Visit(key=str(given.classify))
    visit.show(photo, "photo.png")
    shown = visit.answer(visit.ask(models))[2]
    assert "&lt;b&gt;cat&lt;/b&gt;" in shown
    assert "dog &amp; ${1+1}" in shown
    assert "<b>" not in shown


def test_a_threshold_leaves_objects_out_without_asking_again(models, given, photo):
    visit = Visit(key=str(given.detect))
    visit.show(photo, "photo.png")
    task = visit.ask(models)
    assert "Found: nothing" in visit.answer(task, 0.95)[2]
    assert "Found: nothing" not in visit.answer(task, 0.05)[2]
    assert visit.answer(task, 0.05)[2].count("<li") == 8


def test_another_model_or_image_forgets_the_place(given, photo):
    visit = Visit()
    for forget in (lambda: visit.show(photo, "photo.png"), lambda: visit.choose(str(given.classify))):
        visit.show(photo, "photo.png")
        visit.point(0.5, 1.5)
        assert visit.wish.pixel == (96, 127)
        forget()
        assert visit.wish.pixel is None


def test_one_model_is_held_and_unknown_ones_are_refused(models, given):
    first = models.open(str(given.classify))
    assert models.open(str(given.classify)) is first
    models.open(str(given.detect))
    assert models.open(str(given.classify)) is not first
    with pytest.raises(ValueError, match="no longer exists; choose another"):
        models.open("elsewhere")


def test_runs_are_offered_newest_first_if_they_have_weights(tmp_path, given):
    for age, name in enumerate(["new", "old", "empty"]):
        folder = tmp_path / name / "checkpoints" / "best"
        folder.mkdir(parents=True)
        if name != "empty":
            (folder / "model.safetensors").symlink_to(given.classify)
        config = tmp_path / name / "config.yaml"
        config.write_text("model: gcvit_xxtiny\ndata_dir: digits\n" if name == "new" else "{broken")
        os.utime(config, (1e9 - age, 1e9 - age))
    found = list(of_runs(tmp_path))
    end = f"…/{tmp_path.parts[-2]}/{tmp_path.name}"
    assert [(choice.title, choice.data) for choice in found] == [
        (f"{end}/new · gcvit_xxtiny", "digits"),
        (f"{end}/old", None),
    ]


def test_published_weights_say_their_license():
    assert of_model("gc_vit_tiny").title == "gcvit_tiny · nvidia_in1k (CC-BY-NC-SA-4.0)"


@pytest.mark.parametrize(("data", "size"), [("digits", (8, 8)), ("shapes", (128, 128))])
def test_examples_are_held_out_images(data, size):
    found = examples(data)
    assert {image.size for image, _ in found} == {size}
    assert len(found) == 8


def test_areas_have_a_legend(photo):
    import torch

    mask_HW = torch.zeros(photo.height, photo.width, dtype=torch.uint8)
    mask_HW[:64] = 1
    visit = Visit(prediction={"mask": mask_HW, "names": ("sky", "<sea>"), "areas": {"sky": 0.5, "<sea>": 0.5}})
    visit.image = photo
    drawn, text, shown = visit.answer(type("Segmenter", (), {"kind": "segment"}))
    assert (drawn.size, text) == ((384, 256), "The image colored by class: sky, <sea>")
    assert escape("<sea>") in shown
    assert shown.count("50.0 %") == shown.count('<i style="background:#') == 2


def test_no_image_needs_no_answer(models, given):
    visit = Visit(key=str(given.classify))
    visit.ask(models)
    visit.point(0.5, 0.5)
    assert visit.prediction is None
    assert visit.wish.pixel is None

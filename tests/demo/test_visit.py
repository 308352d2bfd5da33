"""A tab: choosing models and images, what is said of them; models on offer."""

import os

import pytest

from globalvit.build import open_checkpoint
from globalvit.demo.answers import Answer
from globalvit.demo.images import RefusedUpload
from globalvit.demo.shelf import Shelf, of_checkpoint, of_model, of_runs
from globalvit.demo.visit import Visit, described, examples, examples_html, uploaded


@pytest.fixture
def models(given):
    return Shelf([of_checkpoint(given.classify), of_checkpoint(given.detect)], "cpu")


def test_the_answer_is_that_of_predict_and_is_asked_once(models, given, photo, monkeypatch):
    visit = Visit(key=str(given.classify))
    visit.show(photo, "photo.png")
    visit.ask(models)
    (expected,) = open_checkpoint(given.classify).predict(photo)
    assert visit.answer.prediction["scores"] == pytest.approx(expected["scores"])
    monkeypatch.setattr(Answer, "of", None)
    visit.ask(models)


def test_names_of_classes_are_text_in_the_page(models, given, photo):
    visit = Visit()
    visit.show(photo, "<img src=x>.png")
    task = visit.choose(models, str(given.classify))
    page = visit.answer.html() + visit.image_html() + described(models, visit.key, task)
    assert "&lt;b&gt;cat&lt;/b&gt;" in page
    assert "dog &amp; ${1+1}" in page
    assert "<b>" not in page
    assert "<img src=x>" not in page


def test_a_threshold_leaves_objects_out_without_asking_again(models, given, photo):
    visit = Visit()
    visit.show(photo, "photo.png")
    visit.choose(models, str(given.detect))
    assert "Found: nothing" in visit.answer.html(0.95)
    assert "Found: nothing" not in visit.answer.html(0.05)
    assert visit.answer.html(0.05).count("<li") == 8


def test_where_there_is_nothing_to_show_the_reason_stands_there(models, given, photo, monkeypatch):
    visit = Visit()
    visit.show(photo, "photo.png")
    task = visit.choose(models, str(given.classify))
    assert "<svg" in visit.look_if_any(task)[1] or "<img" in visit.look_if_any(task)[1]

    def nothing(*_):
        raise ValueError("nothing was found in <the> image")

    monkeypatch.setattr("globalvit.demo.looks.look", nothing)
    controls, drawn = visit.look_if_any(task)
    assert controls.wish == visit.wish
    assert drawn == '<p class="waiting">nothing was found in &lt;the&gt; image</p>'


def test_another_model_or_image_forgets_the_place(models, given, photo):
    visit = Visit()
    for forget in (lambda: visit.show(photo, "photo.png"), lambda: visit.choose(models, str(given.classify))):
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
    with pytest.raises(ValueError, match="no longer there; choose another"):
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
def test_examples_are_buttons_with_images(data, size):
    assert {image.size for _, image in examples(data)} == {size}
    assert examples_html(examples(data)).count('<button type="button"') == 8


def test_a_file_that_was_not_sent_is_refused(tmp_path):
    with pytest.raises(RefusedUpload, match=r"big\.png has 2\.0 MiB, and this page takes 1 MiB at most"):
        uploaded(None, "big.png", 2 * 2**20, tmp_path, 2**20)
    with pytest.raises(RefusedUpload, match="did not arrive"):
        uploaded(None, "small.png", 5, tmp_path, 2**20)


def test_areas_have_a_legend(photo):
    import torch

    mask_HW = torch.zeros(photo.height, photo.width, dtype=torch.uint8)
    mask_HW[:64] = 1
    prediction = {"mask": mask_HW, "names": ("sky", "<sea>"), "areas": {"sky": 0.5, "<sea>": 0.5}}
    shown = Answer("segment", ("sky", "<sea>"), photo, prediction).html()
    assert 'alt="The image colored by class: sky, &lt;sea&gt;"' in shown
    assert shown.count("50.0 %") == shown.count('class="swatch"') == 2


def test_no_image_needs_no_answer(models, given):
    visit = Visit()
    assert visit.look(visit.choose(models, str(given.classify)))[1] == ""
    visit.point(0.5, 0.5)
    assert visit.answer is None
    assert "<img" not in visit.image_html()

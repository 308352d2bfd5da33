"""What a classifier answers, whatever its images come as and whatever comes with them."""

import numpy as np
import pytest
import torch
from PIL import Image

import globalvit as gv

SMALL = {"num_classes": 6, "image_size": 32, "classes": tuple("abcdef")}


@pytest.fixture
def model():
    made = gv.create_model("gcvit_xxtiny", **SMALL)
    # Fresh weights answer much alike for all images; a livelier head makes mistakes visible.
    torch.nn.init.normal_(made.head.linear.weight, std=1.0)
    return made


def make_image(seed, size=(40, 30)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def close(first, second):
    assert first["labels"] == second["labels"]
    assert first["names"] == second["names"]
    assert first["scores"] == pytest.approx(second["scores"], abs=1e-5)


def test_predict_takes_paths_images_and_arrays_alike(model, tmp_path):
    image = make_image(0)
    image.save(tmp_path / "one.png")
    (expected,) = model.predict(image)
    for form in (tmp_path / "one.png", str(tmp_path / "one.png"), np.asarray(image), model.preprocessing(image)):
        (answer,) = model.predict(form)
        close(answer, expected)
    assert len(expected["labels"]) == len(expected["scores"]) == 5
    assert expected["names"] == ["abcdef"[label] for label in expected["labels"]]
    assert expected["scores"] == sorted(expected["scores"], reverse=True)


def test_see_through_images_stand_on_white(model):
    clear = Image.new("RGBA", (40, 30), (9, 9, 9, 0))
    close(model.predict(clear)[0], model.predict(Image.new("RGB", (40, 30), "white"))[0])


def test_an_answer_does_not_depend_on_its_neighbors(model):
    tensors = [torch.randn(3, *size) for size in ((32, 32), (48, 33), (32, 32), (64, 40), (48, 33))]
    together = model.predict(tensors, batch_size=2)
    for tensor, answer in zip(tensors, together, strict=True):
        close(answer, model.predict([tensor])[0])


def test_predict_leaves_the_mode_as_it_was(model):
    model.train()
    first = model.predict(make_image(0))
    assert model.training
    assert model.eval().predict(make_image(0)) == first
    assert not model.training


def test_top_k_is_bounded_by_the_classes(model):
    assert len(model.predict(make_image(0), top_k=50)[0]["labels"]) == 6
    assert len(model.predict(make_image(0), top_k=1)[0]["labels"]) == 1
    with pytest.raises(ValueError, match="top_k=0 must be at least 1"):
        model.predict(make_image(0), top_k=0)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            torch.zeros(3, 32, 32, dtype=torch.uint8),
            r"float tensor \(channels, height, width\), got torch.uint8 of shape \(3, 32, 32\); ",
        ),
        (np.zeros((32, 32), np.uint8), r"got uint8 array of shape \(32, 32\)"),
        (np.zeros((32, 32, 3)), "got float64 array"),
        (7, r"expected a path, a PIL image or an RGB uint8 array \(height, width, 3\), got int"),
    ],
)
def test_other_images_are_refused(model, image, message):
    with pytest.raises(ValueError, match=message):
        model.predict(image)


def test_losses_take_labels_and_soft_targets(model):
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 5])
    model.eval()
    hard = model.losses({"images": images, "labels": labels})["loss"]
    one_hot = torch.nn.functional.one_hot(labels, 6).float()
    soft = model.losses({"images": images, "labels": labels, "targets": one_hot})["loss"]
    torch.testing.assert_close(hard, soft)


def test_a_few_steps_halve_the_loss_and_a_seed_repeats_them():
    def train():
        torch.manual_seed(3)
        model = gv.create_model("gcvit_xxtiny", **SMALL, drop_path=0.0)
        batch = {"images": torch.randn(12, 3, 32, 32), "labels": torch.arange(12) % 6}
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses = []
        for _ in range(8):
            loss = model.losses(batch)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    first = train()
    assert first[-1] < first[0] / 2
    assert train() == first


def test_class_names_must_fit():
    with pytest.raises(ValueError, match="expected 3 class names, one per class, got 2"):
        gv.create_model("gcvit_xxtiny", num_classes=3, classes=("a", "b"))


@pytest.mark.parametrize("label", [6, -100])
def test_labels_of_unknown_classes_are_refused(model, label):
    batch = {"images": torch.randn(2, 3, 32, 32), "labels": torch.tensor([0, label])}
    for attempt in (lambda: model.losses(batch), lambda: model.evaluate(batch, model.metric())):
        with pytest.raises(ValueError, match=f"expected labels from 0 to 5, got {label}; "):
            attempt()


def test_targets_of_another_number_of_classes_are_refused(model):
    batch = {"images": torch.randn(2, 3, 32, 32), "labels": torch.tensor([0, 1]), "targets": torch.rand(2, 5)}
    with pytest.raises(ValueError, match=r"expected targets \(B, 6\), one column per class, got \(2, 5\)"):
        model.losses(batch)


def test_probabilities_are_averaged_with_those_of_the_mirror_image(model):
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    with torch.inference_mode():
        mean_BK = (model.eval()(images).softmax(1) + model(images.flip(-1)).softmax(1)) / 2
    for answer, expected in zip(model.predict(images, top_k=6, flip=True), mean_BK, strict=True):
        assert answer["scores"] == pytest.approx(expected.sort(descending=True).values.tolist(), abs=1e-6)
    model.flip = True
    assert model.predict(images) == model.predict(images, flip=True)
    metric = model.metric()
    with torch.inference_mode():
        model.evaluate({"images": images, "labels": labels}, metric)
    assert metric.compute()["loss"] == pytest.approx(float(-mean_BK[range(4), labels].log().mean()), rel=1e-4)

"""What a run takes from its images: size, batch, and warnings of data from which little can be learned."""

import logging
import shutil

import pytest
from PIL import Image

from globalvit.cli.main import main
from globalvit.train.adapt import fit_batch, fit_size
from globalvit.train.advice import warn_of_chance, warn_of_rare_classes
from globalvit.train.config import load_config
from globalvit.train.loop import train
from globalvit.train.run import Run


class Images:
    """Gray images of the given sizes, each of the class of its label."""

    def __init__(self, sizes, labels=()):
        self.sizes, self.labels = sizes, labels
        self.classes = tuple("abcdefgh")

    def __len__(self):
        return len(self.labels or self.sizes)

    def read(self, index):
        return Image.new("RGB", self.sizes[index])

    def label(self, index):
        return self.labels[index]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(28, 28)] * 30, 32),
        ([(64, 48)] * 3, 64),
        ([(65, 40), (70, 70), (300, 300)], 96),
        ([(95, 10)], 96),
        ([(96, 20)] * 4, None),
        ([(20, 20), (500, 400), (600, 400)], None),
    ],
)
def test_small_images_train_at_the_next_multiple_of_32(sizes, expected, caplog):
    config = load_config(None, {"weights": None})
    with caplog.at_level(logging.INFO):
        caplog.clear()
        assert fit_size(config, Images(sizes)).img_size == expected
    lines = [f"so training uses {expected} px; --image-size overrides it"] if expected else []
    assert len(caplog.messages) == len(lines)
    assert all(line in message for line, message in zip(lines, caplog.messages, strict=True))


@pytest.mark.parametrize(
    ("source", "flags"),
    [
        ("scratch", {"img_size": 128}),
        ("digits", {}),
        ("scratch", {"progressive": (32, 64)}),
        ("scratch_segmentation", {}),
        ("scratch_detection", {}),
    ],
)
def test_a_size_that_is_given_is_kept(source, flags, caplog):
    config = load_config(source, flags)
    assert fit_size(config, Images([(28, 28)] * 4)) == config
    assert "px" not in caplog.text


def test_published_weights_keep_their_size_and_say_so(caplog):
    config = load_config()
    with caplog.at_level(logging.INFO):
        assert fit_size(config, Images([(28, 28)] * 4)) == config
    assert "about 28 px and are enlarged to the size of the weights; --image-size 32 is faster" in caplog.text


@pytest.mark.parametrize("source", ["finetune", "scratch"])
@pytest.mark.parametrize(
    ("images", "parts", "batch"),
    [(5, 1, 4), (100, 1, 8), (100, 4, 2), (300, 1, 14), (639, 1, 30), (640, 1, 32), (5000, 1, 32), (1_000_000, 8, 32)],
)
def test_small_sets_get_small_batches(source, images, parts, batch, caplog):
    config = load_config(source)
    with caplog.at_level(logging.INFO):
        fitted = fit_batch(config, images, parts, source)
    assert fitted.batch_size == batch
    # The learning rate of a step is that of the recipe's own batch.
    assert batch / fitted.global_batch == pytest.approx(32 / config.global_batch)
    assert images < 100 or images // (batch * parts) >= 12 or images >= 5000
    assert fitted.warmup_epochs <= 0.1 * fitted.total_epochs
    assert len(caplog.messages) == (batch < 32)
    if batch < 32:
        assert f"recipe {source}: for {images} training images, batch_size {batch} instead of 32 gives" in caplog.text
        assert "the warm-up takes 5 of 50 epochs; --batch-size overrides it" in caplog.text
    assert fit_batch(fitted, images, parts, source) == fitted


@pytest.mark.parametrize("flag", [{"batch_size": 32}, {"global_batch": 64}, {"auto_batch": True}])
def test_a_batch_that_is_given_is_kept(flag):
    config = load_config("scratch", flag)
    assert fit_batch(config, 100, 1, "scratch") == config
    assert load_config("scratch", {"epochs": 10}).warmup_epochs == 1
    assert load_config("scratch", {"epochs": 10, "warmup_epochs": 4}).warmup_epochs == 4


@pytest.mark.usefixtures("toy")
def test_a_run_settles_size_and_batch_and_resumes_with_them(settings, caplog, capsys):
    line = {key: value for key, value in settings(epochs=1).items() if key not in ("img_size", "batch_size", "lr")}
    words = ["train", "--weights=none", *(f"--{key}={value}" for key, value in line.items())]
    assert main([*words, "--model=gcvit_xxtiny"]) == 0
    folder = Run(f"{line['output']}/run")
    config = folder.config
    assert (config.img_size, config.batch_size, config.global_batch, config.lr) == (32, 8, 8, 1e-3)
    assert main([*words, "--config=scratch", f"--resume={folder}"]) == 0
    assert main([*words, f"--resume={folder}", "--batch-size=4", "--grad-accum-steps=2"]) == 0


def test_classes_with_a_single_image_are_named(caplog):
    warn_of_rare_classes(Images([], [0, 0, 1, 1]))
    assert not caplog.messages
    warn_of_rare_classes(Images([], [0, 0, 1, 2, 2, 3, 4, 5, 6, 7]))
    text = (
        "expected two or more training images of every class, got one for 6 of 8 classes (b, d, e, f, g, … and 1 more)"
    )
    assert caplog.messages == [f"{text}; add images, or leave these classes out"]


@pytest.mark.parametrize(
    ("losses", "top1", "is_warned"),
    [([1.1, 0.3], 50, True), ([1.1, 1.0], 50, False), ([1.1, 0.3], 90, False), ([], 50, False)],
)
def test_a_score_at_chance_is_explained(losses, top1, is_warned, caplog):
    metrics = [{"kind": "train", "loss": loss} for loss in losses]
    warn_of_chance(metrics, top1, Images([], [0, 1] * 10), "photos")
    warn_of_chance(metrics, top1, Images([], [0, 1]), "photos")
    text = "the training loss fell from 1.1 to 0.3, but validation top1 is 50 %, no better than chance (50 %); check"
    assert [message.startswith(text) for message in caplog.messages] == [True] * is_warned


@pytest.mark.usefixtures("toy")
def test_a_run_at_chance_ends_with_one_warning(config, images, tmp_path, caplog):
    root = shutil.copytree(images, tmp_path / "swapped")
    (root / "val" / "blue").rename(root / "val" / "swap")
    (root / "val" / "red").rename(root / "val" / "blue")
    (root / "val" / "green").rename(root / "val" / "red")
    (root / "val" / "swap").rename(root / "val" / "green")
    train(config(data_dir=str(root), epochs=4, lr=4e-3, smoothing=0.0))
    assert caplog.text.count("no better than chance (45.5 %)") == 1

"""Images that a detector sees in tiles: a stub that finds rectangles by their color, unless they are too small."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.ops import masks_to_boxes

from globalvit.cli.main import main
from globalvit.data.common.transforms import FitTransform
from globalvit.detectors.found import Found
from globalvit.detectors.objects import Detections
from globalvit.jobs import predict as job
from globalvit.models.variants import ModelSpec
from globalvit.tasks.detect import Detector
from globalvit.tasks.views import View, merge, tiles

SIZE = (480, 640)
# Pixels of the smallest object that the stub finds.
SMALLEST = 60


class Stub(Detector):
    """A detector of rectangles: red is 255, green is the number of the object, odd numbers are of class 1."""

    needs_masks = True

    def __init__(self):
        nn.Module.__init__(self)
        self.spec = ModelSpec(model="gcvit_xxtiny_mask_rcnn", num_classes=2)
        self.classes, self.max_detections, self.flip, self.score_thresholds = ("even", "odd"), 100, False, None
        self.preprocessing = FitTransform(
            short_side=160, long_side=400, interpolation="nearest", mean=(0.0,) * 3, std=(1.0,) * 3
        )
        self.weight = nn.Parameter(torch.zeros(1))
        self.passes = []

    def forward(self, images_BCHW):
        self.passes.append(len(images_BCHW))
        return {"images": list(images_BCHW)}

    def find(self, maps, *_, **__):
        found = [self._rectangles(image) for image in maps["images"]]
        count = max(1, *(len(one) for one in found))
        rows = torch.zeros(len(found), count, 6)
        for row, one in zip(rows, found, strict=True):
            row[: len(one)] = torch.tensor(sorted(one, key=lambda each: -each[4])).view(-1, 6)
        masks = torch.ones(len(found), count, 4, 4)
        return Found(rows[..., :4], rows[..., 4], rows[..., 5].long()), masks

    def _rectangles(self, image):
        numbers_HW = ((image[1] * 255).round() * (image[0] > 0.5)).int()
        found = []
        for number in numbers_HW.unique().tolist()[1:]:
            rows, columns = (numbers_HW == number).nonzero(as_tuple=True)
            if len(rows) >= SMALLEST:
                box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                found.append([*map(float, box), 0.9 - number / 1000, number % 2])
        return found

    def _read(self, features):
        raise NotImplementedError

    def _losses(self, maps, objects, sizes):
        raise NotImplementedError


@pytest.fixture
def scene():
    """An image of 48 objects, 10 to 30 pixels wide, and their boxes; none overlap."""
    random, pixels, boxes = np.random.default_rng(3), np.zeros((*SIZE, 3), np.uint8), []
    for number in range(1, 49):
        (width, height), row, column = random.integers(10, 31, 2), *divmod(number - 1, 8)
        left, top = column * 80 + random.integers(0, 80 - width), row * 80 + random.integers(0, 80 - height)
        pixels[top : top + height, left : left + width] = (255, number, 0)
        boxes.append([left, top, left + width, top + height])
    return Image.fromarray(pixels), np.array(boxes, np.float32)


@pytest.mark.parametrize("flip", [False, True])
def test_tiles_find_small_objects_once_each(scene, flip):
    (image, boxes), stub = scene, Stub()
    (whole,) = stub.predict(image)
    assert len(whole["labels"]) < 24
    (tiled,) = stub.predict(image, tile=160, overlap=0.25, batch_size=8, flip=flip)
    assert np.array_equal(tiled["boxes"].numpy(), boxes)
    assert tiled["names"] == ["odd", "even"] * 24
    assert tiled["masks"].shape == (48, *SIZE)
    assert np.array_equal(masks_to_boxes(tiled["masks"]).numpy() + np.array([0, 0, 1, 1]), boxes)
    assert max(stub.passes) == 8
    (best,) = stub.predict(image, tile=160, overlap=0.25, max_detections=7, flip=flip)
    assert np.array_equal(best["boxes"].numpy(), boxes[:7])


def test_tiles_of_several_images_and_of_tensors(scene):
    (image, boxes), stub = scene, Stub()
    small = image.crop((0, 0, 100, 90))
    first, second, third = stub.predict([image, small, image], tile=160, overlap=0.25)
    assert np.array_equal(first["boxes"].numpy(), boxes)
    assert torch.equal(first["masks"], third["masks"])
    assert torch.equal(second["boxes"], stub.predict(small)[0]["boxes"])
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    assert np.array_equal(stub.predict(tensor, tile=160, overlap=0.25)[0]["boxes"].numpy(), boxes)


def test_tiles_cover_the_image_and_stay_inside():
    areas = tiles((100, 250), 100, 0.2)
    assert areas == [(0, 0, 100, 100), (80, 0, 180, 100), (150, 0, 250, 100)]
    assert tiles((90, 70), 100, 0.2) == tiles((90, 70), None, 0.2) == [(0, 0, 70, 90)]
    assert tiles((64, 65), 64, 0.0) == [(0, 0, 64, 64), (1, 0, 65, 64)]


LEFT, RIGHT = (View(0, (100, 180), (left, 0, left + 100, 100), views=2) for left in (0, 80))


def detections(*rows):
    boxes, scores, labels = zip(*rows, strict=True)
    return Detections(boxes=torch.tensor(boxes).float(), scores=torch.tensor(scores), labels=torch.tensor(labels))


@pytest.mark.parametrize(
    ("left", "right", "kept"),
    [
        pytest.param(([85, 10, 100, 40], 0.9, 0), ([85, 10, 125, 40], 0.3, 0), [0.3], id="the whole one is kept"),
        pytest.param(([85, 10, 100, 40], 0.9, 1), ([85, 10, 125, 40], 0.3, 0), [0.9, 0.3], id="another class"),
        pytest.param(([60, 10, 100, 40], 0.9, 0), ([80, 10, 125, 40], 0.3, 0), [0.9, 0.3], id="both are cut"),
        pytest.param(([85, 10, 100, 40], 0.9, 0), ([85, 60, 125, 90], 0.3, 0), [0.9, 0.3], id="another place"),
        pytest.param(([85, 10, 97, 40], 0.9, 0), ([85, 10, 97, 41], 0.3, 0), [0.9], id="the same object"),
        pytest.param(([0, 10, 30, 40], 0.9, 0), ([150, 10, 180, 40], 0.3, 0), [0.9, 0.3], id="the image's borders"),
    ],
)
def test_cut_boxes_give_way_to_whole_ones(left, right, kept):
    found = merge([(LEFT, detections(left)), (RIGHT, detections(right))], 100)
    assert found.scores.tolist() == pytest.approx(kept)


def test_the_command_predicts_in_tiles(scene, tmp_path, monkeypatch):
    (image, boxes), stub = scene, Stub()
    image.save(tmp_path / "many.png")
    monkeypatch.setattr(job, "open_model", lambda _: stub)
    words = ["--model", "gcvit_xxtiny_mask_rcnn", "--precision", "fp32", "--device", "cpu"]
    words += ["--tile", "160", "--overlap", "0.25", "--batch-size", "6", "--json", str(tmp_path / "found.json")]
    assert main(["predict", str(tmp_path / "many.png"), *words]) == 0
    (answer,) = json.loads((tmp_path / "found.json").read_text())["predictions"]
    assert [one["box"] for one in answer["objects"]] == boxes.tolist()
    assert max(stub.passes) == 6

"""`predict` on models in training mode, from several threads, and with parts that stay in evaluation mode."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import nn

import globalvit as gv

IMAGES = [torch.randn(3, 32, 32 + 32 * (seed % 2), generator=torch.Generator().manual_seed(seed)) for seed in range(8)]


@pytest.fixture
def model():
    made = gv.create_model("gcvit_xxtiny", num_classes=6, image_size=32, drop_path=0.9)
    nn.init.normal_(made.head.linear.weight, std=1.0)
    return made


def test_threads_get_the_answers_of_evaluation_and_no_mode_changes(model):
    expected = [model.eval().predict(image) for image in IMAGES]
    model.train()
    model.backbone.stages[1].eval()
    modes = [module.training for module in model.modules()]
    model.head.register_forward_hook(lambda *_: seen.append([module.training for module in model.modules()]))
    seen = []
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert list(pool.map(model.predict, IMAGES)) == expected
    assert all(one == modes for one in seen)
    assert len(seen) == 24


@pytest.mark.parametrize("name", ["gcvit_xxtiny_segformer", "gcvit_xxtiny_retinanet"])
def test_other_tasks_leave_the_modes_alone(name):
    model = gv.create_model(name, num_classes=2, image_size=32)
    model.eval().predict(IMAGES[0])
    model.train()
    model.backbone.eval()
    modes = [module.training for module in model.modules()]
    model.predict(IMAGES[0])
    assert [module.training for module in model.modules()] == modes


def test_a_forward_that_is_bound_to_its_module_is_evaluated_too(model):
    expected = model.eval().predict(IMAGES[0])
    model.train()
    forward = model.backbone.forward
    barrier = Barrier(2)

    def waiting(images):
        barrier.wait()
        return forward(images)

    model.backbone.forward = waiting
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(model.predict, IMAGES[:1] * 2)) == [expected] * 2
    assert all(module.training for module in model.modules())


def test_a_compiled_call_is_not_taken_for_another_mode(model):
    expected = model.eval().predict(IMAGES[0])
    model.train()
    model.backbone.compile(backend="eager")
    assert model.predict(IMAGES[0]) == expected
    assert model.backbone.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, r"num_classes=0 must be at least 1; create_backbone\(\) gives features without a head"),
        ({"num_classes": -3}, "num_classes=-3 must be at least 1"),
        ({"num_classes": 2.5}, r"num_classes=2\.5 must be a whole number of at least 1"),
        ({"num_classes": True}, "num_classes=True must be a whole number"),
        ({"num_classes": "3"}, "num_classes='3' must be a whole number"),
        ({"in_channels": 0}, "in_channels=0 must be at least 1"),
        ({"in_channels": 1.5}, r"in_channels=1\.5 must be a whole number"),
        ({"drop_path": "x"}, r"drop_path='x' must be a number in \[0, 1\)"),
        ({"classes": []}, r"expected the names of the classes as a list of texts, got classes=\[\]"),
        ({"classes": "cat"}, "expected the names of the classes as a list of texts, got classes='cat'"),
        ({"classes": [1, 2]}, r"expected the names of the classes as a list of texts, got classes=\[1, 2\]"),
    ],
)
@pytest.mark.parametrize("name", ["gcvit_xxtiny", "gpvit_l1_retinanet", "gcvit_xxtiny_segformer"])
def test_sizes_that_no_model_has_are_one_sentence(name, options, message):
    with pytest.raises(ValueError, match=message):
        gv.create_model(name, **options)


def test_numbers_of_numpy_count():
    import numpy as np

    spec = gv.create_model("gcvit_xxtiny", num_classes=np.int64(2), in_channels=np.uint8(1), image_size=32).spec
    assert (type(spec.num_classes), type(spec.in_channels)) == (int, int)

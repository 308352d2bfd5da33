"""Device, precision and processes: what is chosen, what is refused, what one process alone does."""

import pytest
import torch

from globalvit.build import create_model
from globalvit.models.ops import chosen_kernels
from globalvit.tasks.segment_loss import SegmentLoss
from globalvit.train.engine import full_state, has_fixed_sizes, load_full_state, start_engine
from globalvit.train.fields import TrainConfig
from globalvit.train.optim import create_optimizer

CPU = {"device": "cpu", "precision": "fp32"}


@pytest.fixture
def task(toy):
    return create_model("gcvit_xxtiny", num_classes=3, image_size=32)


@pytest.fixture
def batch():
    return {"images": torch.randn(4, 3, 32, 32), "labels": torch.tensor([0, 1, 2, 0])}


def test_kernels_are_chosen_for_the_length_of_a_run():
    for wish, chosen in (("auto", "c"), ("torch", "torch"), ("c", "c")):
        with start_engine(TrainConfig(kernels=wish, **CPU)) as engine:
            assert engine.kernels == chosen_kernels() == chosen
        assert chosen_kernels() == "auto"


def test_kernels_that_cannot_be_used_are_refused(monkeypatch):
    monkeypatch.setattr("globalvit.models.ops.unavailable", lambda _: "there is no C compiler")
    words = "kernels='c' cannot be used here: there is no C compiler"
    with pytest.raises(ValueError, match=words), start_engine(TrainConfig(kernels="c", **CPU)):
        pass
    with start_engine(TrainConfig(**CPU)) as engine:
        assert engine.kernels == "torch"


@pytest.mark.parametrize(
    ("model", "is_fixed"), [("gcvit_tiny", True), ("gcvit_tiny_segformer", False), ("gcvit_tiny_mask_rcnn", False)]
)
def test_the_fastest_convolutions_are_searched_for_images_of_one_size_only(model, is_fixed):
    assert has_fixed_sizes(TrainConfig(model=model)) is is_fixed


def test_a_launcher_that_is_not_heard_is_noticed(monkeypatch):
    monkeypatch.setattr("accelerate.Accelerator.num_processes", 1)
    monkeypatch.setattr("globalvit.train.engine._world_size", lambda: 2)
    with pytest.raises(AssertionError, match="processes are not all here"), start_engine(TrainConfig(**CPU)):
        pass


def test_engines_of_different_precision_follow_each_other(task, batch):
    seen = []
    task.head.linear.register_forward_hook(lambda _module, _input, output: seen.append(output.dtype))
    for precision in ("fp32", "bf16", "fp32"):
        with start_engine(TrainConfig(device="cpu", precision=precision)) as engine:
            engine.place(task)
            engine.prepare(task, create_optimizer(task, TrainConfig()))
            engine.backward(batch, 1.0, is_last=True)
    assert seen == [torch.float32, torch.bfloat16, torch.float32]


def test_clipping_gives_the_norm_before_and_limits_it_after(task, batch):
    with start_engine(TrainConfig(**CPU)) as engine:
        engine.place(task)
        engine.prepare(task, create_optimizer(task, TrainConfig()))
        engine.backward(batch, 1.0, is_last=True)
        before = float(engine.clip_gradients(None))
        assert float(engine.clip_gradients(before / 4)) == pytest.approx(before)
        assert float(engine.clip_gradients(None)) == pytest.approx(before / 4, rel=1e-4)


def test_passes_of_a_step_add_up(task, batch):
    with start_engine(TrainConfig(**CPU)) as engine:
        engine.place(task)
        engine.prepare(task.eval(), create_optimizer(task, TrainConfig()))
        engine.backward(batch, 1.0, is_last=True)
        whole = [parameter.grad.clone() for parameter in engine.parameters]
        engine.forget_gradients()
        for half in (slice(0, 2), slice(2, 4)):
            part = {key: value[half] for key, value in batch.items()}
            engine.backward(part, 0.5, is_last=half.start == 2)
        for parameter, gradient in zip(engine.parameters, whole, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_counting_a_pass_leaves_statistics_and_gradients_as_they_were(toy):
    segmenter = create_model("gcvit_xxtiny_upernet", num_classes=3, image_size=32)
    segmenter.loss_options = SegmentLoss(ohem=True)
    batch = {"images": torch.randn(2, 3, 32, 32), "labels": torch.zeros(2, 32, 32, dtype=torch.uint8)}
    with start_engine(TrainConfig(**CPU)) as engine:
        engine.place(segmenter)
        engine.prepare(segmenter.train(), create_optimizer(segmenter, TrainConfig()))
        before = {name: value.clone() for name, value in segmenter.named_buffers()}
        counts = engine.count([batch, batch])
        # Pixels under the probability, the hardest pixels, and those of the auxiliary head, of both passes.
        assert [one.shape[0] for one in counts] == [2, 2, 2]
        assert counts[2].tolist() == [2 * 32 * 32] * 2
        assert all(torch.equal(value, before[name]) for name, value in segmenter.named_buffers())
        assert all(parameter.grad is None for parameter in engine.parameters)


def test_one_process_is_all_there_are(task):
    with start_engine(TrainConfig(**CPU)) as engine:
        assert engine.is_main
        assert engine.gather("me") == ["me"]
        assert engine.from_main(3) == 3
        assert engine.total(torch.tensor(2.0), 3) == [2.0, 3.0]
        assert engine.loss_scale is None
        assert engine.scaler_state() == {}


def test_a_full_state_goes_back_where_it_came_from(task):
    state = {name: value + 1 for name, value in full_state(task).items()}
    load_full_state(task, state)
    assert all(torch.equal(value, state[name]) for name, value in task.state_dict().items())


def test_a_state_of_another_model_is_refused_by_its_names(task):
    state = full_state(task)
    state["head.other.weight"] = state.pop("head.linear.weight")
    words = "2 names differ, among them head.linear.weight, head.other.weight; resume with the version"
    with pytest.raises(ValueError, match=words):
        load_full_state(task, state)

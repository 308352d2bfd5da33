"""Taking turns, and what happens when one of the networks fails."""

from dataclasses import replace

import pytest
import torch

from globalvit.benchmark import measure as measuring
from globalvit.benchmark.measure import Budget, Result, measure
from globalvit.benchmark.networks import create, expand, own_size, peers_of
from globalvit.benchmark.report import best_rows, images_per_second, paired_ratio, percentile, rows, speed_table
from globalvit.benchmark.steps import Inference, Training, images, make_step
from globalvit.build import create_model


class Small(torch.nn.Sequential):
    """A network that compiles in seconds."""

    def __init__(self):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 7), torch.nn.GELU(), torch.nn.Linear(7, 5))


@pytest.mark.parametrize(
    ("budget", "rounds", "elapsed", "is_spent"),
    [
        (Budget(seconds=10.0), 2, 60.0, False),  # three at least
        (Budget(seconds=10.0), 3, 60.0, True),
        (Budget(seconds=10.0), 4, 7.0, False),
        (Budget(seconds=10.0), 4, 8.1, True),  # a fifth would end after 10.1
        (Budget(seconds=10.0), 1000, 1.0, True),
        (Budget(repeats=1), 0, 0.0, False),
        (Budget(repeats=1), 1, 0.0, True),
        (Budget(seconds=1.0, repeats=7), 6, 60.0, False),
    ],
)
def test_repetitions_end_with_the_budget(budget, rounds, elapsed, is_spent):
    assert budget.is_spent(rounds, elapsed) == is_spent


@pytest.mark.parametrize("mode", ["inference", "train"])
def test_networks_take_turns_and_are_compared(toy, make_cell, mode):
    cell = make_cell("test_resnet", mode=mode)
    counted = []
    results = measure([cell], "cpu", budget=Budget(repeats=2), advance=lambda: counted.append(1))
    assert [result.error for result in results] == [None, None]
    assert [len(result.seconds) for result in results] == [2, 2]
    assert len(counted) == 2
    ours, peer = rows(results, "cpu")
    assert ours["images_per_second"] == pytest.approx(2e3 / ours["ms"])
    assert ours["speed_ratios"].keys() == ours["memory_ratios"].keys() == {"timm:test_resnet"}
    assert peer["speed_ratios"] == {}
    assert ours["compile_s"] is None
    # AdamW remembers two numbers for each parameter, and a step for each tensor.
    weights = 4 * ours["params"] / 2**20
    assert weights * (3 if mode == "train" else 1) <= ours["state_mib"] <= 1.1 * weights * (3 if mode == "train" else 1)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried…"), "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (RuntimeError("\nno kernel for Half\nat line 3"), "RuntimeError: no kernel for Half"),
        (ValueError(), "ValueError"),
    ],
)
def test_a_network_that_fails_says_why_and_the_others_go_on(make_cell, monkeypatch, error, reason):
    def fail(entry, *_):
        if entry.source == "timm":
            raise error
        return Small()

    monkeypatch.setattr(measuring, "create", fail)
    ours, peer = measure([make_cell("test_resnet")], "cpu", budget=Budget(repeats=1))
    assert (ours.error, peer.error) == (None, reason)
    plain = rows([ours, peer], "cpu")
    assert plain[0]["speed_ratios"] == {}
    _, texts = speed_table(plain, "inference")
    assert [text["why not"] for text in texts] == ["", reason]
    assert "speed ×" not in texts[0]
    assert texts[1]["images/s"] == "–"


def test_one_that_fails_later_leaves_no_times(toy, make_cell, monkeypatch):
    calls = []
    monkeypatch.setattr(Inference, "__call__", lambda _: calls.append(1) or 1 / (len(calls) < 4))
    (result,) = measure([make_cell()], "cpu", budget=Budget(repeats=5))
    assert (result.seconds, result.error) == ([], "ZeroDivisionError: division by zero")


@pytest.mark.parametrize("head", ["segformer", "retinanet"])
@pytest.mark.parametrize("mode", ["inference", "train"])
def test_segmenters_and_detectors_are_measured_by_their_raw_forward_and_their_losses(toy, make_cell, head, mode):
    cell = make_cell(mode=mode, image_size=(64, 64))
    step = make_step(create_model(f"{toy}_{head}", num_classes=3), cell, cell.entries[0], "cpu")
    step()
    assert type(step) is (Inference if mode == "inference" else Training)
    assert "forward" not in vars(step.module.backbone)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_training_step_learns_in_every_precision(toy, make_cell, precision):
    cell = make_cell(mode="train", precision=precision)
    step = Training(create_model(toy, num_classes=10, image_size=32, drop_path=0.0), cell, cell.entries[0], "cpu")
    before = step.losses().detach()
    for _ in range(4):
        step()
    assert step.losses() < before
    assert {parameter.dtype for parameter in step.module.parameters()} == {torch.float32}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_inference_in_half_precision_has_weights_and_images_in_it(toy, make_cell, precision):
    cell = make_cell(precision=precision)
    step = Inference(create_model(toy, image_size=32), cell, cell.entries[0], "cpu")
    step()
    dtypes = {parameter.dtype for parameter in step.module.parameters()} | {step.images_BCHW.dtype}
    assert dtypes == {{"bf16": torch.bfloat16, "fp16": torch.float16}[precision]}


def test_every_network_of_a_cell_gets_the_same_images_and_ours_the_same_weights(toy, make_cell):
    cell = make_cell()
    torch.testing.assert_close(images(cell), images(cell), rtol=0, atol=0)
    first, second = (create(cell.entries[0], cell).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_peers_drop_as_many_paths_as_ours_in_training_and_take_the_image_size(make_cell):
    cell = make_cell("test_vit", mode="train", image_size=(64, 64))
    peer = create(cell.entries[1], cell)
    assert peer.patch_embed.img_size == (64, 64)
    assert peer.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.1, 1.4), (0.5, 3.0), (0.9, 4.6), (1.0, 5.0)])
def test_percentiles_are_interpolated(share, expected):
    assert percentile([5.0, 1.0, 3.0, 2.0, 4.0], share) == pytest.approx(expected)
    assert percentile([7.0], share) == 7.0


def test_a_ratio_is_the_median_over_neighbors_so_that_drift_cancels():
    # The clock halves after the second repetition; theirs takes 1.5 times as long throughout, but once.
    ours, theirs = [1.0, 1.0, 2.0, 2.0, 2.0], [1.5, 1.5, 3.0, 3.0, 9.0]
    assert paired_ratio(theirs, ours) == 1.5
    assert paired_ratio([], []) is None
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        paired_ratio([1.0, 2.0], [1.0])


def test_speed_and_cost_of_a_pixel_come_from_the_median_time(make_cell):
    assert images_per_second(8, [0.5, 0.25, 4.0]) == 16
    cell = make_cell(batch_size=8, image_size=(100, 50))
    (row,) = rows([Result(cell=cell, entry=cell.entries[0], seconds=[0.5, 0.25, 4.0])], "cpu")
    assert row["ns_per_pixel"] == pytest.approx(0.5e9 / 40_000)


def test_the_fastest_way_stands_beside_the_peers_fastest(make_cell):
    from globalvit.benchmark.cells import Entry

    ways = [
        ("globalvit", "a", "eager"),
        ("globalvit", "a", "deployed"),
        ("timm", "a", "eager"),
        ("timm", "a", "frozen"),
    ]
    entries = tuple(Entry(source=source, model=model, way=way) for source, model, way in ways)
    cell = make_cell(entries=entries)
    times = [[4.0, 4.0], [2.0, 2.0], [9.0, 9.0], [3.0, 5.0]]
    results = [Result(cell=cell, entry=entry, seconds=each) for entry, each in zip(entries, times, strict=True)]
    (row,) = best_rows(results)
    assert (row["ours"], row["peer"], row["×"]) == ("a deployed", "timm:a frozen", "2.00")
    assert (row["images/s"], row["its images/s"]) == ("1.00", "0.50")


def test_patterns_and_aliases_name_models():
    assert expand(["gcvit_x*", "gc_vit_xtiny", "gpvit_l1_upernet"]) == [
        "gcvit_xxtiny",
        "gcvit_xtiny",
        "gpvit_l1_upernet",
    ]
    assert own_size("gcvit_large_384") == (384, 384)


def test_auto_is_timms_network_of_the_same_name():
    assert peers_of("gcvit_tiny", ["auto", "timm:test_vit"]) == [("timm", "gcvit_tiny"), ("timm", "test_vit")]
    assert peers_of("gpvit_l1", ["auto"]) == []
    assert peers_of("gpvit_l1_upernet", []) == []


def test_a_deployed_network_is_folded_in_the_type_that_it_runs_in(toy, make_cell):
    cell = make_cell(precision="bf16")
    cell = replace(cell, entries=tuple(replace(cell.entries[0], way=way) for way in ("eager", "deployed")))
    results = measure([cell], "cpu", budget=Budget(repeats=1))
    assert [result.error for result in results] == [None, None]
    plain, deployed = results
    assert plain.params == deployed.params
    assert plain.state_bytes == deployed.state_bytes


@pytest.mark.slow
def test_ways_of_one_cell_are_compiled_each_for_itself_and_answer_alike(make_cell, monkeypatch):
    answers = []
    call = Inference.__call__

    def keep(self):
        call(self)
        with torch.inference_mode():
            answers.append(self.forward(self.images_BCHW))

    monkeypatch.setattr(Inference, "__call__", keep)
    monkeypatch.setattr(measuring, "create", lambda *_: torch.manual_seed(0) and Small())
    cell = make_cell()
    cell = replace(cell, entries=tuple(replace(cell.entries[0], way=way) for way in ("eager", "compiled", "frozen")))
    results = measure([cell], "cpu", budget=Budget(repeats=1))
    assert [result.error for result in results] == [None] * 3
    assert [result.compile_s is not None and result.compile_s > 0 for result in results] == [False, True, True]
    for answer in answers:
        torch.testing.assert_close(answer, answers[0], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["inference", "train"])
def test_ours_compiles(toy, make_cell, mode):
    (result,) = measure([make_cell(way="compiled", mode=mode)], "cpu", budget=Budget(repeats=1))
    assert (result.error, len(result.seconds)) == (None, 1)

"""The plan: which networks run in which ways, cell by cell."""

import pytest

from globalvit.benchmark.cells import Entry, plan, ways_of


def test_cells_are_all_combinations_and_peers_run_in_the_ways_that_they_have():
    cells = plan(
        ["a", "b"],
        {"a": [("timm", "c")], "b": []},
        modes=("inference", "train"),
        precisions=("fp32", "bf16"),
        batch_sizes=(1, 8),
        sizes={"a": [(224, 224)], "b": [(224, 224), (448, 448)]},
        ways=("eager", "deployed", "deployed+compiled"),
    )
    assert len(cells) == 2 * 2 * 2 * (1 + 2)
    assert len(set(cells)) == len(cells)
    first, last = cells[0], cells[-1]
    assert (first.model, first.mode, first.precision, first.batch_size) == ("a", "inference", "fp32", 1)
    assert [(entry.name, entry.way) for entry in first.entries] == [
        *[("a", "eager"), ("a", "deployed"), ("a", "deployed+compiled")],
        *[("timm:c", "eager"), ("timm:c", "compiled")],
    ]
    assert (last.mode, last.image_size, [entry.way for entry in last.entries]) == ("train", (448, 448), ["eager"])


@pytest.mark.parametrize(
    ("way", "compiler", "is_deployed"),
    [
        ("eager", "eager", False),
        ("frozen", "frozen", False),
        ("deployed", "eager", True),
        ("deployed+graphs", "graphs", True),
    ],
)
def test_a_way_is_a_compiler_and_whether_the_model_is_folded(way, compiler, is_deployed):
    entry = Entry(source="globalvit", model="a", way=way)
    assert (entry.compiler, entry.is_deployed) == (compiler, is_deployed)


def test_a_mode_without_a_way_has_no_cells():
    assert ways_of("train", ["frozen", "deployed"]) == []
    arguments = {"modes": ("train",), "precisions": ("fp32",), "batch_sizes": (1,), "sizes": {"a": [(32, 32)]}}
    assert plan(["a"], {"a": []}, **arguments, ways=("frozen",)) == []

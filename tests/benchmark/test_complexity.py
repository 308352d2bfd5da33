"""What is counted, against the papers' formulas and the table of models."""

from math import prod

import pytest

from globalvit.benchmark.complexity import complexity, count_macs
from globalvit.models.variants import GCVIT, PUBLISHED, VARIANTS

# Quick ones; every other variant is counted in the slow tests.
COUNTED = ("gcvit_xxtiny", "gcvit_tiny", "gpvit_l1")


def stages(name, size):
    """(tokens, channels, window², blocks, convolutions that make the query, poolings of it) of each stage."""
    config = GCVIT[name]
    for stage in range(4):
        tokens = prod(side // (4 << stage) for side in size)
        query = config.query_pools[stage], (3, 2, 1, 1)[stage]
        yield tokens, config.channels[stage], config.window[stage] ** 2, config.depths[stage], *query


# Windows divide the grids of 448×224 pixels.
def test_attention_costs_what_the_papers_say():
    size = (448, 224)
    own, swin, full = (complexity("gcvit_tiny", size, kind).attention_macs for kind in ("own", "swin", "full"))
    local = everywhere = saved = queries = 0
    for tokens, dim, square, depth, pools, blocks in stages("gcvit_tiny", size):
        local += depth * (4 * tokens * dim**2 + 2 * square * tokens * dim)
        everywhere += depth * (4 * tokens * dim**2 + 2 * tokens**2 * dim)
        # Every second block is global and computes no query projection (GC ViT, section 3).
        saved += depth // 2 * tokens * dim**2
        for block in range(blocks):
            at = tokens // 4 ** min(block, pools)
            # Depthwise 3×3, squeeze-excite of a quarter, 1×1 (equation 2).
            queries += at * (9 * dim + dim**2) + dim**2 // 2
    assert swin == local
    assert full == everywhere
    assert own == local - saved + queries


@pytest.mark.parametrize(
    "name", [name if name in COUNTED else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS]
)
def test_what_is_counted_agrees_with_the_table_of_models(name):
    side = VARIANTS[name].image_size
    found = complexity(name, (side, side)).macs
    assert found == count_macs(name, side)
    assert found / 1e9 == pytest.approx(PUBLISHED[name].gmacs, rel=5e-3)


# As formulas of every layer gave them, which were once written out by hand.
@pytest.mark.parametrize(
    ("name", "size", "kind", "expected"),
    [
        ("gcvit_tiny", (256, 256), "own", (7_283_286_528, 3_625_361_920, 58_758_016, 8_388_608, 0.14623)),
        ("gcvit_tiny", (256, 256), "swin", (7_435_979_264, 3_778_054_656, 58_723_728, 8_388_608, 0.14323)),
        ("gcvit_tiny", (256, 256), "full", (13_912_997_888, 10_255_073_280, 156_763_752, 136_314_880, 0.0)),
        ("gpvit_l1", (200, 224), "own", (5_451_445_632, 2_006_456_832, 27_646_184, 3_472_000, 0.00095854)),
        ("gpvit_l1", (200, 224), "full", (6_997_701_504, 3_552_712_704, 69_605_864, 24_729_600, 0.0)),
    ],
)
def test_every_figure_is_that_of_the_formulas(name, size, kind, expected):
    found = complexity(name, size, kind)
    assert (found.macs, found.attention_macs, found.activations, found.memory) == expected[:4]
    assert found.padding_share == pytest.approx(expected[4], rel=1e-4)


def test_padding_costs_nothing_where_windows_divide_the_grid(toy):
    assert complexity(toy, (448, 448)).padding_share == 0
    assert complexity(toy, (256, 256)).padding_share > 0.1


@pytest.mark.parametrize(("kind", "factor"), [("own", 16), ("swin", 16), ("full", 50)])
def test_only_full_attention_grows_faster_than_the_image(toy, kind, factor):
    small, large = (complexity(toy, (side, side), kind).macs for side in (448, 1792))
    assert large >= factor * small if kind == "full" else large == pytest.approx(factor * small, rel=0.01)


def test_gpvit_has_no_windows_like_swins():
    with pytest.raises(ValueError, match=r"gpvit_l1 cannot be counted with swin attention; choose own or full"):
        complexity("gpvit_l1", (224, 224), "swin")

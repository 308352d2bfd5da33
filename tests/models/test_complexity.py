"""The formulas against what is counted on the networks themselves, operation by operation."""

from math import prod

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from globalvit.build import create_model
from globalvit.models.complexity import complexity, layers
from globalvit.models.variants import GCVIT, PUBLISHED, VARIANTS

aten = torch.ops.aten
# Operation → positions of the activations among its arguments; weights and biases are none.
PRODUCTS = {aten.convolution: (0,), aten.addmm: (1,), aten.mm: (0,), aten.bmm: (0, 1)}


class Activations(TorchDispatchMode):
    """Elements that each convolution and matrix product reads and writes."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if (places := PRODUCTS.get(function.overloadpacket)) is not None:
            self.seen.append((sum(args[place].numel() for place in places), out.numel()))
        return out


def counted(name, size):
    """Multiply-adds, and (reads, writes) of each operation."""
    with torch.device("meta"), torch.no_grad():
        model = create_model(name, image_size=size).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, *size))
        with Activations() as activations:
            model(torch.empty(1, 3, *size))
    # The counter counts a multiply-add as two.
    return counter.get_total_flops() / 2, activations.seen


# Windows divide the grids of 224×448 and are padded on the others; the last has odd sides at every stride.
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("gcvit_xxtiny", (224, 448)),
        ("gcvit_xxtiny", (256, 256)),
        ("gcvit_xxtiny", (333, 500)),
        ("gpvit_l1", (224, 224)),
        ("gpvit_l1", (333, 500)),
        *(pytest.param(name, size, marks=pytest.mark.slow) for name in VARIANTS for size in [(96, 64), (512, 512)]),
    ],
)
def test_formulas_agree_with_what_is_counted(name, size):
    macs, operations = counted(name, size)
    ours = complexity(VARIANTS[name], size)
    assert ours.macs == macs
    assert ours.activations == sum(writes for _, writes in operations)
    assert ours.memory == 4 * max(reads + writes for reads, writes in operations)


@pytest.mark.parametrize("name", VARIANTS)
def test_formulas_agree_with_the_table_of_models(name):
    side = VARIANTS[name].image_size
    assert complexity(VARIANTS[name], (side, side)).macs / 1e9 == pytest.approx(PUBLISHED[name].gmacs, rel=5e-3)


def attention_of_stage(kind, stage, size):
    """Multiply-adds of the stage's attention, global queries left out, and the stage's grid and channels."""
    config = GCVIT["gcvit_tiny"]
    found = [layer.macs for layer in layers(config, size, kind) if layer.part == "attention"]
    start = sum(config.depths[:stage])
    # An attention is four layers: projection, two products, projection.
    blocks = [sum(found[4 * block : 4 * block + 4]) for block in range(start, start + config.depths[stage])]
    return blocks, prod(side // (4 << stage) for side in size), config.channels[stage]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_an_attention_costs_what_the_papers_say(stage):
    size, square = (448, 224), GCVIT["gcvit_tiny"].window[stage] ** 2
    (local, pooled, *_), tokens, dim = attention_of_stage("own", stage, size)
    assert local == 4 * tokens * dim**2 + 2 * square * tokens * dim
    assert pooled == 3 * tokens * dim**2 + 2 * square * tokens * dim
    assert set(attention_of_stage("swin", stage, size)[0]) == {local}
    assert set(attention_of_stage("full", stage, size)[0]) == {4 * tokens * dim**2 + 2 * tokens**2 * dim}


def test_padding_costs_nothing_where_windows_divide_the_grid():
    config = GCVIT["gcvit_tiny"]
    assert complexity(config, (448, 448)).padding_share == 0
    assert complexity(config, (256, 256)).padding_share > 0.1


def test_only_full_attention_grows_faster_than_the_image():
    config = GCVIT["gcvit_tiny"]
    for kind, factor in (("own", 16), ("swin", 16), ("full", 50)):
        small, large = (complexity(config, (side, side), kind).macs for side in (448, 1792))
        assert large >= factor * small if kind == "full" else large == pytest.approx(factor * small, rel=0.01)


def test_gpvit_has_no_windows_like_swins():
    with pytest.raises(ValueError, match=r"Swin's windows have no place in GPViT, .* choose own or full"):
        complexity(VARIANTS["gpvit_l1"], (224, 224), "swin")

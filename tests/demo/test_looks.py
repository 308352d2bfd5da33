"""Which maps can be chosen, and what is shown of one."""

import pytest

from globalvit.build import create_model
from globalvit.demo import looks
from globalvit.demo.looks import Wish, settle, settle_among, step_of
from globalvit.explain import View

VIEWS = [
    *(View(kind="local", stage=0, block=block, heads=2, takes=("head", "pixel")) for block in (0, 2)),
    *(View(kind="local", stage=1, block=block, heads=4, takes=("head", "pixel")) for block in (0, 2, 4, 6)),
    *(View(kind="grad_cam", stage=stage, takes=("target",)) for stage in (0, 1)),
]


@pytest.mark.parametrize(
    ("wish", "stage", "block", "blocks", "heads"),
    [
        (Wish(kind="local"), 1, 6, [0, 2, 4, 6], 4),
        (Wish(kind="local", stage=0, block=6), 0, 2, [0, 2], 2),
        (Wish(kind="local", stage=1, block=3), 1, 2, [0, 2, 4, 6], 4),
        (Wish(kind="grad_cam", stage=9, block=9), 1, None, [], 0),
        # A kind that the model has not is its first one.
        (Wish(kind="groups", stage=0), 0, None, [], 0),
    ],
)
def test_a_wish_becomes_the_nearest_that_is_there(wish, stage, block, blocks, heads):
    controls = settle_among(VIEWS, wish)
    assert (controls.wish.stage, controls.wish.block, controls.blocks, controls.heads) == (stage, block, blocks, heads)
    assert controls.stages == [0, 1]
    assert controls.kinds == [("Grad-CAM", "grad_cam"), ("Local attention", "local")]


@pytest.mark.parametrize(("head", "settled"), [(None, None), (1, 1), (9, 1)])
def test_a_head_stays_within_those_of_the_block(head, settled):
    assert settle_among(VIEWS, Wish(kind="local", stage=0, head=head)).wish.head == settled
    assert settle_among(VIEWS, Wish(kind="grad_cam", head=head)).wish.head is None


@pytest.mark.parametrize(("numbers", "step"), [([0, 2, 4], 2), ([1, 4, 7, 10], 3), ([0, 2, 3], 1), ([5], 1)])
def test_a_slider_meets_every_number(numbers, step):
    assert step_of(numbers) == step


@pytest.mark.parametrize(("image_size", "stage"), [(32, 1), (64, 2), (224, 3)])
def test_the_map_shown_first_has_some_cells(image_size, stage):
    model = create_model("gcvit_xxtiny", num_classes=3, image_size=image_size)
    assert settle(model, Wish()).wish.stage == stage


@pytest.mark.parametrize("name", ["gcvit_xxtiny", "gpvit_l1"])
def test_every_kind_of_map_is_drawn(name, photo):
    model = create_model(name, classes=("a", "<i>", "c"), image_size=64).eval()
    for _, kind in settle(model, Wish()).kinds:
        controls = settle(model, Wish(kind=kind, stage=1, pixel=(96, 64)))
        shown = looks.html(photo, looks.look(model, photo, controls), controls)
        assert shown.count("<img") == 1
        assert looks.MEANINGS[kind] in shown
        assert ('tabindex="0"' in shown) == ("pixel" in controls.takes)
        assert "<i>" not in shown

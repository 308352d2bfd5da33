"""Which maps can be chosen, and what is shown of one."""

from dataclasses import replace

import pytest

from globalvit.build import create_model
from globalvit.demo import looks
from globalvit.demo.looks import Wish, settle

NAMES = ("gcvit_xxtiny", "gpvit_l1")


@pytest.fixture(scope="module")
def models():
    return {name: create_model(name, classes=("a", "<i>", "c"), image_size=64).eval() for name in NAMES}


@pytest.mark.parametrize(
    ("wish", "layer"),
    [
        (Wish(kind="local", stage=2), "stage 2, block 4"),
        (Wish(kind="local", stage=0, block=6), "stage 0, block 0"),
        (Wish(kind="local", stage=2, block=3), "stage 2, block 2"),
        (Wish(kind="grad_cam", stage=9, block=9), "stage 3"),
        # A kind that the model does not have is its first one.
        (Wish(kind="groups", stage=0), "stage 0"),
    ],
)
def test_a_wish_becomes_the_nearest_that_is_there(models, wish, layer):
    view, every = settle(models["gcvit_xxtiny"], wish)
    assert looks.layer(view) == layer
    assert view in every
    assert list(dict.fromkeys(one.kind for one in every)) == ["grad_cam", "global", "local", "rollout"]


def test_a_head_stays_within_those_of_the_block(models, photo):
    model, wish = models["gcvit_xxtiny"], Wish(kind="local", stage=0)
    view, _ = settle(model, wish)
    shown = {head: looks.look(model, photo, view, replace(wish, head=head))[0].tobytes() for head in (0, 1, 9)}
    assert shown[1] == shown[9] != shown[0]


@pytest.mark.parametrize(("image_size", "stage"), [(32, 1), (64, 2), (224, 3)])
def test_the_map_shown_first_has_some_cells(image_size, stage):
    model = create_model("gcvit_xxtiny", num_classes=3, image_size=image_size)
    assert settle(model, Wish())[0].stage == stage


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_map_is_drawn(name, photo, models):
    for kind in dict.fromkeys(view.kind for view in settle(models[name], Wish())[1]):
        wish = Wish(kind=kind, stage=1, pixel=(96, 64))
        view, _ = settle(models[name], wish)
        drawn, _, note = looks.look(models[name], photo, view, wish)
        assert drawn.size == looks.shown_size(photo) == (384, 256)
        assert looks.KINDS[kind][1] in note
        assert ("Marked: 96, 64" in note) == ("pixel" in view.takes)

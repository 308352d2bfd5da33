"""GPViT with its adapter: padding, the one-stage form, initial state, names of parts."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from globalvit.models.gpvit import GPViT
from globalvit.models.layers import DropPath
from globalvit.models.variants import GPVIT
from globalvit.necks.gpvit_adapter import AdaptedGPViT, Injector

TINY = replace(GPVIT["gpvit_l1"], width=24)


def adapted(finest=4, config=TINY, gamma=0.5):
    """A backbone whose side path has an effect on the blocks from the start."""
    backbone = AdaptedGPViT(config, finest=finest)
    backbone.init_weights()
    for module in backbone.modules():
        if isinstance(module, Injector):
            nn.init.constant_(module.gamma, gamma)
    return backbone.eval()


@pytest.mark.parametrize(("finest", "strides"), [(4, (4, 8, 16, 32)), (8, (8, 16, 32))])
@pytest.mark.parametrize("size", [(64, 96), (33, 47), (20, 70)], ids=str)
def test_maps_of_any_image_are_those_of_the_padded_one(finest, strides, size):
    backbone, images = adapted(finest), torch.randn(2, 3, *size)
    rows, columns = (-side % 32 for side in size)
    with torch.inference_mode():
        maps, whole = backbone(images), backbone(F.pad(images, (0, columns, 0, rows)))
    assert (backbone.strides, backbone.channels) == (strides, (24,) * len(strides))
    for x, padded, stride in zip(maps, whole, strides, strict=True):
        height, width = -(-size[0] // stride), -(-size[1] // stride)
        assert x.shape == (2, 24, height, width)
        assert torch.equal(x, padded[:, :, :height, :width])


def test_the_one_stage_form_is_the_other_without_its_finest_map():
    two, one = adapted(4), adapted(8)
    missing, left = one.load_state_dict(two.state_dict(), strict=False)
    assert not missing
    assert {name.rsplit(".", 1)[0] for name in left} == {
        "adapter.prior.projections.4",
        "adapter.upsample",
        "adapter.norms.4",
    }
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        for x, y in zip(one(images), two(images)[1:], strict=True):
            assert torch.equal(x, y)


def test_a_fresh_adapter_leaves_the_blocks_undisturbed():
    backbone, plain = adapted(gamma=0.0), GPViT(replace(TINY, outputs=(11,))).eval()
    plain.load_state_dict({**plain.state_dict(), **backbone.state_dict()}, strict=False)
    seen = []
    for model in (backbone, plain):
        model.blocks[-1].register_forward_hook(lambda *call: seen.append(call[2]))
        model(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(*seen)


def test_the_side_path_reaches_the_blocks():
    images = torch.randn(1, 3, 64, 64)
    with_it, without = adapted(), adapted(gamma=0.0)
    without.load_state_dict({k: 0 * v if k.endswith("gamma") else v for k, v in with_it.state_dict().items()})
    assert not torch.allclose(with_it(images)[3], without(images)[3], atol=1e-3)


@pytest.mark.parametrize(("rate", "expected"), [(0.3, 0.1), (0.05, 0.05), (0.0, 0.0)])
def test_drop_path_is_a_tenth_but_never_above_the_backbones(rate, expected):
    adapter = adapted(config=replace(TINY, drop_path=rate)).adapter
    rates = [module.rate for module in adapter.modules() if isinstance(module, DropPath)]
    assert rates == [expected] * 6


def test_norms_have_the_published_eps():
    adapter = adapted().adapter
    assert {m.eps for m in adapter.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}
    assert {m.eps for m in adapter.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-5}


def test_no_final_norm_and_the_level_embedding_is_spared_from_decay():
    backbone = adapted()
    assert not any(name.startswith(("norm.", "norms.")) for name in backbone.state_dict())
    assert backbone.no_decay_names() == {
        "adapter.level_embedding",
        "position_embedding",
        *(f"blocks.{block}.group_tokens" for block in (1, 4, 7, 10)),
    }
    assert backbone.depth_of("adapter.interactions.0.injector.gamma") == backbone.num_depths - 1 == 12
    assert len(backbone.block_modules()) == 12 + 4 + 6


@pytest.mark.slow
def test_exports_as_one_graph():
    backbone, images = adapted(), torch.randn(2, 3, 64, 96)
    exported = torch.export.export(backbone, (images,)).module()
    with torch.inference_mode():
        for x, y in zip(exported(images), backbone(images), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


def test_values_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="depth=10 must be a multiple of the adapter's 4 interactions"):
        AdaptedGPViT(replace(TINY, depth=10, outputs=()))
    with pytest.raises(ValueError, match="finest=16: expected 4 or 8, the strides"):
        AdaptedGPViT(TINY, finest=16)
    with pytest.raises(ValueError, match=r"expected images of shape \(batch, 3, height, width\), got \(2, 1, 64, 64\)"):
        adapted()(torch.zeros(2, 1, 64, 64))

"""Mixup and CutMix: timm's, drawn from (seed, step)."""

import numpy as np
import pytest
import torch

from globalvit.data.classification.mixing import Mixing


def batch(size=6, classes=5):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size, 3, 8, 8, generator=generator)
    return {"images": images, "labels": torch.arange(size) % classes, "indices": torch.arange(size)}


def test_without_anything_targets_are_the_labels():
    mixed = Mixing(5)(batch(), 0)
    assert torch.equal(mixed["targets"], torch.nn.functional.one_hot(batch()["labels"], 5).float())
    assert torch.equal(mixed["images"], batch()["images"])


def test_smoothing_alone_softens_the_targets():
    targets = Mixing(5, smoothing=0.1)(batch(7), 0)["targets"]
    assert targets.max() == pytest.approx(0.92)
    assert targets.min() == pytest.approx(0.02)


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1}])
def test_what_is_mixed_is_a_function_of_seed_and_step(options):
    mixing = Mixing(5, seed=4, **options)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first = mixing(batch(), 3)
    np.random.seed(0)
    again = Mixing(5, seed=4, **options)(batch(), 3)
    assert torch.equal(first["images"], again["images"])
    assert torch.equal(first["targets"], again["targets"])
    assert not torch.equal(first["images"], mixing(batch(), 4)["images"])
    assert not torch.equal(first["images"], Mixing(5, seed=5, **options)(batch(), 3)["images"])
    assert torch.equal(before[0], torch.get_rng_state())
    assert first["targets"].sum(1) == pytest.approx(torch.ones(6))


def test_mixup_mixes_images_and_targets_alike():
    mixed, plain = Mixing(6, mixup=1.0)(batch(classes=6), 0), batch(classes=6)
    share = mixed["targets"][0, 0]
    assert 0 < share < 1
    expected = plain["images"] * share + plain["images"].flip(0) * (1 - share)
    assert torch.allclose(mixed["images"], expected, atol=1e-6)


def test_cutmix_takes_as_much_as_the_targets_say():
    for step in range(10):
        mixed, plain = Mixing(6, cutmix=1.0)(batch(classes=6), step), batch(classes=6)
        kept = (mixed["images"][0] == plain["images"][0]).all(0).float().mean()
        assert mixed["targets"][0, 0] == pytest.approx(kept.item())


def test_both_take_turns_and_prob_leaves_batches_alone():
    def is_mixup(images):
        return (images[0] != batch()["images"][0]).all() and (images[0] != batch()["images"][5]).all()

    mixing = Mixing(5, mixup=1.0, cutmix=1.0, switch_prob=0.5)
    assert 5 < sum(bool(is_mixup(mixing(batch(), step)["images"])) for step in range(30)) < 25
    seldom = Mixing(5, mixup=1.0, prob=0.2)
    unchanged = sum(torch.equal(seldom(batch(), step)["images"], batch()["images"]) for step in range(50))
    assert 30 < unchanged < 48


def test_it_can_be_off_for_the_last_epochs():
    mixed = Mixing(5, mixup=1.0, smoothing=0.1)(batch(), 0, is_on=False)
    assert torch.equal(mixed["images"], batch()["images"])
    assert mixed["targets"].max() == pytest.approx(0.92)


def test_an_odd_batch_is_refused_with_the_remedy():
    text = "a batch of 7 images cannot be mixed in pairs; make --batch-size even, or set --mixup 0 and --cutmix 0"
    with pytest.raises(ValueError, match=text):
        Mixing(5, mixup=1.0)(batch(7), 0)
    with pytest.raises(ValueError, match=text):
        Mixing(5, cutmix=1.0).check_batch_size(7)
    Mixing(5).check_batch_size(7)

"""The table of published weight files."""

from pathlib import Path

import pytest
import timm

from globalvit.models.variants import PUBLISHED, VARIANTS
from globalvit.weights import catalog
from globalvit.weights.catalog import RECORDS, Preprocessing, preprocessing_from_dict

CENTER_1 = ("gcvit_xxtiny", "gcvit_tiny", "gcvit_base", "gcvit_large")
CENTER_0875 = ("gcvit_xtiny", "gcvit_tiny2", "gcvit_small", "gcvit_small2")


def test_eleven_official_gcvit_files_five_of_timm_and_four_of_gpvit():
    assert len([record for record in RECORDS if record.form == "gcvit_official"]) == 11
    assert len([record for record in RECORDS if record.form == "timm"]) == 5
    assert len([record for record in RECORDS if record.form == "gpvit_official"]) == 4
    assert {record.model for record in RECORDS} == set(VARIANTS)
    assert len({record.file_name for record in RECORDS}) == len(RECORDS)
    assert len({(record.model, record.weights) for record in RECORDS}) == len(RECORDS)


def test_addresses_are_the_published_ones():
    hub = catalog.find("gcvit_tiny2", "nvidia_in1k")
    assert hub.address == "https://huggingface.co/nvidia/GCViT/resolve/main/gcvit_1k_tiny2.pth.tar"
    assert hub.repo == ("nvidia/GCViT", "gcvit_1k_tiny2.pth.tar")
    assert catalog.find("gcvit_large_512", "nvidia_in21k_ft_in1k").file_name == "gcvit_21k_large_512.pth.tar"
    assert catalog.find("gcvit_base", "timm_in1k").repo == ("timm/gcvit_base.in1k", "model.safetensors")
    release = catalog.find("gpvit_l3", "gpvit_in1k")
    assert release.address == (
        "https://github.com/ChenhongyiYang/GPViT/releases/download/v0.0.1/gpvit_l3_in1k_300e.pth"
    )
    drive = catalog.find("gcvit_large", "nvidia_in21k_ft_in1k")
    assert (drive.source, drive.repo) == ("drive", None)
    assert "1maGDr6mJkLyRTUkspMzCgSlhDzNRFGEf" in drive.address


def test_evaluation_crops_are_those_of_each_file():
    for models, ratio in ((CENTER_1, 1.0), (CENTER_0875, 0.875)):
        for model in models:
            given = catalog.find(model, "nvidia_in1k").preprocessing
            assert (given.crop_mode, given.crop_ratio, given.image_size) == ("center", ratio, (224, 224))
    assert catalog.find("gcvit_large", "nvidia_in21k_ft_in1k").preprocessing.crop_ratio == 1.0
    for side in (384, 512):
        given = catalog.find(f"gcvit_large_{side}", "nvidia_in21k_ft_in1k").preprocessing
        assert (given.crop_mode, given.image_size) == ("squash", (side, side))
    assert {record.preprocessing.interpolation for record in RECORDS} == {"bicubic"}


def test_timm_evaluates_its_files_as_ours_say():
    for record in RECORDS:
        if record.form == "timm":
            cfg = timm.get_pretrained_cfg(f"{record.model}.in1k")
            given = record.preprocessing
            assert (cfg.crop_pct, cfg.crop_mode, cfg.interpolation) == (0.875, "center", given.interpolation)
            assert (cfg.crop_pct, cfg.mean, cfg.std) == (given.crop_ratio, given.mean, given.std)


def test_scores_and_licenses():
    for record in RECORDS:
        assert record.license == ("Apache-2.0" if record.model.startswith("gpvit") else "CC-BY-NC-SA-4.0")
        if record.weights in ("nvidia_in1k", "gpvit_in1k"):
            assert record.top1 == PUBLISHED[record.model].top1
    assert catalog.find("gcvit_large", "nvidia_in21k_ft_in1k").top1 == 86.6
    assert catalog.find("gcvit_large_512", "nvidia_in21k_ft_in1k").top1 is None


def test_the_authors_own_weights_come_first():
    assert catalog.find("gcvit_tiny", "published").weights == "nvidia_in1k"
    assert catalog.find("gcvit_large_384", "published").weights == "nvidia_in21k_ft_in1k"
    assert catalog.find("gpvit_l2", "published").weights == "gpvit_in1k"
    assert [record.weights for record in catalog.records("gcvit_tiny")] == ["nvidia_in1k", "timm_in1k"]
    assert catalog.records("gc_vit_tiny") == catalog.records("gcvit_tiny")
    assert catalog.default_preprocessing("gcvit_large_384").crop_mode == "squash"
    assert catalog.find_file("gcvit_1k_base.pth.tar") == catalog.find("gcvit_base", "nvidia_in1k")
    assert catalog.find_file("model.safetensors") is None


def test_an_unknown_name_gives_the_closest_ones():
    message = r"'gcvit_tiny' has no weights 'nvidia_1k'; it has nvidia_in1k, timm_in1k\. Did you mean 'nvidia_in1k'"
    with pytest.raises(ValueError, match=message):
        catalog.find("gcvit_tiny", "nvidia_1k")
    with pytest.raises(ValueError, match="'gcvit_nano' has no weights 'nvidia_in1k'; none are published for it"):
        catalog.find("gcvit_nano", "nvidia_in1k")
    with pytest.raises(ValueError, match="no weights are published for model 'gcvit_nano'; give its preprocessing"):
        catalog.default_preprocessing("gcvit_nano")


def test_names_and_paths_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("weights_of_mine").touch()
    assert catalog.is_name("nvidia_in1k")
    assert catalog.is_name("nvidia_in1kk")
    for other in ("model.pth", "runs/digits", "weights_of_mine", Path("nvidia_in1k"), None, {}):
        assert not catalog.is_name(other)


def test_preprocessing_goes_through_json():
    given = Preprocessing(image_size=(224, 320), crop_ratio=0.9, crop_mode="squash")
    assert given.to_dict()["image_size"] == [224, 320]
    assert preprocessing_from_dict(given.to_dict()) == given

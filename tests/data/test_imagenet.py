"""ImageNet's class names, which ship with the package."""

from globalvit.data.classification.imagenet import imagenet_21k_synsets, imagenet_names, imagenet_synsets, readable


def test_there_are_a_thousand_different_names_in_the_usual_order():
    names = imagenet_names()
    assert len(set(names)) == 1000
    assert names[:2] == ("tench", "goldfish")
    assert names[134] == "crane (bird)"
    assert names[999] == "toilet tissue"


def test_the_ids_are_timms_and_in_the_order_of_sorted_folders():
    from timm.data import ImageNetInfo

    synsets = imagenet_synsets()
    assert list(synsets) == sorted(synsets)
    assert list(synsets) == ImageNetInfo("imagenet-1k").label_names()


def test_folders_named_by_id_get_their_names():
    assert readable(["n01440764", "apple"]) == ("tench", "apple")


def test_imagenet_21k_holds_the_thousand_and_each_class_has_a_name_of_its_own():
    synsets = imagenet_21k_synsets()
    assert (len(synsets), list(synsets)) == (21841, sorted(synsets))
    # The teddy bear is the one that was not in the release of fall 2011.
    assert set(imagenet_synsets()) - set(synsets) == {"n04399382"}
    names = readable(synsets)
    assert len(set(names)) == 21841
    assert names[synsets.index("n02084071")] == "dog (n02084071)"
    assert names[synsets.index("n01440764")] == "tench"
    assert readable(["n99999999"]) == ("n99999999",)

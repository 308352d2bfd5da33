"""ImageNet's class names, which ship with the package."""

from globalvit.data.classification.imagenet import imagenet_names, imagenet_synsets, readable


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

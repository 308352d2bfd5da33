"""Images with label maps out of tar shards, in place of folders of them: KEY.jpg with KEY.png, or with KEY.mask.png."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from globalvit.data.common.images import UnreadableImage
from globalvit.data.common.names import Names
from globalvit.data.common.orientation import FramedLabels, Sight
from globalvit.data.segmentation.class_table import ClassTable, palette_of, reader_of, resolve_classes
from globalvit.data.segmentation.label_images import LabelReader, read_labeled, sight_of_pair
from globalvit.data.segmentation.survey import look_over, settle_reader, warn_unlearned
from globalvit.data.storage.lmdb_decode import decode
from globalvit.data.storage.shards import TarMembers, images_of, packed_from
from globalvit.data.storage.tar_files import check_shards
from globalvit.data.storage.tar_index import FILE_NAME, LABEL_FILE_NAME, Shard, WrongShard, index_shards, split_key

# What the label map of a sample ends in; of an image that is itself a PNG file, it is the first.
MASK, PNG = "mask.png", "png"
MASKS = (MASK, "seg.png", PNG)


class ShardMasks(FramedLabels):
    """Images and label maps of tar shards as a `MaskSource`.

    Args:
        root: the folder of the split, with which names begin.
        images, maps: the members.
        names, map_names: of the files they were packed from.
        table: names and colors of the classes.
        reader: reads the label maps.
    """

    def __init__(
        self,
        root: Path,
        members: tuple[TarMembers, TarMembers],
        names: tuple[Sequence[str], Sequence[str]],
        table: ClassTable,
        reader: LabelReader,
    ) -> None:
        self.root = root
        self.images, self.maps = members
        self._names, self._map_names = map(Names, names)
        self.classes, self.palette = table.names, palette_of(table)
        self.reader = reader

    @property
    def is_binary(self) -> bool:
        """Whether the files hold 0 and 255 for the two classes."""
        return self.reader.is_binary

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """The path that image `index` had before it was packed, below the folder of the shards."""
        return f"{self.root}{os.sep}{self._names[index]}"

    def label_name(self, index: int) -> str:
        """The path of the label map of image `index`, likewise."""
        return f"{self.root}{os.sep}{self._map_names[index]}"

    def packed_sizes(self) -> list[str]:
        """Bytes of each image and its label map, for fingerprints."""
        return [f"{image}+{label}" for image, label in zip(self.images.sizes, self.maps.sizes, strict=True)]

    def labels(self, index: int) -> list[int]:
        """The labels in the label map of image `index`, ascending; none where it cannot be read."""
        try:
            return self.reader.labels(self.maps.data(index), self.maps.place(index))
        except (UnreadableImage, OSError):
            return []

    def read(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Image `index` as RGB, and its labels; raises what `read_span` and `read_labeled` raise."""
        places = self.images.place(index), self.maps.place(index)
        image, labels = self.images.data(index), self.maps.data(index)
        return read_labeled(image, labels, self.reader, *places, frame=lambda: self.frame, decode=decode)

    @property
    def annotated_by(self) -> str:
        """What to call the label maps in messages."""
        return f"the label maps of {self.root}"

    def sight(self, index: int) -> Sight | None:
        """What image `index` shows of the labels' frame; None where EXIF does not turn it."""
        return sight_of_pair(self.name(index), self.images.data(index), self.maps.data(index))


def holds_masks(paths: Sequence[Path]) -> bool:
    """Whether the first shard holds images with label maps; one that cannot be read counts as holding none."""
    try:
        (shard,) = index_shards(list(paths[:1]))
        return bool(pairs_of(shard)) and not any("label" in note for note in shard.notes.values())
    except (ValueError, OSError):
        return False


def pairs_of(shard: Shard) -> list[tuple[int, int]]:
    """Numbers of the members that are an image and its label map.

    Raises:
        WrongShard: a sample has one without the other.
    """
    pairs = []
    for key, members in images_of(shard).items():
        suffixes = {split_key(shard.names[at])[1]: at for at in members}
        label = next((suffixes.pop(suffix) for suffix in MASKS if suffix in suffixes and len(suffixes) > 1), None)
        if label is None or len(suffixes) != 1:
            raise WrongShard(
                f"{shard.path}: sample {key!r} has {', '.join(shard.names[at] for at in members)}; expected an image "
                "and its label map, KEY.jpg and KEY.png, or KEY.png and KEY.mask.png"
            )
        pairs.append((*suffixes.values(), label))
    return pairs


def open_shard_masks(
    paths: list[Path],
    root: Path,
    data_dir: Path,
    *,
    reduce_zero_label: bool = False,
    ignore: int | None = None,
    is_binary: bool | None = None,
    **expected: Any,
) -> ShardMasks:
    """Open the shards of one split.

    Args:
        paths: the shards, in order.
        root: the folder of the split.
        data_dir: the folder of the data set, where a class file is looked for.
        reduce_zero_label: 0 in the files is to be ignored, and every other label is one less than they say.
        ignore: a value in the files that is to be ignored, in addition to 255.
        is_binary: as in `settle_reader`.
        **expected: classes, num_classes and class_file, as in `open_masks`.

    Raises:
        WrongShard: what `index_shards` and `pairs_of` refuse.
        ValueError: not the classes expected, or what `settle_reader` refuses.
        OSError: a shard cannot be read.
    """
    check_shards(paths)
    shards = index_shards(paths)
    table = resolve_classes(data_dir, **expected)
    reader = reader_of(table, reduce_zero_label=reduce_zero_label, ignore=ignore)
    pairs = [(number, *pair) for number, shard in enumerate(shards) for pair in pairs_of(shard)]
    if not pairs:
        raise WrongShard(f"no images in the {len(paths)} shards of {root}; expected members KEY.jpg and KEY.png")
    images, labels = [pair[:2] for pair in pairs], [(number, label) for number, _, label in pairs]
    members = TarMembers(shards, images), TarMembers(shards, labels)
    names = (
        [packed_from(shards[number], at, FILE_NAME) for number, at in images],
        [packed_from(shards[number], at, LABEL_FILE_NAME) for number, at in labels],
    )
    source = ShardMasks(root, members, names, table, reader)
    values = look_over(reader, len(source), source.maps.data)
    source.reader = settle_reader(reader, values, root, source.classes, is_binary=is_binary)
    if is_binary is None:
        warn_unlearned(source.reader, values, len(source), root, source.classes)
    return source

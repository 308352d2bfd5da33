"""Images of a COCO data set in tar shards: SPLIT/000000.tar in place of SPLIT/*.jpg; annotations stay COCO's JSON."""

from pathlib import Path

from globalvit.data.detection.coco_json import CocoTable
from globalvit.data.storage.shards import TarMembers
from globalvit.data.storage.tar_files import check_shards, shards_in
from globalvit.data.storage.tar_index import FILE_NAME, WrongShard, index_shards, split_key


def members_of(root: Path, table: CocoTable) -> TarMembers | None:
    """The images of a table in the shards of a folder; None where the folder holds no shards.

    An image is found by its file name: `file_name` in the member KEY.json, or else the name of the member itself.

    Raises:
        WrongShard: a shard that `index_shards` refuses, or an image that none of them holds.
        OSError: a shard cannot be read.
    """
    paths = [root / name for name in shards_in(root)]
    if not paths:
        return None
    check_shards(paths)
    shards = index_shards(paths)
    places: dict[str, tuple[int, int]] = {}
    for number, shard in enumerate(shards):
        for at, name in enumerate(shard.names):
            key, suffix = split_key(name)
            if suffix != "json":
                places[str(shard.notes.get(key, {}).get(FILE_NAME, name))] = number, at
    missing = [name for name in table.names if name not in places]
    if missing:
        raise WrongShard(
            f"{len(missing)} of the {len(table.names)} images of {table.path} are in none of the {len(paths)} shards "
            f"of {root}, the first is {missing[0]!r}; pack images and annotations again"
        )
    return TarMembers(shards, [places[name] for name in table.names])
